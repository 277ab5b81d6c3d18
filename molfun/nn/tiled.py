"""Layers of AlphaFold's pair stack, each as one autograd function that works on tiles of rows.

The activations between two matrix products are several times as large as the pair representation.
Computed for all rows at once they go to memory and back, in the forward and in the backward pass;
those of one tile stay in the processor's cache. The backward pass computes again what is cheap (a
gate), and keeps what is not (the input of a product).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from molfun._shapes import Float
from molfun.nn.kernels import channel_first_linear, linear

TILE = 2048
"""Rows per tile: with 128 channels in float32, one megabyte."""


def relu_mlp(
    x: Float[torch.Tensor, "rows inner"],
    weight_1: Float[torch.Tensor, "hidden inner"],
    bias_1: Float[torch.Tensor, "hidden"],
    weight_2: Float[torch.Tensor, "outer hidden"],
    bias_2: Float[torch.Tensor, "outer"],
) -> Float[torch.Tensor, "rows outer"]:
    """Compute ``relu(x @ weight_1.T + bias_1) @ weight_2.T + bias_2``.

    The pair transition after its layer norm (Jumper et al. 2021, supplement, algorithm 15).

    Examples
    --------
    >>> w, b = torch.ones(3, 3), torch.zeros(3)
    >>> relu_mlp(torch.ones(2, 3), w, b, w, b)[0]
    tensor([9., 9., 9.])
    """
    result: torch.Tensor = _ReluMLP.apply(x, weight_1, bias_1, weight_2, bias_2)
    return result


def triangle_product(
    x: Float[torch.Tensor, "pairs inner"],
    weight: Float[torch.Tensor, "4*hidden inner"],
    bias: Float[torch.Tensor, "4*hidden"],
    mask: Float[torch.Tensor, "pairs"] | None,
    *,
    outgoing: bool,
) -> Float[torch.Tensor, "pairs hidden"]:
    """Multiply the gated projections a and b of all pairs, summed over the third residue k.

    Parameters
    ----------
    x
        Normalised pair representation, the length * length pairs in one dimension.
    weight, bias
        Weights and biases of four projections: values of a, values of b, gates of a, gates of b.
    mask
        1 for pairs that count; None counts all.
    outgoing
        Whether to sum ``a[i, k] b[j, k]`` (outgoing edges) or ``a[k, i] b[k, j]`` (incoming).

    References
    ----------
    Jumper et al. 2021, supplement, algorithms 11 and 12.

    Examples
    --------
    >>> x, weight, bias = torch.ones(9, 2), torch.ones(4, 2), torch.full((4,), -2.0)
    >>> triangle_product(x, weight, bias, None, outgoing=True).shape
    torch.Size([9, 1])
    """
    result: torch.Tensor = _TriangleProduct.apply(x, weight, bias, mask, outgoing)
    return result


def _tiles(n: int) -> Iterator[slice]:
    return (slice(i, i + TILE) for i in range(0, n, TILE))


class _ReluMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight_1: Any, bias_1: Any, weight_2: Any, bias_2: Any) -> Any:
        # frozen weights, as under LoRA on other layers, need no input in the backward pass
        ctx.needs_weights = any(ctx.needs_input_grad[1:])
        result = x.new_empty(len(x), len(weight_2))
        hidden = []
        for tile in _tiles(len(x)):
            hidden.append(linear(x[tile], weight_1, bias_1).relu_())
            result[tile] = linear(hidden[-1], weight_2, bias_2)
        kept = x if ctx.needs_weights else None
        ctx.save_for_backward(kept, weight_1, weight_2, *hidden)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight_1, weight_2, *hidden = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad.new_empty(len(grad), weight_1.shape[1]) if ctx.needs_input_grad[0] else None
        sums: list[Any] = [None] * 4
        for tile, kept in zip(_tiles(len(grad)), hidden, strict=True):
            # derivative of the ReLU: the gradient where the kept output is above 0
            inner = torch.ops.aten.threshold_backward(linear(grad[tile], weight_2.t()), kept, 0)
            if grad_x is not None:
                grad_x[tile] = linear(inner, weight_1.t())
            if ctx.needs_weights:
                parts = (
                    linear(inner.t(), x[tile].t()),
                    inner.sum(0),
                    linear(grad[tile].t(), kept.t()),
                    grad[tile].sum(0),
                )
                sums = [_sums(b) if a is None else a for a, b in zip(sums, parts, strict=True)]
                sums = [a.add_(b) for a, b in zip(sums, parts, strict=True)]
        wanted = zip(sums, ctx.needs_input_grad[1:], strict=True)
        return (grad_x, *(total if needed else None for total, needed in wanted))


class _TriangleProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, mask: Any, outgoing: bool) -> Any:
        n = round(len(x) ** 0.5)
        # channels first: one (length, length) matrix per channel for the batched product below
        ab = x.new_empty(len(weight) // 2, len(x))
        for tile in _tiles(len(x)):
            ab[:, tile] = _gated(x[tile], weight, bias)
            if mask is not None:
                ab[:, tile] *= mask[tile]
        ctx.save_for_backward(x, weight, bias, mask, ab)
        ctx.outgoing = outgoing
        a, b = ab.view(2, -1, n, n)
        product = torch.bmm(a, b.transpose(1, 2)) if outgoing else torch.bmm(a.transpose(1, 2), b)
        return product.view(-1, len(x)).t().contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, weight, bias, mask, ab = ctx.saved_tensors
        n = round(len(x) ** 0.5)
        half = len(weight) // 2
        a, b = ab.view(2, -1, n, n)
        # contiguous: on strided input the batched product would go one matrix at a time
        grad = grad.t().contiguous().view(-1, n, n)
        grad_ab = torch.empty_like(ab)
        grad_a, grad_b = grad_ab.view(2, -1, n, n)
        if ctx.outgoing:
            torch.bmm(grad, b, out=grad_a)
            torch.bmm(grad.transpose(1, 2), a, out=grad_b)
        else:
            torch.bmm(b, grad.transpose(1, 2), out=grad_a)
            torch.bmm(a, grad, out=grad_b)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x) if needs_x else None
        grad_weight = _sums(weight) if needs_weight else None
        grad_bias = _sums(bias) if needs_bias else None
        for tile in _tiles(len(x)):
            # ab = v s with values v and gates s = sigmoid(logits): the derivative by v is grad s,
            # by the logits grad v s (1 - s) = grad ab (1 - s)
            gate = channel_first_linear(x[tile], weight[half:], bias[half:]).sigmoid_()
            inner = x.new_empty(2 * half, gate.shape[1])
            of_values, of_gates = inner[:half], inner[half:]
            torch.mul(grad_ab[:, tile], gate, out=of_values)
            torch.mul(grad_ab[:, tile], ab[:, tile], out=of_gates)
            of_gates.addcmul_(of_gates, gate, value=-1)
            if mask is not None:
                of_values *= mask[tile]
            if grad_x is not None:
                grad_x[tile] = linear(inner.t(), weight.t())
            if grad_weight is not None:
                grad_weight += linear(inner, x[tile].t())
            if grad_bias is not None:
                grad_bias += inner.sum(1)
        return grad_x, grad_weight, grad_bias, None, None


def _sums(like: torch.Tensor) -> torch.Tensor:
    """Return zeros for sums over tiles, which are float32 for tensors in bfloat16."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _gated(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return values times the sigmoid of their gates, channels first: (channels, pairs)."""
    return torch.nn.functional.glu(channel_first_linear(x, weight, bias), dim=0)
