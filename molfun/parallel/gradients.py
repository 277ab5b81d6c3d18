"""Sum gradients over processes, while the backward pass still computes the others.

Torch's DDP divides by the number of processes and needs the forward pass to go through its wrapper.
Here a gradient is a sum over labels that is divided once, by the labels of all processes; the
forward pass may go through any part of a model (cached prefixes, several heads), and parameters
may begin to train later. What DDP does to be fast is done here too: buckets, in the order in which
gradients come out of the backward pass, each sent as soon as it is full.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import distributed, nn

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients per message: DDP's size. Large enough that latency does not matter."""
FIRST_BUCKET_BYTES = 2**20
"""Bytes of the first one, as DDP has it: the sooner it is full, the more can overlap."""


@dataclass(eq=False)
class _Bucket:
    """Parameters whose gradients travel together.

    Parameters
    ----------
    parameters
        Of one type and device.
    flat
        Gradients one after the other, then one number per parameter: 1 if this process has a
        gradient of it, and after the sum the number of processes that have one.
    """

    parameters: list[nn.Parameter]
    flat: torch.Tensor
    waiting: set[int] = field(default_factory=set)
    sent: bool = False
    work: distributed.Work | None = None
    views: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, parameters: list[nn.Parameter]) -> _Bucket:
        sizes = [p.numel() for p in parameters]
        flat = parameters[0].new_zeros(sum(sizes) + len(parameters), requires_grad=False)
        parts = flat[: sum(sizes)].split(sizes)
        views = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        return cls(parameters, flat, views=views)

    @property
    def counts(self) -> torch.Tensor:
        return self.flat[len(self.flat) - len(self.parameters) :]

    @torch.no_grad()
    def send(self) -> None:
        """Copy what there is into the buffer, and begin to add it up over all processes."""
        present = [p.grad is not None for p in self.parameters]
        self.counts.copy_(torch.tensor(present, dtype=self.flat.dtype))
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        self.work = distributed.all_reduce(self.flat, async_op=True)
        self.sent = True

    def receive(self) -> None:
        """Wait for the sums, and make them the gradients; None where no process has one."""
        assert self.work is not None
        self.work.wait()
        for parameter, view, n in zip(
            self.parameters, self.views, self.counts.tolist(), strict=True
        ):
            parameter.grad = view if n else None
        self.sent, self.work = False, None


class GradientSum:
    """Sums of the gradients of all processes, for the parameters that train now.

    Every process sends every bucket in the same order, once per window, also one without a batch or
    with a loss that is not finite: no process waits for a message that never comes.

    A backward pass that recomputes may add to a gradient several times. Buckets are therefore sent
    early only after a window in which every gradient came at once.

    Parameters
    ----------
    parameters
        Parameters in the order of the model; those that are frozen now are left out.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        training = [p for p in parameters if p.requires_grad]
        # gradients come out of the backward pass from the last layer to the first
        self.buckets = [_Bucket.of(each) for each in _buckets(training[::-1])]
        self.overlaps = False
        self._armed = False
        self._next = 0
        self._again = False  # a gradient came in pieces
        self._came = False  # any gradient did, in this window
        self._handles = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._arrived, bucket))
            for bucket in self.buckets
            for parameter in bucket.parameters
        ]

    def close(self) -> None:
        """Remove the hooks; call it when other parameters begin to train."""
        for handle in self._handles:
            handle.remove()

    def arm(self) -> None:
        """Begin the last backward pass of a window, in which buckets are sent as they fill."""
        self._armed, self._again, self._came, self._next = True, False, False, 0
        for bucket in self.buckets:
            bucket.waiting = set(map(id, bucket.parameters))

    def _arrived(self, bucket: _Bucket, parameter: nn.Parameter) -> None:
        if not self._armed:
            return
        self._came = True
        if id(parameter) not in bucket.waiting:
            self._again = True
            if bucket.sent:
                raise RuntimeError(
                    "A gradient came in several pieces, and a part of it was sent already: the "
                    "backward pass of this step differs from that of the step before."
                )
        bucket.waiting.discard(id(parameter))
        # in order: sums of two processes must meet in the same message
        while self.overlaps and self._next < len(self.buckets):
            if self.buckets[self._next].waiting:
                return
            self.buckets[self._next].send()
            self._next += 1

    def finish(self) -> None:
        """Send what has not been sent, and replace the gradients by their sums."""
        for bucket in self.buckets[self._next :]:
            bucket.send()
        for bucket in self.buckets:
            bucket.receive()
        if self._armed and self._came:  # a window without labels says nothing of the next one
            self.overlaps = not self._again
        self._armed, self._next = False, 0


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size, limit = 0, FIRST_BUCKET_BYTES
    for parameter in parameters:
        other = bucket and (bucket[0].dtype, bucket[0].device) != (
            parameter.dtype,
            parameter.device,
        )
        if bucket and (other or size > limit):
            yield bucket
            bucket, size, limit = [], 0, BUCKET_BYTES
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
