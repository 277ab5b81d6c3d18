"""The score that a language model gives variants without a label, alone and beside one-hot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from molfun.evaluation.baselines.base import FeatureBaseline, Labelled, Predictions
from molfun.evaluation.baselines.one_hot import OneHot
from molfun.tasks.base import Task

LEAST_SLOPE = 1e-3
"""Deviations of the labels per deviation of the score: enough to keep its order in floats."""


class ZeroShot(FeatureBaseline):
    """Zero-shot score of each variant by the base model, brought to the scale of the labels.

    One line through the training rows turns the score into a label. Its slope is never negative,
    whatever the training rows say: a score that needs no labels orders variants by itself.
    """

    name = "zero_shot"
    title = "zero-shot score"

    def described(self, task: Task) -> str:  # noqa: ARG002
        """Return the words of a verdict: a line through one number keeps its order."""
        return self.title

    def features(self, parts: Sequence[Labelled]) -> list[np.ndarray] | None:
        """Return one column, where the scores are known."""
        return score_columns(parts)

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Draw a line that rises through numbers; fit a logistic regression to classes."""
        scores = self.features([train, *others])
        labels = np.stack(train.labels) if len(train) else np.zeros((0, 1))
        if scores is None or task.labels_are != "numbers" or labels.ndim > 1:
            return super().predict(train, others, task)
        slope, offset = _rising(scores[0][:, 0], labels)
        return [list(slope * column[:, 0] + offset) for column in scores[1:]]


def _rising(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and offset of the least-squares line, or of one that hardly rises."""
    spread = float(x.std())
    if spread == 0:
        return 0.0, float(y.mean())
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread**2
    slope = max(slope, LEAST_SLOPE * (float(y.std()) or 1.0) / spread)
    return slope, float(y.mean()) - slope * float(x.mean())


class OneHotZeroShot(FeatureBaseline):
    """Linear model of one-hot columns and the zero-shot score.

    References
    ----------
    Hsu et al. 2022, "Learning protein fitness models from evolutionary and assay-labeled data",
    Nature Biotechnology 40: about as good as larger models where labels are few.
    """

    name = "one_hot_zero_shot"
    title = "one-hot and zero-shot score"

    def features(self, parts: Sequence[Labelled]) -> list[Any] | None:
        """Return the columns of `OneHot` and one more."""
        scores = score_columns(parts)
        letters = None if scores is None else OneHot().features(parts)
        if scores is None or letters is None:
            return None
        return [_beside(one, column) for one, column in zip(letters, scores, strict=True)]


class EmbeddingZeroShot(FeatureBaseline):
    """Linear model of the base model's embedding and its zero-shot score.

    A ridge in closed form, in float64, whose penalty is chosen by generalised cross-validation on
    the training rows. It applies where the base weights are at hand: the model was trained by its
    head or its adapters alone.

    References
    ----------
    Hsu et al. 2022, as for `OneHotZeroShot`: the score beside any representation. Golub, Heath and
    Wahba 1979, "Generalized cross-validation as a method for choosing a good ridge parameter".
    """

    name = "embedding_zero_shot"
    title = "embedding and zero-shot score"

    def features(self, parts: Sequence[Labelled]) -> list[np.ndarray] | None:
        """Return the mean over residues of each sample, and one more column."""
        scores = score_columns(parts)
        embedder = parts[0].embedder
        if scores is None or embedder is None:
            return None
        # of all parts at once: either all have rows, or none has
        every = embedder([sample for part in parts for sample in part.samples])
        if every is None:
            return None
        rows = np.split(every, np.cumsum([len(part) for part in parts])[:-1])
        return [np.hstack([own, column]) for own, column in zip(rows, scores, strict=True)]


def score_columns(parts: Sequence[Labelled]) -> list[np.ndarray] | None:
    """Return the scores of each part as a column; None where a part has none."""
    known = [part.scores for part in parts if part.scores is not None]
    return None if len(known) < len(parts) else [scores[:, None] for scores in known]


def _beside(letters: Any, column: np.ndarray) -> Any:
    if isinstance(letters, np.ndarray):
        return np.hstack([letters, column])
    from scipy.sparse import csr_matrix, hstack

    return hstack([letters, csr_matrix(column)], format="csr")
