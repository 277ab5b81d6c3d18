"""Rank the structures that the models of an ensemble predict for one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from molfun._shapes import Float32
from molfun.protein import CA
from molfun.structures.folded import FoldedStructure
from molfun.structures.scoring.superposition import superposed
from molfun.text import counted

RANKED = "the most confident of {models} of an ensemble; spread is how far the others are from it"
"""Note on the structure of an ensemble."""
SAME = "the {models} of the ensemble have the same backbone, so there is one structure"
"""Note on it if its models differ in their heads alone."""


def ranked(models: Mapping[int, FoldedStructure], *, of: int) -> FoldedStructure:
    """Return the most confident structure, with its spread and all models in order of confidence.

    As is usual for AlphaFold's five models: coordinates of different models are not averaged, which
    would give no protein.

    Parameters
    ----------
    models
        Structures of one sample by the number of the member; of members with one backbone, one.
    of
        Members of the ensemble.
    """
    words = counted(of, "model")
    if len(models) == 1:
        (only,) = models.values()
        return replace(only, notes=(*only.notes, SAME.format(models=words)))
    numbered = [replace(one, member=number) for number, one in models.items()]
    best, *others = sorted(numbered, key=lambda one: -one.confidence)
    note = RANKED.format(models=words)
    return replace(
        best,
        spread=spread_of(best, others),
        models=(best, *others),
        notes=(*best.notes, note),
    )


def spread_of(
    best: FoldedStructure, others: Sequence[FoldedStructure]
) -> Float32[np.ndarray, "length"]:
    """Return the root mean square distance of each CA atom from those of other models, in angstrom.

    Each of `others` is superposed on `best` by all CA atoms (Kabsch 1976). A residue without atoms
    has NaN, and so has every residue where fewer than 3 have any.
    """
    known = best.protein.atom_mask[:, CA] > 0
    spread = np.full(len(known), np.nan, np.float32)
    if known.sum() < 3:
        return spread
    fixed = best.protein.atom_positions[known, CA].astype(np.float64)
    squares = [
        ((superposed(one.protein.atom_positions[known, CA].astype(np.float64), fixed) - fixed) ** 2)
        for one in others
    ]
    spread[known] = np.sqrt(np.mean([square.sum(-1) for square in squares], axis=0))
    return spread
