"""Ability of a backbone to choose how it keeps activations, by the memory that is free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from molfun.sample import Sample


@dataclass(frozen=True)
class MemoryPlan:
    """Choice of the activations that a backbone keeps, and the memory of a step with it.

    Parameters
    ----------
    peak
        Bytes of a step over what the process holds before it, as predicted.
    how
        What was chosen, for people.
    fits_up_to
        Length of which a step fits; 0 where none does, or it fits as it is.
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
            A sample of the batch that takes most.
        batch_size
            Samples of that length in the batch.
        available
            Bytes that the step may take.
        """

    @abstractmethod
    def forget_plan(self) -> None:
        """Undo what `plan_memory` chose."""
