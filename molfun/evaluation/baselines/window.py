"""The amino acids around a residue, for labels of residues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines import estimators
from molfun.evaluation.baselines.base import FeatureBaseline, Labelled, Predictions
from molfun.protein import RESIDUE_LETTERS_WITH_X
from molfun.tasks.base import Task

HALF = 7
MOST_RESIDUES = 50_000
"""Residues to learn from; a logistic regression on them takes about ten seconds on two cores."""


class Window(FeatureBaseline):
    """Linear model of the 15 amino acids around each residue.

    References
    ----------
    Qian and Sejnowski 1988, "Predicting the secondary structure of globular proteins using neural
    network models": windows of 13 to 17 residues are the classic input.
    """

    name = "window"
    title = "15 neighbouring residues"

    def features(self, parts: Sequence[Labelled]) -> None:
        """Return nothing: its rows are residues and not samples, see `predict`."""

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Learn from at most `MOST_RESIDUES` labelled residues, drawn at random."""
        model = estimators.linear_model(task)
        parts = [part.sequences() for part in (train, *others)]
        if task.level != "residue" or model is None or any(part is None for part in parts):
            return None
        labels = np.concatenate(list(train.labels))
        codes = np.concatenate(_windows(train, parts[0] or []))
        known = np.flatnonzero(np.isfinite(labels.reshape(len(labels), -1)).all(1))
        drawn = np.random.default_rng(0).permutation(known)[:MOST_RESIDUES]
        found = []
        tests = [_windows(o, texts or []) for o, texts in zip(others, parts[1:], strict=True)]
        features = [_one_hot(np.concatenate(part)) for part in tests]
        rows = model(_one_hot(codes[drawn]), labels[drawn], features)
        for part, values in zip(tests, rows, strict=True):
            ends = np.cumsum([len(codes) for codes in part])[:-1]
            found.append(np.split(np.array(values), ends))
        return found


def _windows(part: Labelled, sequences: Sequence[str]) -> list[np.ndarray]:
    """Return the codes of the residues around each labelled one, (residues, 15) per sample."""
    order = np.full(256, len(RESIDUE_LETTERS_WITH_X) - 1)
    order[np.frombuffer(RESIDUE_LETTERS_WITH_X.encode(), np.uint8)] = range(21)
    found = []
    for text, label in zip(sequences, part.labels, strict=True):
        codes = order[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]
        # the last code stands for "beyond the end"
        padded = np.pad(codes, HALF, constant_values=21)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * HALF + 1)
        found.append(windows[: len(label)])
    return found


def _one_hot(codes: np.ndarray) -> object:
    """Return a sparse (residues, 15 * 22) matrix."""
    from scipy.sparse import csr_matrix

    n, width = codes.shape
    columns = codes + 22 * np.arange(width)
    ends = np.arange(0, n * width + 1, width)
    return csr_matrix((np.ones(n * width), columns.ravel(), ends), shape=(n, 22 * width))
