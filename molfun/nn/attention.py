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
        scale = 1 / math.sqrt(q.shape[-1])
        # laid out like the outputs of the projections that they are gradients of
        grads = [t.new_empty(_by_token(t).shape).transpose(1, 2) for t in (q, k, v)]
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[3] else None
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
            grads[2][some] = torch.bmm(weights.transpose(1, 2), given).unflatten(0, rows)
            grad_weights = torch.bmm(given, values.transpose(1, 2))
            grad_logits = torch.ops.aten._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype
            )
            if grad_bias is not None:
                grad_bias += grad_logits.unflatten(0, rows).sum(0)
            grads[0][some] = torch.bmm(grad_logits, keys).mul_(scale).unflatten(0, rows)
            grads[1][some] = torch.bmm(grad_logits.transpose(1, 2), scaled).unflatten(0, rows)
        return (*grads, grad_bias, None)


def _by_token(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2)
