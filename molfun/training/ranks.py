"""Data-parallel training under ``torchrun``: the processes of one run.

Gradients are sums over samples. They are summed over the processes once per optimizer step, just
before the division by the number of labels in all of them. So the model needs no wrapper such as
DDP, and parameters that begin to train later (`GradualFinetune`) need no special case: a parameter
with a gradient in one process gets the sum in all.
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
"""Bytes of gradients per ``all_reduce``, 32 MB as DDP's buckets of 25 MB.

Large enough that latency does not matter, small next to the weights: the flat copy takes memory.
"""


class Ranks:
    """Index of this process among those that train together, and their communication.

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

    @classmethod
    def join_run(cls, device: torch.device) -> Ranks:
        """Join the processes that ``torchrun`` started; without torchrun, this one is alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or not distributed.is_available():
            return cls()
        if not distributed.is_initialized():
            # nccl works on GPUs only, gloo on CPUs
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

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
        """Return the values of all processes, in order, in every process.

        Torch pickles the values. That is safe, as they come only from processes of this run.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def add_up(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sum of each number over all processes."""
        if self.size == 1:
            return list(values)
        # float64 holds counts up to 2**53 exactly, and NCCL can sum it
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes.

        If only some processes have a gradient for a parameter, the others count as zero. If none
        has, it stays None, so that the optimizer leaves the parameter alone.
        """
        if self.size == 1 or not parameters:
            return
        device = parameters[0].device
        # every process must take part in every all_reduce, or the others wait for ever
        present = torch.tensor([p.grad is not None for p in parameters], device=device).int()
        distributed.all_reduce(present)
        concerned = [p for p, n in zip(parameters, present.tolist(), strict=True) if n]
        for bucket in _buckets(concerned):
            _add_up_bucket(bucket)

    @torch.no_grad()
    def align(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors of every process with those of the first."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def _add_up_bucket(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of one bucket over all processes."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    # one message for many small gradients: latency counts per message
    flat = torch.cat([g.reshape(-1) for g in gradients])
    distributed.all_reduce(flat)
    parts = flat.split([g.numel() for g in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()  # a view would keep the bucket alive


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        # torch.cat would convert a bucket of several types to one
        same = bucket and bucket[0].dtype == parameter.dtype
        if bucket and (not same or size > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
