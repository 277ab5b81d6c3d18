"""Attention with an additive bias that needs a gradient, without its weights in memory.

``scaled_dot_product_attention`` takes an additive mask on every device, but on CPUs it leaves its
fused kernel as soon as the mask needs a gradient, and forms the weights of all rows at once. Here
the fused kernel runs forward, and the backward pass forms the weights again, a few rows at a time.

That is also right where a mask of -1e9 hides all keys of a row: float32 then rounds the logits to
one number, and each key counts the same. The fused backward pass, which takes the exponential of
logits less their rounded sum, gives each key the weight 1 there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK_BYTES = 2**20
"""Attention weights formed at a time, small enough for the processor's cache."""
SMALL_BYTES = 2**19
"""Attention weights that are formed as they are and kept: a fused kernel does not pay for them."""


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
    if _is_small(q, k):
        return _plain(q, k, v, bias, mask)
    if (bias is not None or mask is not None) and _takes_own_backward((q, k, v), bias, mask):
        result: torch.Tensor = _Attention.apply(q, k, v, bias, mask)
        return result
    return _fused(q, k, v, bias, mask)


def _takes_own_backward(
    inputs: Sequence[torch.Tensor], bias: torch.Tensor | None, mask: torch.Tensor | None
) -> bool:
    """Return True on a CPU, where torch's backward pass forms the whole matrix of weights."""
    if not torch.is_grad_enabled() or inputs[0].is_cuda:
        return False
    added = [t for t in (bias, mask) if t is not None]
    needs_grad = any(t.requires_grad for t in (*inputs, *added))
    return needs_grad and all(t.dtype == inputs[0].dtype for t in added)


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
    if _takes_own_backward([joint], bias, mask) and not _is_small(q, k):
        result: torch.Tensor = _GatedAttention.apply(joint, bias, mask, heads)
        return result
    output = attention(q, k, v, bias, mask).transpose(1, 2).reshape(gate.shape)
    return output * torch.sigmoid(gate)


def _is_small(q: torch.Tensor, k: torch.Tensor) -> bool:
    n_rows, heads, queries, _ = q.shape
    return 4 * n_rows * heads * queries * k.shape[2] <= SMALL_BYTES and not q.is_cuda


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """The definition, step by step."""
    logits = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits + mask[:, None, None, :]
    return torch.softmax(logits, dim=-1) @ v


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
        return _fused(*_without_graph(q, k, v, bias, mask))

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
        ctx.heads = heads
        plain, *added = _without_graph(joint, bias, mask)
        gate = plain.chunk(4, dim=-1)[3]
        output = _fused(*_heads(plain, heads)[:3], *added).transpose(1, 2).reshape(gate.shape)
        output = output.mul_(torch.sigmoid(gate))
        ctx.save_for_backward(joint, bias, mask, output)
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


def _without_graph(*tensors: Any) -> list[Any]:
    """The same tensors, not marked as needing gradients.

    Inside of a function's forward pass they still are, and a bias that needs a gradient makes
    torch leave its fused kernel.
    """
    return [None if t is None else t.detach() for t in tensors]


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
    n_rows, n_heads, n_queries, channels = q.shape
    grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
    scale = 1 / math.sqrt(channels)
    step = max(1, CHUNK_BYTES // (n_queries * k.shape[2] * q.element_size()))
    # one head at a time: its rows are matrices with a stride, which a batched product takes as
    # they are
    for head, start in itertools.product(range(n_heads), range(0, n_rows, step)):
        some = slice(start, start + step)
        queries, keys, values, given = (t[some, head] for t in (q, k, v, grad))
        if bias is None:
            logits = torch.bmm(queries, keys.transpose(1, 2)).mul_(scale)
        else:
            square = bias[head].expand(len(queries), -1, -1)
            logits = torch.baddbmm(square, queries, keys.transpose(1, 2), alpha=scale)
        if mask is not None:
            logits += mask[some, None, :]
        weights = torch.softmax(logits, dim=-1)
        into[2][some, head] = torch.bmm(weights.transpose(1, 2), given)
        grad_weights = torch.bmm(given, values.transpose(1, 2))
        grad_logits = torch.ops.aten._softmax_backward_data(
            grad_weights, weights, -1, weights.dtype
        )
        if grad_bias is not None:
            grad_bias[head] += grad_logits.sum(0)
        into[0][some, head] = torch.bmm(grad_logits, keys).mul_(scale)
        into[1][some, head] = torch.bmm(grad_logits.transpose(1, 2), queries).mul_(scale)
    return grad_bias
