"""Ability of a backbone to choose which activations it keeps, by the memory that is free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from molfun.sample import Sample


@dataclass(frozen=True)
class MemoryPlan:
    """Choice of the activations that a backbone keeps, and the memory that a step takes with it.

    Parameters
    ----------
    peak
        Predicted peak of a step in bytes, in addition to what the process holds before it.
    how
        Description of the choice for the log.
    fits_up_to
        Largest length that fits, if the given one does not; 0 if none does, or the given one fits.
    """

    peak: int
    how: str
    fits_up_to: int = 0


class MemoryPlanning(ABC):
    """Mix-in for a `Backbone` that can trade time for memory in the backward pass."""

    @abstractmethod
    def plan_memory(self, longest: Sample, batch_size: int, available: int) -> MemoryPlan:
        """Choose how activations are kept, so that a step fits into `available` bytes.

        Parameters
        ----------
        longest
            The longest sample of the training set.
        batch_size
            Number of samples of that length in the batch.
        available
            Bytes that the step may take.
        """

    @abstractmethod
    def forget_plan(self) -> None:
        """Undo the choice of `plan_memory`."""
