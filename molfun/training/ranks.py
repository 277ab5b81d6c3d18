"""The processes of one run: data-parallel training under ``torchrun``.

Gradients are sums over samples, and are added up over the processes once per optimizer step, just
before they are divided by the number of labels in all of them. So nothing has to be wrapped, and
parameters that begin to train later (`GradualFinetune`) need no care: whatever has a gradient in
one process gets it in all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")
BUCKET_BYTES = 2**25
"""Gradients that travel together: large enough to fill the wire, small beside the weights."""


class Ranks:
    """Which process this is among those that train together.

    Parameters
    ----------
    index, size
        Number of this process (from 0) and of all.

    Examples
    --------
    >>> alone = Ranks()
    >>> alone.is_first, list(alone.share([1, 2, 3]))
    (True, [1, 2, 3])
    """

    def __init__(self, index: int = 0, size: int = 1) -> None:
        self.index, self.size = index, size

    @classmethod
    def join_run(cls, device: torch.device) -> Ranks:
        """Join the processes that ``torchrun`` started; alone where it started none."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or not distributed.is_available():
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.index == 0

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Every `size`-th item, from number `index` on."""
        return iter(items) if self.size == 1 else islice(items, self.index, None, self.size)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order, in every process.

        Values are pickled, as torch does it: they come from processes of this run alone.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def add_up(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sum of each number over all processes."""
        if self.size == 1:
            return list(values)
        # float64 holds counts exactly; NCCL takes it, too
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes.

        A parameter without one counts as zero if any process has one, else it stays without.
        """
        if self.size == 1 or not parameters:
            return
        device = parameters[0].device
        present = torch.tensor([p.grad is not None for p in parameters], device=device).int()
        distributed.all_reduce(present)
        concerned = [p for p, n in zip(parameters, present.tolist(), strict=True) if n]
        for bucket in _buckets(concerned):
            _add_up_bucket(bucket)

    @torch.no_grad()
    def align(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the tensors of the first."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def _add_up_bucket(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients that travel together."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    distributed.all_reduce(flat)
    parts = flat.split([g.numel() for g in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        same = bucket and bucket[0].dtype == parameter.dtype
        if bucket and (not same or size > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
