"""The labels of the most similar training sequences: what leaks through the split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from molfun.evaluation.baselines.base import Baseline, Labelled, Predictions
from molfun.evaluation.baselines.estimators import by_target
from molfun.evaluation.baselines.one_hot import aligned
from molfun.tasks.base import Task

N_NEIGHBOURS = 5


class Neighbour(Baseline):
    """Mean over the five nearest training sequences, each weighed by its nearness.

    Sequences of equal length are compared by identity, others by their 3-mers.
    """

    name = "neighbour"
    title = "nearest training sequences"

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Look up the neighbours; exact duplicates decide alone."""
        texts = [part.sequences() for part in (train, *others)]
        known = task.labels_are != "other"
        if not known or task.level != "sequence" or any(part is None for part in texts):
            return None
        labels = np.stack(train.labels)
        if task.labels_are == "class":
            labels = np.eye(task.n_outputs)[labels.astype(int)]
        features, metric = _comparable([part or [] for part in texts])
        return [list(rows) for rows in _nearest(features, labels, metric)]


def _comparable(texts: Sequence[Sequence[str]]) -> tuple[list[Any], str]:
    """Return features of each part, and the distance between them."""
    letters = aligned(texts)
    if letters is not None:
        return letters, "hamming"
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(analyzer="char", ngram_range=(3, 3), norm="l2", lowercase=False)
    return [words.transform(part) for part in texts], "cosine"


def _nearest(features: Sequence[Any], labels: np.ndarray, metric: str) -> list[np.ndarray]:
    from sklearn.neighbors import KNeighborsRegressor

    def fit(x: Any, y: np.ndarray, parts: Sequence[Any]) -> list[np.ndarray]:
        n = min(N_NEIGHBOURS, len(y))
        model = KNeighborsRegressor(n, weights="distance", metric=metric, algorithm="brute")
        model.fit(x, y)
        return [model.predict(part) for part in parts]

    return by_target(fit, features[0], labels, features[1:])
