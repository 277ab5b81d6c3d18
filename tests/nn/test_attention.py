"""Attention with bias and mask against its definition in float64, with every gradient."""

from __future__ import annotations

import math

import pytest
import torch

from molfun.nn import attention as module
from molfun.nn.attention import attention

ROWS, HEADS, QUERIES, KEYS, CHANNELS = 5, 3, 7, 6, 8


def defined(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits + mask[:, None, None, :]
    return torch.softmax(logits, -1) @ v


@pytest.mark.parametrize("keys", [KEYS, 1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("small", [0, module.SMALL_BYTES])
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch, keys: int, masked: bool, biased: bool, chunk: int, small: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(module, "SMALL_BYTES", small)
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, HEADS, n, CHANNELS) for n in (QUERIES, keys, keys)]
    given = [torch.randn(s, generator=generator, requires_grad=True) for s in shapes]
    bias = torch.randn(HEADS, QUERIES, keys, generator=generator, requires_grad=True)
    mask = torch.zeros(ROWS, keys)
    mask[1, keys // 2 :] = -1e9
    inputs = [*given, *([bias] if biased else [])]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    added = (exact[3] if biased else None, mask.double() if masked else None)
    expected = defined(*exact[:3], *added)
    weights = torch.randn(expected.shape, generator=generator)
    ours = (bias if biased else None, mask if masked else None)
    with torch.no_grad():
        assert torch.allclose(attention(*given, *ours).double(), expected, atol=1e-5)
    found = attention(*given, *ours)
    if small == 0 and keys > 1 and (masked or biased):
        assert type(found.grad_fn).__name__ == "_AttentionBackward"
    assert torch.allclose(found.double(), expected, atol=1e-5)
    for gradient, true in zip(
        torch.autograd.grad((found * weights).sum(), inputs, allow_unused=True),
        torch.autograd.grad((expected * weights).sum(), exact),
        strict=True,
    ):
        if gradient is None:  # with one key all but the values have none
            assert keys == 1
            assert float(true.abs().max()) < 1e-12
        else:
            assert torch.allclose(gradient.double(), true, atol=1e-4)


def test_a_row_whose_keys_are_all_masked_weighs_them_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As float32 rounds -1e9 + x to one number; the fused backward pass gives each the weight 1."""
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    mask = torch.full((1, 4), -1e9)
    found = attention(q, k, v, mask=mask)
    assert torch.allclose(found, v.mean(2, keepdim=True).expand_as(v), atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), v)
    assert torch.allclose(gradient, torch.ones_like(v), atol=1e-6)
