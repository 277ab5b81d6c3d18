"""NVIDIA's triangle kernels (``cuequivariance_torch``), where they are installed and asked for.

Both functions take the arguments of Molfun's own ones and give the same results to the precision
of TF32. They are faster from a few hundred residues on; below that launching them costs more than
they save (openfold-3 PR #379 measured the break-even of the multiplicative update between 128 and
256 residues on an A100).

References
----------
https://docs.nvidia.com/cuda/cuequivariance, ``triangle_attention`` and
``triangle_multiplicative_update``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping

import torch

from molfun._shapes import Float

SHORTEST = 256
"""Residues from which the kernels are used."""
HIDDEN = -1e4
"""Additive mask values from here down hide a key. The kernel takes a boolean mask; openfold's masks
are ``inf * (mask - 1)`` with an ``inf`` of 1e9, 1e5 or, in low precision, 1e4."""


@functools.cache
def problem() -> str:
    """Return the reason why the kernels cannot be used here; empty if they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    try:
        module = importlib.import_module("cuequivariance_torch")
    except ImportError:
        return "cuequivariance_torch is not installed"
    try:
        known = inspect.signature(module.triangle_multiplicative_update).parameters
        inspect.signature(module.triangle_attention)
    except (AttributeError, ValueError):
        return "this cuequivariance_torch has no triangle kernels"
    # AlphaFold 2's projections have biases, those of AlphaFold 3 have none
    return "" if "p_in_bias" in known else "this cuequivariance_torch knows no biases"


def gated_attention(
    joint: Float[torch.Tensor, "rows tokens 4*width"],
    bias: Float[torch.Tensor, "heads tokens tokens"],
    mask: Float[torch.Tensor, "rows tokens"] | None = None,
    *,
    heads: int,
) -> Float[torch.Tensor, "rows tokens width"]:
    """Compute `molfun.nn.attention.gated_attention`; the bias is required."""
    *qkv, gate = joint.chunk(4, dim=-1)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2).unsqueeze(0) for t in qkv)
    seen = None if mask is None else (mask > HIDDEN)[None, :, None, None, :]
    kernel = importlib.import_module("cuequivariance_torch").triangle_attention
    output: torch.Tensor = kernel(q, k, v, bias[None, None], mask=seen)
    return output[0].transpose(1, 2).reshape(gate.shape) * torch.sigmoid(gate)


def triangle_update(
    z: Float[torch.Tensor, "batch length length channels"],
    mask: Float[torch.Tensor, "batch length length"] | None,
    weights: Mapping[str, torch.Tensor],
    *,
    outgoing: bool,
    eps: float,
) -> Float[torch.Tensor, "batch length length channels"]:
    """Compute the whole triangle multiplication, normalisations and output gate included.

    Parameters
    ----------
    z
        Pair representation.
    mask
        1 for pairs that count.
    weights
        ``norm_in_weight``, ``norm_in_bias``, ``p_in_weight`` and ``p_in_bias`` (projections a and b
        in a row), ``g_in_*`` (their gates), ``norm_out_*``, ``p_out_*``, ``g_out_*``.
    outgoing
        Whether to use outgoing edges (algorithm 11 of the AlphaFold 2 supplement) or incoming ones
        (algorithm 12).
    eps
        Epsilon of the layer norms.
    """
    kernel = importlib.import_module("cuequivariance_torch").triangle_multiplicative_update
    direction = "outgoing" if outgoing else "incoming"
    result: torch.Tensor = kernel(z, direction=direction, mask=mask, eps=eps, **weights)
    return result
