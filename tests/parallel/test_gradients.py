"""Gradients are added up over processes, whatever each of them has; threads stand in for them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed, nn

from molfun.parallel import gradients
from molfun.parallel.gradients import GradientSum


class Group:
    """Messages of several threads, in the order in which each thread sends them."""

    def __init__(self, size: int) -> None:
        self.size, self.here = size, threading.local()
        self.messages: dict[int, list[torch.Tensor]] = {}
        self.changed = threading.Condition()

    def all_reduce(self, tensor: torch.Tensor, *, async_op: bool) -> Any:
        assert async_op
        number = self.here.sent = getattr(self.here, "sent", -1) + 1
        with self.changed:
            self.messages.setdefault(number, []).append(tensor.clone())
            self.changed.notify_all()
        group = self

        class Work:
            def wait(self) -> None:
                with group.changed:
                    there = group.changed.wait_for(
                        lambda: len(group.messages[number]) == group.size, timeout=20
                    )
                assert there, f"message {number} never came"
                assert len({len(one) for one in group.messages[number]}) == 1
                tensor.copy_(torch.stack(group.messages[number]).sum(0))

        return Work()

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        found: list[Any] = [None] * self.size

        def one(index: int) -> None:
            found[index] = function(index)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    made = Group(2)
    monkeypatch.setattr(distributed, "all_reduce", made.all_reduce)
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 300)
    monkeypatch.setattr(gradients, "FIRST_BUCKET_BYTES", 100)
    return made


torch.manual_seed(0)
MODEL = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
WEIGHT = torch.randn(8, 8)


def model() -> nn.Sequential:
    return copy.deepcopy(MODEL)  # threads share torch's generator


def batch(index: int, number: int) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * number + index))


def summed(layers: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of one process that has all batches."""
    for x in inputs:
        layers(x).square().sum().backward()
    return [p.grad for p in layers.parameters()]


def test_sums_are_those_of_one_process_and_overlap_from_the_second_window_on(group: Group) -> None:
    def process(index: int) -> Any:
        layers, found = model(), []
        total = GradientSum(list(layers.parameters()))
        for window in range(3):
            # the second process has two batches per window
            for number in range(1 + index):
                if number == index:
                    total.arm()
                layers(batch(index, 3 * window + number)).square().sum().backward()
            early = sum(bucket.sent for bucket in total.buckets)
            total.finish()
            found.append((early, [p.grad.clone() for p in layers.parameters()]))
            layers.zero_grad()
        return len(total.buckets), found

    (n, first), (_, second) = group.run(process)
    assert n > 2
    assert [early for early, _ in first] == [0, n, n]
    for window, ((_, one), (_, other)) in enumerate(zip(first, second, strict=True)):
        inputs = [batch(0, 3 * window), *(batch(1, 3 * window + i) for i in range(2))]
        wanted = summed(model(), inputs)
        for a, b, c in zip(one, other, wanted, strict=True):
            assert torch.equal(a, b)
            assert torch.allclose(a, c, rtol=1e-5, atol=1e-5)


def test_a_process_without_a_batch_or_a_gradient_sends_nothing_but_zeros(group: Group) -> None:
    def process(index: int) -> Any:
        layers = model()
        unused = nn.Parameter(torch.ones(3))
        total = GradientSum([*layers.parameters(), unused])
        found = []
        for window in range(3):
            if index == 0:  # the last layer has no gradient here
                total.arm()
                layers[:-1](batch(0, window)).square().sum().backward()
            elif window != 1:
                total.arm()
                layers(batch(1, window)).square().sum().backward()
            total.finish()
            assert unused.grad is None
            found.append([None if p.grad is None else p.grad.clone() for p in layers.parameters()])
            layers.zero_grad()
        return found

    first, second = group.run(process)
    for window, (one, other) in enumerate(zip(first, second, strict=True)):
        assert [a is None for a in one] == [window == 1 and i >= 6 for i in range(8)]
        for a, b in zip(one, other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


class InPieces(torch.autograd.Function):
    """A product whose weight gets its gradient in two pieces, as recomputed blocks may do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        ctx.x, ctx.weight = x.detach(), weight
        return x @ weight.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        with torch.enable_grad():
            for part in (slice(0, 2), slice(2, None)):
                torch.autograd.backward(ctx.x[part] @ ctx.weight, grad[part])
        return grad @ ctx.weight.detach().T, None


def test_gradients_in_pieces_are_sent_when_they_are_whole(group: Group) -> None:
    def process(index: int) -> Any:
        weight, layers = nn.Parameter(WEIGHT.clone()), model()
        total = GradientSum([weight, *layers.parameters()])
        overlaps = []
        for window in range(3):
            weight.grad = None
            total.arm()
            x = batch(index, window).requires_grad_()
            InPieces.apply(layers(x), weight).square().sum().backward()
            total.finish()
            overlaps.append(total.overlaps)
        return overlaps, weight.grad.clone()

    (overlaps, one), (_, other) = group.run(process)
    assert overlaps == [False, False, False]
    assert torch.equal(one, other)
    weight, layers = nn.Parameter(WEIGHT.clone()), model()
    for index in range(2):
        (layers(batch(index, 2)) @ weight).square().sum().backward()
    assert torch.allclose(one, weight.grad, rtol=1e-4, atol=1e-4)


def test_a_backward_pass_that_changes_its_way_is_an_error(group: Group) -> None:
    def process(index: int) -> str:
        weight = nn.Parameter(WEIGHT.clone())
        total = GradientSum([weight])
        total.arm()
        (batch(index, 0) @ weight).sum().backward()
        total.finish()
        total.arm()
        with pytest.raises(RuntimeError, match="came in several pieces"):
            InPieces.apply(batch(index, 1).requires_grad_(), weight).sum().backward()
        return "told"

    assert group.run(process) == ["told", "told"]


def test_a_window_without_a_gradient_says_nothing_of_the_next(group: Group) -> None:
    def process(index: int) -> Any:
        layers, found = model(), []
        total = GradientSum(list(layers.parameters()))
        for skipped in (False, True, False, True):
            total.arm()
            if not skipped:
                # each weight gets its gradient in two pieces
                for _ in range(2):
                    layers(batch(index, 0)).square().sum().backward()
            total.finish()
            found.append(total.overlaps)
            layers.zero_grad()
        return found

    assert group.run(process) == [[False] * 4] * 2
