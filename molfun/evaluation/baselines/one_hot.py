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
        texts = [part.sequences() for part in parts]
        lengths = {len(t) for part in texts if part is not None for t in part}
        if any(part is None for part in texts) or len(lengths) != 1:
            return None
        letters = [letters_of(part or ()) for part in texts]
        varied = letters[0] != letters[0][:1]
        letters = [part[:, varied.any(0)] for part in letters]
        if not letters[0].shape[1]:
            return None
        known = [np.unique(column) for column in letters[0].T]
        return [
            np.concatenate([part[:, [i]] == known[i] for i in range(part.shape[1])], 1).astype(
                float
            )
            for part in letters
        ]


def letters_of(sequences: Sequence[str]) -> np.ndarray:
    """Return the letters of sequences of equal length as codes, (sequences, length) uint8."""
    text = "".join(sequences).encode("ascii", "replace")
    return np.frombuffer(text, np.uint8).reshape(len(sequences), -1)
