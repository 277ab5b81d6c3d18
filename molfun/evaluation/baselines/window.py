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
        texts = [part.sequences() for part in (train, *others)]
        given = [part for part in texts if part is not None]
        if task.level != "residue" or model is None or len(given) < len(texts):
            return None
        labels = np.concatenate(list(train.labels))
        known = np.flatnonzero(np.isfinite(labels.reshape(len(labels), -1)).any(1))
        drawn = np.random.default_rng(0).permutation(known)[:MOST_RESIDUES]
        windows, *tests = map(_windows, (train, *others), given)
        features = [_one_hot(np.concatenate(part)) for part in tests]
        rows = model(_one_hot(np.concatenate(windows)[drawn]), labels[drawn], features)
        return [_split(np.array(row), part) for row, part in zip(rows, tests, strict=True)]


def _split(values: np.ndarray, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the values of each sample's residues."""
    return np.split(values, np.cumsum([len(codes) for codes in samples])[:-1])


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
