"""Confidence of a predicted structure, from the logits of AlphaFold's heads.

All but the interface score is openfold's own; 0.0.1 has no interface score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from molfun._shapes import Float, Int64


def predicted_tm(
    logits: Float[torch.Tensor, "batch length length bins"],
    mask: Float[torch.Tensor, "batch length"],
    settings: Mapping[str, Any],
) -> Float[torch.Tensor, "batch"]:
    """Return the pTM of each sample; openfold's function gives one number for a whole batch."""
    from openfold.utils.loss import compute_tm

    pairs = zip(logits, mask.sum(-1).long().tolist(), strict=True)
    return torch.stack([compute_tm(pair[:n, :n].float(), **settings) for pair, n in pairs])


def predicted_aligned_error(
    logits: Float[torch.Tensor, "*batch length length bins"], settings: Mapping[str, Any]
) -> tuple[Float[torch.Tensor, "*batch length length"], float]:
    """Return the predicted aligned error in angstrom, and the largest value it can take."""
    from openfold.utils.loss import compute_predicted_aligned_error

    found = compute_predicted_aligned_error(logits.float(), **settings)
    return found["predicted_aligned_error"], float(found["max_predicted_aligned_error"])


def interface_tm(
    logits: Float[torch.Tensor, "length length bins"],
    chain_index: Int64[torch.Tensor, "length"],
    *,
    max_bin: int = 31,
    no_bins: int = 64,
    eps: float = 1e-8,
    **_unused: Any,
) -> float:
    """Return the ipTM: the predicted TM-score over pairs of residues of different chains.

    The expected TM contribution of each pair is averaged over the residues of all other chains, for
    the frame of each residue; the best frame counts.

    References
    ----------
    Evans et al. 2021, "Protein complex prediction with AlphaFold-Multimer", section 2.3. The same
    numbers as ``compute_tm(..., asym_id, interface=True)`` of openfold 2.2.0 (tested).
    """
    n = len(chain_index)
    # bins from 0 to max_bin, the last of them open: centres half a step above each boundary
    step = max_bin / (no_bins - 2)
    centres = (torch.arange(no_bins, device=logits.device) + 0.5) * step
    # d0 of Zhang and Skolnick 2004, for all residues of the complex
    d0 = 1.24 * (max(n, 19) - 15) ** (1.0 / 3) - 1.8
    probabilities = torch.softmax(logits.float(), dim=-1)
    expected = (probabilities / (1 + (centres / d0) ** 2)).sum(-1)
    between = (chain_index[:, None] != chain_index[None, :]).to(expected.dtype)
    per_frame = (expected * between).sum(-1) / (eps + between.sum(-1))
    return float(per_frame.max())
