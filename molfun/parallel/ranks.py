"""`Ranks`: this process among those that work on one run, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


class Ranks:
    """Index of this process among those that work together, and their communication.

    How messages travel is the business of `torch.distributed`, which Lightning Fabric set up
    (`molfun.parallel.launch`).

    Parameters
    ----------
    index, size
        Index of this process (from 0), and number of processes.

    Examples
    --------
    >>> alone = Ranks()
    >>> alone.is_first, list(alone.share([1, 2, 3]))
    (True, [1, 2, 3])
    """

    def __init__(self, index: int = 0, size: int = 1) -> None:
        self.index, self.size = index, size

    @property
    def is_first(self) -> bool:
        """True if this process writes the files and logs of all."""
        return self.index == 0

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Return an iterator over every `size`-th item, starting at `index`."""
        return iter(items) if self.size == 1 else islice(items, self.index, None, self.size)

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        if self.size > 1:
            distributed.barrier()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order, in every process; not for every step.

        Torch pickles the values. That is safe, as they come only from processes of this run.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def gather_first(self, value: T) -> list[T]:
        """Return the values of all processes, in order, in the first one; in others nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        distributed.gather_object(value, values)
        return values or []

    def of_first(self, find: Callable[[], T]) -> T:
        """Return in every process what `find` gives in the first, which alone calls it."""
        values: list[Any] = [find() if self.is_first else None]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def add_up(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sum of each number over all processes."""
        if self.size == 1:
            return list(values)
        # float64 holds counts up to 2**53 exactly, and NCCL can sum it
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    @torch.no_grad()
    def align(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors of every process with those of the first."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)
