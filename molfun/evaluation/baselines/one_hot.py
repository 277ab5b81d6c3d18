"""One column per position and amino acid, for sequences of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from molfun.evaluation.baselines.base import FeatureBaseline, Labelled


class OneHot(FeatureBaseline):
    """Linear model of aligned sequences: the standard baseline of deep mutational scans."""

    name = "one_hot"
    title = "one-hot"

    def features(self, parts: Sequence[Labelled]) -> list[Any] | None:
        """Return 0 or 1 per position and amino acid, of positions that vary in the training set."""
        letters = aligned([part.sequences() for part in parts])
        if letters is None:
            return None
        varied = (letters[0] != letters[0][:1]).any(0)
        if not varied.any():
            return None
        known = [np.unique(column) for column in letters[0][:, varied].T]
        return [_one_hot(part[:, varied], known) for part in letters]


def aligned(texts: Sequence[Sequence[str] | None]) -> list[np.ndarray] | None:
    """Return the letters of each part as codes, or None unless all have one length."""
    given = [part for part in texts if part is not None]
    if len(given) < len(texts) or len({len(text) for part in given for text in part}) != 1:
        return None
    return [letters_of(part) for part in given]


def _one_hot(letters: np.ndarray, known: Sequence[np.ndarray]) -> np.ndarray:
    columns = [letters[:, [i]] == seen for i, seen in enumerate(known)]
    return np.concatenate(columns, axis=1).astype(float)


def letters_of(sequences: Sequence[str]) -> np.ndarray:
    """Return the letters of sequences of equal length as codes, (sequences, length) uint8."""
    text = "".join(sequences).encode("ascii", "replace")
    return np.frombuffer(text, np.uint8).reshape(len(sequences), -1)
