"""Abilities of a backbone: choose which activations it keeps, say what blocks and folds cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

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


class FoldMemory(ABC):
    """Mix-in for a `Backbone` that can say what memory a fold takes, before it starts."""

    @abstractmethod
    def fold_memory(self, sample: Sample, available: int) -> MemoryPlan:
        """Return the predicted peak of a fold, and the largest length that fits if this does not.

        Parameters
        ----------
        sample
            Sample that `Backbone.check` has accepted.
        available
            Bytes that the fold may take.
        """


KEPT_PER_WEIGHT_SIDE = 1.2
"""Numbers that a block keeps per position for the backward pass, for each input and output of its
weight matrices: 1.1 for ESM-2 and 1.2 for the transformer of time series, as the hooks of autograd
count them (``tests/models/test_cost.py``)."""


class BlockCosts(ABC):
    """Mix-in for a `Backbone` that can say what one of its blocks costs, before anything runs."""

    step_seconds: ClassVar[float] = 0.01
    """Time of an optimizer step that no block takes: loading, embedding, head and optimizer."""

    @abstractmethod
    def block_flops(self, sample: Sample) -> float:
        """Return the floating-point operations of one block, forward, for one sample."""

    def block_bytes(self, sample: Sample) -> int:  # noqa: ARG002
        """Return the bytes that one block keeps for the backward pass; 0 if that is not known."""
        return 0


class PositionCosts(BlockCosts):
    """Costs of blocks whose weight matrices are applied to each position of a sample apart.

    A position is a residue, a time step, or an atom and each of its pairs.
    """

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Repeated blocks of the trunk, as `Backbone` has them."""

    @abstractmethod
    def positions(self, sample: Sample) -> int:
        """Return the number of positions of a sample."""

    def block_flops(self, sample: Sample) -> float:
        """Return twice the weights per position, as a product and a sum are two operations."""
        return 2.0 * self.positions(sample) * sum(p.numel() for p in self._matrices())

    def block_bytes(self, sample: Sample) -> int:
        """Return the bytes of the inputs and outputs of all weight matrices, in float32."""
        sides = sum(sum(p.shape) for p in self._matrices())
        return int(4 * KEPT_PER_WEIGHT_SIDE * self.positions(sample) * sides)

    def _matrices(self) -> list[nn.Parameter]:
        return [p for p in self.blocks()[0].parameters() if p.ndim == 2]
