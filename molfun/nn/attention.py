"""Attention with an additive bias that needs a gradient, without keeping the attention weights.

``scaled_dot_product_attention`` takes an additive mask on every device, but on CPUs it leaves its
fused kernel as soon as the mask needs a gradient, and holds the attention weights of all rows at
once. Here the fused kernel runs in the forward pass, and the backward pass computes the weights
again, a few rows at a time.

This backward pass is also correct where a mask of -1e9 hides all keys of a row: float32 rounds all
logits of such a row to the same number, so each of n keys has the weight 1/n. Torch's fused
backward pass takes the exponential of the logits less their rounded log-sum, and gives each key the
weight 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from molfun._shapes import Float

CHUNK_BYTES = 2**20
"""Bytes of attention weights computed at a time, few enough for the processor's cache."""
SMALL_BYTES = 2**19
"""Bytes of attention weights up to which they are computed in full and kept for the backward pass:
a fused kernel does not pay for so few."""


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
        hidden. It gets no gradient.

    Examples
    --------
    >>> x = torch.zeros(2, 4, 5, 8)
    >>> attention(x, x, x + 1, bias=torch.zeros(4, 5, 5)).mean()
    tensor(1.)
    """
    if k.shape[2] == 1:  # the softmax of one logit is 1, whatever is added to it
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
    """Return True on a CPU, where torch's backward pass holds the whole matrix of weights."""
    if not torch.is_grad_enabled() or inputs[0].is_cuda:
        return False
    added = [t for t in (bias, mask) if t is not None]
    needs_grad = any(t.requires_grad for t in (*inputs, *added))
    # a bias of another precision, as under autocast, has to be cast where autograd records it
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
    # not on a GPU, where every further operation costs the launch of a kernel
    return 4 * n_rows * heads * queries * k.shape[2] <= SMALL_BYTES and not q.is_cuda


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Compute attention from its definition, one operation at a time."""
    # the query is scaled and not the logits, which are more numbers
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
    """Run torch's own kernel, on so few rows at a time that their masks take little memory."""
    if q.dtype is torch.bfloat16 and not q.is_cuda:
        return _by_products(q, k, v, bias, mask)
    rows = q.shape[0]
    if mask is None or bias is None:
        # one of the two is a view by `expand`; only the sum of both has to exist for every row
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


def _by_products(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attend by batched products of whole heads: a CPU's fused kernel is slow in bfloat16.

    It takes 1.7 times as long at 128 tokens and heads of 32 channels.
    """
    rows, heads, queries, channels = q.shape
    # tokens before heads in memory, as the next product reads them
    found = q.new_empty(rows, queries, heads, channels).transpose(1, 2)
    scale = 1 / math.sqrt(channels)
    step = _rows_at_a_time(q, k)
    with torch.autocast("cpu", enabled=False):  # it would take the softmax to float32
        for start in range(0, rows, step):
            some = slice(start, start + step)
            own_q, own_k, own_v = (t[some].flatten(0, 1).contiguous() for t in (q, k, v))
            weights = _weights(own_q.mul(scale), own_k, bias, None if mask is None else mask[some])
            found[some] = torch.bmm(weights, own_v).view(-1, heads, queries, channels)
    return found


def _weights(
    q: Float[torch.Tensor, "rows_x_heads queries channels"],
    k: Float[torch.Tensor, "rows_x_heads keys channels"],
    bias: Float[torch.Tensor, "heads queries keys"] | None,
    mask: Float[torch.Tensor, "rows keys"] | None,
) -> Float[torch.Tensor, "rows_x_heads queries keys"]:
    """Return the attention weights of scaled queries."""
    logits = torch.bmm(q, k.transpose(1, 2))
    if bias is not None:
        logits.view(-1, *bias.shape).add_(bias)
    if mask is not None:
        logits.view(len(mask), -1, *logits.shape[1:]).add_(mask[:, None, None, :])
    return torch.softmax(logits, dim=-1)


def _backward_by_products(
    inputs: Sequence[torch.Tensor],
    grad: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    into: Sequence[torch.Tensor],
    needs_bias: bool,
) -> torch.Tensor | None:
    """Do what `_backward` does, by batched products of whole heads; sums over rows are float32."""
    q, k, v = inputs
    rows, heads = q.shape[:2]
    scale = 1 / math.sqrt(q.shape[-1])
    grad_bias = None
    if bias is not None and needs_bias:
        grad_bias = torch.zeros_like(bias, dtype=torch.float32)
    step = _rows_at_a_time(q, k)
    for start in range(0, rows, step):
        some = slice(start, start + step)
        queries, keys, values, given = (t[some].flatten(0, 1).contiguous() for t in (q, k, v, grad))
        queries = queries.mul(scale)
        weights = _weights(queries, keys, bias, None if mask is None else mask[some])
        of_v = torch.bmm(weights.transpose(1, 2), given)
        of_logits = torch.ops.aten._softmax_backward_data(
            torch.bmm(given, values.transpose(1, 2)), weights, -1, weights.dtype
        )
        if grad_bias is not None:
            grad_bias += of_logits.view(-1, *grad_bias.shape).sum(0)
        of_q = torch.bmm(of_logits, keys).mul_(scale)
        of_k = torch.bmm(of_logits.transpose(1, 2), queries)
        for place, found in zip(into, (of_q, of_k, of_v), strict=True):
            place[some] = found.view(-1, heads, *found.shape[1:])
    return None if bias is None or grad_bias is None else grad_bias.to(bias.dtype)


def _rows_at_a_time(q: torch.Tensor, k: torch.Tensor) -> int:
    bytes_per_row = q.shape[1] * q.shape[2] * k.shape[2] * q.element_size()
    return max(1, CHUNK_BYTES // bytes_per_row)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
        ctx.save_for_backward(q, k, v, bias, mask)
        return _fused(*_without_graph(q, k, v, bias, mask))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        q, k, v, bias, mask = ctx.saved_tensors
        # (rows, tokens, heads, channels) in memory, as the projections wrote q, k and v: their own
        # backward pass then needs no copy
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
        # Neither the gate nor the attended values are kept: the backward pass computes the gate
        # again, and the gate's gradient needs the gated output alone.
        ctx.save_for_backward(joint, bias, mask, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        joint, bias, mask, output = ctx.saved_tensors
        grads = torch.empty_like(joint)
        gate = torch.sigmoid(joint.chunk(4, dim=-1)[3])
        # output = attended * gate and gate = sigmoid(logits), so the derivative by the logits is
        # grad * attended * gate * (1 - gate) = grad * output * (1 - gate)
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
    """Return the same tensors, not marked as needing gradients.

    They still are marked in the forward pass of an autograd function, and a bias that needs a
    gradient makes torch leave its fused kernel.
    """
    return [None if t is None else t.detach() for t in tensors]


def _heads(joint: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """Return views (rows, heads, tokens, channels) of four projections side by side."""
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
    """Write the gradients of queries, keys and values to `into`; return that of the bias."""
    if inputs[0].dtype is torch.bfloat16:
        return _backward_by_products(inputs, grad, bias, mask, into=into, needs_bias=needs_bias)
    q, k, v = inputs
    n_rows, n_heads, n_queries, channels = q.shape
    grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
    scale = 1 / math.sqrt(channels)
    step = max(1, CHUNK_BYTES // (n_queries * k.shape[2] * q.element_size()))
    # One head at a time: its rows are strided matrices, which a batched product takes without a
    # copy.
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
        # torch's own kernel: one pass in place of several temporaries as large as the weights
        grad_logits = torch.ops.aten._softmax_backward_data(
            grad_weights, weights, -1, weights.dtype
        )
        if grad_bias is not None:
            grad_bias[head] += grad_logits.sum(0)
        into[0][some, head] = torch.bmm(grad_logits, keys).mul_(scale)
        into[1][some, head] = torch.bmm(grad_logits.transpose(1, 2), queries).mul_(scale)
    return grad_bias
