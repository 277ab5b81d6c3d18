"""One column per position and amino acid, for sequences of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from molfun.evaluation.baselines.base import FeatureBaseline, Labelled

MOST_DENSE = 2_000_000
"""Values of a training matrix up to which it is solved as a dense one, which is more exact."""


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
        train, *others = (_one_hot(part[:, varied], known) for part in letters)
        return [train.toarray() if np.prod(train.shape) <= MOST_DENSE else train, *others]


def aligned(texts: Sequence[Sequence[str] | None]) -> list[np.ndarray] | None:
    """Return the letters of each part as codes, or None unless all have one length."""
    given = [part for part in texts if part is not None]
    if len(given) < len(texts) or len({len(text) for part in given for text in part}) != 1:
        return None
    return [letters_of(part) for part in given]


def _one_hot(letters: np.ndarray, known: Sequence[np.ndarray]) -> Any:
    """Return a sparse matrix of a column per position and known letter; others have none."""
    from scipy.sparse import csr_matrix

    starts = np.cumsum([0, *map(len, known)])
    places = np.full(letters.shape, -1, np.int32)
    for i, seen in enumerate(known):
        columns = np.full(256, -1, np.int32)
        columns[seen] = np.arange(starts[i], starts[i + 1])
        places[:, i] = columns[letters[:, i]]
    there = places >= 0
    ends = np.concatenate([[0], np.cumsum(there.sum(1))])
    shape = (len(letters), int(starts[-1]))
    return csr_matrix((np.ones(int(ends[-1])), places[there], ends), shape=shape)


def letters_of(sequences: Sequence[str]) -> np.ndarray:
    """Return the letters of sequences of equal length as codes, (sequences, length) uint8."""
    text = "".join(sequences).encode("ascii", "replace")
    return np.frombuffer(text, np.uint8).reshape(len(sequences), -1)
