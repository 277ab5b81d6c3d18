"""Layers in one step against their definition in float64, with every gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from molfun.nn import attention, tiled
from molfun.nn.attention import gated_attention

Function = Callable[..., torch.Tensor]


def given(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def check(ours: Function, defined: Function, inputs: list[torch.Tensor], atol: float) -> None:
    """Outputs, and gradients for every choice of what trains."""
    exact = [t.double().requires_grad_() for t in inputs]
    expected = defined(*exact)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    with torch.no_grad():
        assert torch.allclose(ours(*inputs).double(), expected, atol=atol)
    for trains in itertools.product([False, True], repeat=len(inputs)):
        if not any(trains):
            continue
        tensors = [t.clone().requires_grad_(on) for t, on in zip(inputs, trains, strict=True)]
        found = ours(*tensors)
        assert torch.allclose(found.double(), expected, atol=atol)
        (found * weights).sum().backward()
        for tensor, on, gradient in zip(tensors, trains, wanted, strict=True):
            assert (tensor.grad is not None) == on
            if tensor.grad is not None:
                assert torch.allclose(tensor.grad.double(), gradient, atol=20 * atol)


@pytest.mark.parametrize("tile", [3, 7, 2048])
def test_relu_mlp(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(tiled, "TILE", tile)

    def defined(x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor,
                b2: torch.Tensor) -> torch.Tensor:  # fmt: skip
        return torch.relu(x @ w1.t() + b1) @ w2.t() + b2

    check(tiled.relu_mlp, defined, given((17, 6), (12, 6), (12,), (5, 12), (5,)), 1e-5)


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tile", [5, 2048])
def test_triangle_product(
    monkeypatch: pytest.MonkeyPatch, tile: int, masked: bool, outgoing: bool
) -> None:
    monkeypatch.setattr(tiled, "TILE", tile)
    n, hidden = 6, 3
    keep = (torch.arange(n) < 4).float() if masked else torch.ones(n)
    mask = torch.outer(keep, keep)

    def defined(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        a, b, a_gate, b_gate = (x @ weight.t() + bias).view(n, n, 4, hidden).unbind(2)
        square = mask.double().unsqueeze(-1)
        a, b = a * a_gate.sigmoid() * square, b * b_gate.sigmoid() * square
        terms = "ikh,jkh->ijh" if outgoing else "kih,kjh->ijh"
        return torch.einsum(terms, a, b).reshape(n * n, hidden)

    def ours(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        flat = mask.reshape(-1) if masked else None
        return tiled.triangle_product(x, weight, bias, flat, outgoing=outgoing)

    check(ours, defined, given((n * n, 4), (4 * hidden, 4), (4 * hidden,)), 1e-4)


@pytest.mark.parametrize("small", [0, attention.SMALL_BYTES])
@pytest.mark.parametrize("masked", [False, True])
def test_gated_attention(monkeypatch: pytest.MonkeyPatch, masked: bool, small: int) -> None:
    monkeypatch.setattr(attention, "SMALL_BYTES", small)
    rows, n, heads, width = 3, 5, 2, 8
    mask = torch.zeros(rows, n)
    mask[1, 3:] = -1e9

    def defined(joint: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v, gate = joint.chunk(4, -1)
        q, k, v = (t.view(rows, n, heads, -1).transpose(1, 2) for t in (q, k, v))
        logits = q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + bias
        if masked:
            logits = logits + mask[:, None, None, :].double()
        attended = (torch.softmax(logits, -1) @ v).transpose(1, 2).reshape(rows, n, width)
        return attended * gate.sigmoid()

    def ours(joint: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return gated_attention(joint, bias, mask if masked else None, heads=heads)

    check(ours, defined, given((rows, n, 4 * width), (heads, n, n)), 1e-5)


def test_one_token_attends_to_itself() -> None:
    joint = given((3, 1, 32))[0].requires_grad_()
    _, _, v, gate = joint.chunk(4, -1)
    output = gated_attention(joint, heads=2)
    assert torch.allclose(output, v * gate.sigmoid(), atol=1e-6)
    (gradient,) = torch.autograd.grad(output.sum(), joint)
    (expected,) = torch.autograd.grad((v * gate.sigmoid()).sum(), joint)
    assert torch.allclose(gradient, expected, atol=1e-6)


# --- bfloat16 ------------------------------------------------------------------------------------


def errors_in_half(ours: Function, inputs: list[torch.Tensor], kind: torch.dtype) -> list[float]:
    """Relative errors of output and gradients, against the same in float64."""

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        # the same numbers, which bfloat16 holds exactly
        given = [t.bfloat16().to(dtype).requires_grad_() for t in inputs]
        output = ours(*given)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        grads = torch.autograd.grad(output, given, weights.bfloat16().to(output.dtype))
        return [t.double() for t in (output.detach(), *grads)]

    exact = run(torch.float64)
    return [float((a - b).norm() / b.norm()) for a, b in zip(run(kind), exact, strict=True)]


@pytest.mark.parametrize("tile", [16, 4096])
def test_sums_over_tiles_are_not_rounded(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """256 partial sums in bfloat16 would be wrong by some per cent."""
    monkeypatch.setattr(tiled, "TILE", tile)
    inputs = given((4096, 16), (32, 16), (32,), (16, 32), (16,))
    inputs[0] += 1  # sums that grow
    assert max(errors_in_half(tiled.relu_mlp, inputs, torch.bfloat16)) < 0.01

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return tiled.triangle_product(x, weight, bias, None, outgoing=True)

    square = [t / 4 for t in given((64 * 64, 16), (32, 16), (32,))]
    assert max(errors_in_half(product, square, torch.bfloat16)) < 0.02


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [2**9, 2**20])
def test_attention_in_half(monkeypatch: pytest.MonkeyPatch, masked: bool, chunk: int) -> None:
    monkeypatch.setattr(attention, "SMALL_BYTES", 0)
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk)
    rows, n, heads = 7, 12, 2
    mask = torch.zeros(rows, n)
    mask[1, 3:] = -1e9

    def ours(joint: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        own = mask.to(joint.dtype) if masked else None
        return gated_attention(joint, bias, own, heads=heads)

    inputs = given((rows, n, 4 * 16), (heads, n, n))
    assert max(errors_in_half(ours, inputs, torch.float32)) < 1e-5
    assert max(errors_in_half(ours, inputs, torch.bfloat16)) < 0.02
