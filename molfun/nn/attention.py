"""Attention with an additive bias that needs a gradient, without its weights in memory.

``scaled_dot_product_attention`` takes an additive mask on every device, but on CPUs it leaves its
fused kernel as soon as the mask needs a gradient, and forms the weights of all rows at once. Here
the fused kernel runs forward, and the backward pass forms the weights again, a few rows at a time.

That is also right where a mask of -1e9 hides all keys of a row: float32 then rounds the logits to
one number, and each key counts the same. The fused backward pass, which takes the exponential of
logits less their rounded sum, gives each key the weight 1 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK_BYTES = 2**20
"""Attention weights formed at a time, small enough for the processor's cache."""


def attention(
    q: Float[torch.Tensor, "rows heads queries channels"],
    k: Float[torch.Tensor, "rows heads keys channels"],
    v: Float[torch.Tensor, "rows heads keys channels"],
    bias: Float[torch.Tensor, "heads queries keys"] | None = None,
    mask: Float[torch.Tensor, "rows keys"] | None = None,
) -> Float[torch.Tensor, "rows heads queries channels"]:
    """``softmax(q k / sqrt(channels) + bias + mask) v`` for each row and head.

    Parameters
    ----------
    q, k, v
        Queries, keys and values.
    bias
        Added to the logits of every row.
    mask
        Added to the logits of every head and query: 0, or a large negative number where a key is
        not to be looked at. Gets no gradient.

    Examples
    --------
    >>> x = torch.zeros(2, 4, 5, 8)
    >>> attention(x, x, x + 1, bias=torch.zeros(4, 5, 5)).mean()
    tensor(1.)
    """
    if k.shape[2] == 1:  # it has all the weight, whatever is added
        return v.expand(-1, -1, q.shape[2], -1)
    added = [t for t in (bias, mask) if t is not None]
    if added and torch.is_grad_enabled() and not q.is_cuda:
        needs_grad = any(t.requires_grad for t in (q, k, v, *added))
        if needs_grad and all(t.dtype == q.dtype for t in added):
            result: torch.Tensor = _Attention.apply(q, k, v, bias, mask)
            return result
    return _fused(q, k, v, bias, mask)


def gated_attention(
    joint: Float[torch.Tensor, "rows tokens 4*width"],
    bias: Float[torch.Tensor, "heads tokens tokens"] | None = None,
    mask: Float[torch.Tensor, "rows tokens"] | None = None,
    *,
    heads: int,
) -> Float[torch.Tensor, "rows tokens width"]:
    """Self-attention of each row, times the sigmoid of a gate.

    Parameters
    ----------
    joint
        Queries, keys, values and gates side by side, the heads side by side in each of them.
    bias, mask
        As for `attention`.
    heads
        Number of heads.

    Examples
    --------
    >>> gated_attention(torch.zeros(2, 5, 4 * 8), heads=2).shape
    torch.Size([2, 5, 8])
    """
    q, k, v = _heads(joint, heads)[:3]
    gate = joint.chunk(4, dim=-1)[3]
    added = [t for t in (bias, mask) if t is not None]
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in (joint, *added))
    alike = all(t.dtype == joint.dtype for t in added)
    if tracked and alike and joint.shape[1] > 1 and not joint.is_cuda:
        result: torch.Tensor = _GatedAttention.apply(joint, bias, mask, heads)
        return result
    output = attention(q, k, v, bias, mask).transpose(1, 2).reshape(gate.shape)
    return output * torch.sigmoid(gate)


def _fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Torch's own kernel, over as many rows at a time as their masks take little memory."""
    rows = q.shape[0]
    if mask is None or bias is None:
        added = None
        if bias is not None:
            added = bias.to(q.dtype).expand(rows, -1, -1, -1)
        elif mask is not None:
            added = mask.to(q.dtype)[:, None, None, :].expand(-1, q.shape[1], q.shape[2], -1)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
    step = _rows_at_a_time(q, k)
    parts = [
        functional.scaled_dot_product_attention(
            q[i : i + step],
            k[i : i + step],
            v[i : i + step],
            attn_mask=(bias + mask[i : i + step, None, None, :]).to(q.dtype),
        )
        for i in range(0, rows, step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows_at_a_time(q: torch.Tensor, k: torch.Tensor) -> int:
    a_row = q.shape[1] * q.shape[2] * k.shape[2] * q.element_size()
    return max(1, CHUNK_BYTES // a_row)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
        ctx.save_for_backward(q, k, v, bias, mask)
        return _fused(q, k, v, bias, mask)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        q, k, v, bias, mask = ctx.saved_tensors
        # laid out like the outputs of the projections that they are gradients of
        grads = [t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (q, k, v)]
        grad_bias = _backward(
            (q, k, v), grad, bias, mask, into=grads, needs_bias=ctx.needs_input_grad[3]
        )
        return (*grads, grad_bias, None)


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joint: Any, bias: Any, mask: Any, heads: int) -> Any:
        q, k, v = _heads(joint, heads)[:3]
        gate = joint.chunk(4, dim=-1)[3]
        output = _fused(q, k, v, bias, mask).transpose(1, 2).reshape(gate.shape)
        output = output.mul_(torch.sigmoid(gate))
        ctx.save_for_backward(joint, bias, mask, output)
        ctx.heads = heads
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        joint, bias, mask, output = ctx.saved_tensors
        grads = torch.empty_like(joint)
        gate = torch.sigmoid(joint.chunk(4, dim=-1)[3])
        # output = attended * gate, so the gate's logits get grad * output * (1 - gate)
        of_gate = torch.mul(grad, output, out=grads.chunk(4, dim=-1)[3])
        of_gate.addcmul_(of_gate, gate, value=-1)
        of_output = gate.mul_(grad).unflatten(-1, (ctx.heads, -1)).transpose(1, 2)
        grad_bias = _backward(
            _heads(joint, ctx.heads)[:3],
            of_output,
            bias,
            mask,
            into=_heads(grads, ctx.heads)[:3],
            needs_bias=ctx.needs_input_grad[1],
        )
        return grads, grad_bias, None, None


def _heads(joint: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """Views (rows, heads, tokens, channels) of four projections side by side."""
    return [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in joint.chunk(4, dim=-1)]


def _backward(
    inputs: Sequence[torch.Tensor],
    grad: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    into: Sequence[torch.Tensor],
    needs_bias: bool,
) -> torch.Tensor | None:
    """Write the gradients of queries, keys and values; give that of the bias."""
    q, k, v = inputs
    grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
    scale = 1 / math.sqrt(q.shape[-1])
    step = _rows_at_a_time(q, k)
    for i in range(0, q.shape[0], step):
        some = slice(i, i + step)
        rows = q[some].shape[:2]
        scaled, keys, values, given = (t[some].flatten(0, 1) for t in (q, k, v, grad))
        scaled = scaled * scale
        weights = torch.bmm(scaled, keys.transpose(1, 2)).unflatten(0, rows)
        if bias is not None:
            weights += bias
        if mask is not None:
            weights += mask[some, None, None, :]
        weights = torch.softmax(weights, dim=-1).flatten(0, 1)
        into[2][some] = torch.bmm(weights.transpose(1, 2), given).unflatten(0, rows)
        grad_weights = torch.bmm(given, values.transpose(1, 2))
        grad_logits = torch.ops.aten._softmax_backward_data(
            grad_weights, weights, -1, weights.dtype
        )
        if grad_bias is not None:
            grad_bias += grad_logits.unflatten(0, rows).sum(0)
        into[0][some] = torch.bmm(grad_logits, keys).mul_(scale).unflatten(0, rows)
        into[1][some] = torch.bmm(grad_logits.transpose(1, 2), scaled).unflatten(0, rows)
    return grad_bias
