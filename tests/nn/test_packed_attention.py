"""Attention of packed sequences against torch's own in double precision, with every gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional

from molfun.nn import kernels, packed_attention
from molfun.nn.packed_attention import Blocks, attend

HEADS, CHANNELS = 3, 8
LENGTHS = [(5, 1, 40, 40, 7), (1,), (33, 33, 33), (130,)]


def vectors(lengths: Sequence[int], *, size: float = 1.0) -> torch.Tensor:
    """(tokens, 3, heads, channels): queries, keys and values side by side."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(sum(lengths), 3, HEADS, CHANNELS, generator=generator, dtype=torch.double)
    found[:, 0] *= size
    return found


def plain(
    x: torch.Tensor, lengths: Sequence[int], bias: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """Attention by torch, one sequence after the other."""
    parts = []
    for own in x.split(list(lengths)):
        n = len(own)
        q, k, v = own.transpose(0, 2).unbind(1)
        mask = None if bias is None else bias[:, :n, :n].to(x)
        one = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        parts.append(one.transpose(0, 1).flatten(1))
    return torch.cat(parts)


def ours(
    x: torch.Tensor,
    lengths: Sequence[int],
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    kind: torch.dtype = torch.float32,
) -> torch.Tensor:
    q, k, v = x.float().unbind(1)
    places = Blocks(lengths, HEADS)
    return attend(q, k, v.to(kind), places, places, bias=bias, scale=scale)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("size", [1.0, 60.0], ids=["plain", "shifted"])
@pytest.mark.parametrize("scale", [None, 1.0], ids=["usual", "unscaled"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_outputs_and_gradients(
    kind: torch.dtype, lengths: Sequence[int], biased: bool, scale: float | None, size: float
) -> None:
    """bfloat16 rounds to 8 bits; large scores are known to fewer digits, in float32 as well."""
    bias = torch.linspace(-2, 2, HEADS * 130 * 130).view(HEADS, 130, 130) if biased else None
    x = vectors(lengths, size=size).requires_grad_()
    expected = plain(x, lengths, bias, scale)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.double).view_as(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), x)[0]
    y = x.detach().float().requires_grad_()
    found = ours(y, lengths, bias, scale, kind)
    grad = torch.autograd.grad((found * weights.float()).sum(), y)[0]
    assert found.dtype is grad.dtype is torch.float32
    allowed = 3e-5 if kind is torch.float32 else 1e-2
    assert error(found, expected.detach()) < allowed
    # by the size of all: those of queries and keys vanish where one key has all the weight, and in
    # bfloat16 they are what is left of two large numbers
    allowed *= 15 if kind is torch.bfloat16 and size > 1 else 4
    for i in range(3):
        assert (grad[:, i].double() - wanted[:, i]).norm() < allowed * wanted.norm()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of sequences, of heads, and of queries of one head."""
    lengths, grads = (40, 7), []
    for size in (2**21, 4 * 40 * 40 * 2, 4 * 40 * 11):
        monkeypatch.setattr(packed_attention, "CHUNK_BYTES", size)
        x = vectors(lengths).float().requires_grad_()
        found = ours(x, lengths)
        found.pow(2).sum().backward()
        grads.append((found.detach(), x.grad))
    for found, grad in grads[1:]:
        assert torch.allclose(found, grads[0][0], atol=1e-6)
        assert torch.allclose(grad, grads[0][1], atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_sequence_depends_on_its_batch(kind: torch.dtype) -> None:
    """Beside one whose scores need a shift, and one that is not a number."""
    lengths = (9, 9, 20, 9)
    x = vectors(lengths).float()
    x[9:18, 0] *= 1e4
    x[18:38] = torch.nan
    found = ours(x, lengths, kind=kind)
    for first, last in ((0, 9), (9, 18), (38, 47)):
        alone = ours(x[first:last], (last - first,), kind=kind)
        assert alone.isfinite().all()
        assert torch.equal(found[first:last], alone)
    assert found[18:38].isnan().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_bit_depends_on_the_batch(kind: torch.dtype) -> None:
    """Of lengths and widths with small products, and with remainders of the registers."""
    rng = np.random.default_rng(0)
    for heads, channels in ((20, 16), (20, 24), (8, 16), (16, 80)):
        for _ in range(12):
            some = rng.choice([1, 2, 5, 14, 17, 33, 47, 64, 90, 154, 300], rng.integers(1, 4))
            lengths = np.repeat(some, rng.choice([1, 2, 5], len(some))).tolist()
            x = torch.randn(sum(lengths), 3, heads, channels)
            place = int(rng.integers(len(lengths)))
            first, n = sum(lengths[:place]), lengths[place]
            parts = []
            for own, sizes in ((x, lengths), (x[first : first + n], [n])):
                y = own.clone().requires_grad_()
                q, k, v = y.unbind(1)
                places = Blocks(sizes, heads)
                out = attend(q, k, v.to(kind), places, places)
                parts.append((out, torch.autograd.grad(out.pow(2).sum(), y)[0]))
            for whole, alone in zip(*parts, strict=True):
                assert torch.equal(whole[first : first + n], alone), (heads, channels, lengths, n)


def test_scores_far_below_zero_need_a_shift_as_well() -> None:
    """All keys of a query may have powers that float32 holds as 0."""
    x = vectors((6,))
    x[:, 1] = -x[:, 0].mean(0) * 400  # every key points away from the queries
    x[:, 0] = x[:, 0].mean(0)
    assert error(ours(x, (6,)), plain(x, (6,), None, None)) < 1e-5


def test_some_tokens_ask() -> None:
    """Queries of some tokens alone; a sequence may have none."""
    lengths, counts = (5, 4, 6), (2, 0, 3)
    chosen = torch.tensor([1, 4, 9, 12, 14])
    x = vectors(lengths).float().requires_grad_()
    whole = ours(x, lengths)[chosen]
    wanted = torch.autograd.grad(whole.pow(2).sum(), x)[0]
    q, k, v = x.unbind(1)
    found = attend(q[chosen], k, v, Blocks(counts, HEADS), Blocks(lengths, HEADS))
    assert torch.allclose(found, whole, atol=1e-6)
    grad = torch.autograd.grad(found.pow(2).sum(), x)[0]
    assert torch.allclose(grad, wanted, atol=1e-5)
    assert not grad[5:9].any()


def test_it_is_taken_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 by oneDNN's products; bfloat16 on CPUs with units for it; no dropout, no bias that
    trains, nothing else."""
    x = torch.zeros(2, 8, 32)

    def takes(
        x: torch.Tensor, *, dropout: float = 0.0, bias: torch.Tensor | None = None, width: int = 256
    ) -> bool:
        return packed_attention.takes(x, width, dropout=dropout, bias=bias)

    for found in (True, False):
        monkeypatch.setattr(kernels, "multiplies_batches", lambda found=found: found)
        assert takes(x) is found
    monkeypatch.setattr(kernels, "multiplies_batches", lambda: True)
    assert not takes(x, dropout=0.1)
    assert takes(x, bias=torch.zeros(1))
    assert not takes(x, bias=torch.zeros(1, requires_grad=True))
    assert not takes(x.double())
    assert not takes(x, width=64)
    for units in ("amx", None):
        monkeypatch.setattr(packed_attention.bf16, "units", lambda units=units: units)
        with torch.autocast("cpu", torch.bfloat16):
            assert takes(x) is (units is not None)
        with torch.autocast("cpu", torch.float16):
            assert not takes(x)


def test_batched_products_are_full_float32() -> None:
    """Where they are taken for float32, on AMD processors; the setting is put back."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with kernels.batches():
        assert matmul.fp32_precision == "bf16"
    assert matmul.fp32_precision == before
    if not kernels.multiplies_batches():
        pytest.skip("float32 products are those of MKL here")
    a, b = torch.randn(2, 3, 50, 30).unbind(0)
    with kernels.batches():
        found = torch.bmm(a, b.transpose(1, 2))
    assert error(found, a.double() @ b.double().transpose(1, 2)) < 1e-6
