"""Features of packed sequences: join those of several, and take residues out of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from molfun.backbones.base import Features
from molfun.backbones.language.alphabet import Alphabet
from molfun.errors import DataError
from molfun.trunk import padded_cat

_INDICES = ("residues", "begins", "selected")
"""Features that hold indices into the token dimension, which move when batches are joined."""


def join(features: Sequence[Features]) -> Features:
    """Concatenate along the token dimension, and shift the indices into it."""
    first = features[0]
    if len(features) == 1:
        return dict(first)
    counts = [int(f["windows"].sum()) for f in features]
    offsets = np.cumsum([0, *counts[:-1]]).tolist()
    joined = {}
    for key in first:
        parts = [f[key] for f in features]
        if key in _INDICES:
            parts = [part + offset for part, offset in zip(parts, offsets, strict=True)]
        joined[key] = torch.cat(parts)
    return joined


def unpad(padded: torch.Tensor, alphabet: Alphabet) -> Features:
    """Turn tokens (batch, length), padded at either end, into packed features.

    The tokens for beginning and end are optional; the output ``cls`` needs them.

    Raises
    ------
    DataError
        If a row holds no residue.
    """
    # at either end: Hugging Face's tokenizer can pad on the left
    kept = padded != alphabet.padding
    lengths = kept.sum(1)
    packed_tokens = padded[kept]
    special = torch.tensor([*alphabet.before, *alphabet.after]).to(padded)
    is_residue = ~torch.isin(packed_tokens, special)
    sequence = torch.repeat_interleave(torch.arange(len(padded), device=padded.device), lengths)
    n_residues = torch.bincount(sequence[is_residue], minlength=len(padded))
    empty = (n_residues == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"The token batch has no residue in row {empty[0]}.")
    begins = lengths.cumsum(0) - lengths
    features = {
        "tokens": packed_tokens,
        "windows": lengths,
        "residues": is_residue.nonzero().flatten(),
        "shape": torch.stack([n_residues, torch.ones_like(lengths)], dim=1),
    }
    if alphabet.before and bool((packed_tokens[begins] == alphabet.before[0]).all()):
        features["begins"] = begins
    return features


def means(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of each part: (parts, channels)."""
    return torch.stack([part.mean(0) for part in parts])


def pair_of(
    maps: list[list[torch.Tensor]],
    windows: Sequence[int],
    lengths: Sequence[int],
    around: tuple[int, ...],
) -> torch.Tensor:
    """Return the attention between residues: (batch, length, length, layers * heads)."""
    # one window per sequence, each with its special tokens
    before, after = around
    if windows != [before + n + after for n in lengths]:
        raise DataError(
            "Contacts need each sequence in one piece between its tokens for beginning and "
            "end: use long='full' or long='crop' instead of long='window'."
        )
    attention = [
        torch.cat(of_one)[:, before : before + n, before : before + n]
        for n, of_one in zip(lengths, zip(*maps, strict=True), strict=True)
    ]
    return padded_cat([one.permute(1, 2, 0).unsqueeze(0) for one in attention])
