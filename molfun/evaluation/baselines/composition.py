"""Composition and length of sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines.base import FeatureBaseline, Labelled
from molfun.protein import RESIDUE_LETTERS_WITH_X


class Composition(FeatureBaseline):
    """Linear model of the share of each amino acid and the logarithm of the length."""

    name = "composition"
    title = "composition and length"

    def features(self, parts: Sequence[Labelled]) -> list[np.ndarray] | None:
        """Return shares of the 20 amino acids and of others, and the log of the length."""
        found = []
        for part in parts:
            sequences = part.sequences()
            if sequences is None:
                return None
            found.append(np.array([composition(text) for text in sequences]).reshape(-1, 22))
        return found


def composition(sequence: str) -> list[float]:
    """Return the shares of 20 amino acids and ``X`` for the rest, and log(1 + length).

    Examples
    --------
    >>> composition("AAAR")[:3]
    [0.75, 0.25, 0.0]
    """
    n = max(len(sequence), 1)
    shares = [sequence.count(letter) / n for letter in RESIDUE_LETTERS_WITH_X[:-1]]
    return [*shares, 1 - sum(shares), float(np.log1p(len(sequence)))]
