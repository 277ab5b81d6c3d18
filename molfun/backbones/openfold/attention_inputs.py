"""Convert the arguments of openfold's attention to those of `molfun.nn.attention`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


def covers(x: torch.Tensor, options: dict[str, Any]) -> bool:
    """Return whether the fast pass covers the options and the precision of the input."""
    # openfold's memory-efficient kernel computes the same numbers, so it may be replaced; options
    # such as DeepSpeed's or low-memory attention are left to openfold
    asked = {name for name, value in options.items() if name.startswith("use_") and value}
    return asked <= {"use_memory_efficient_kernel"} and x.ndim >= 3 and not _is_half(x)


def _is_half(x: torch.Tensor) -> bool:
    """Return whether the input is, or autocast makes it, float16.

    A mask of -1e9 is infinite there, and a row whose keys are all masked becomes NaN.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    return x.dtype == torch.float16 or (
        autocast and torch.get_autocast_dtype(device) == torch.float16
    )


def added_to_logits(
    mask: torch.Tensor | None, pair: torch.Tensor | None, lead: Sequence[int]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the biases of pairs (samples, heads, queries, keys) and of keys (samples, rows, keys).

    `lead` are the dimensions before the tokens: the batch, then the rows. A mask that hides
    nothing becomes None, so that attention runs without one.
    """
    *batch, rows = lead
    count = math.prod(batch)
    if pair is not None:
        pair = pair.expand(*batch, 1, *pair.shape[-3:])
        pair = pair.reshape(count, *pair.shape[-3:]).contiguous()
    if mask is None or _is_zero(mask):
        return pair, None
    return pair, mask.expand(*lead, 1, 1, -1).reshape(count, rows, -1)


def split_biases(
    biases: Sequence[torch.Tensor],
) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
    """Return the bias of keys (..., rows, 1, 1, keys) and of pairs (..., 1, heads, queries, keys).

    None if there are others.
    """
    mask = pair = None
    for bias in biases:
        if bias.ndim >= 4 and bias.shape[-3] == 1 and bias.shape[-2] == 1 and mask is None:
            mask = bias
        elif bias.ndim >= 4 and bias.shape[-4] == 1 and pair is None:
            pair = bias
        else:
            return None
    return mask, pair


def _is_zero(mask: torch.Tensor) -> bool:
    # not asked on a GPU, where the answer would stall the queue of kernels
    return not mask.is_cuda and not bool(mask.any())
