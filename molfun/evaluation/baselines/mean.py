"""The mean of the training labels, or how often each class occurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines.base import Baseline, Labelled, Predictions
from molfun.tasks.base import Task


class Mean(Baseline):
    """Predict the same for every sample or residue: the mean label, or the share of each class."""

    name = "mean"
    title = "mean of the training labels"

    def described(self, task: Task) -> str:
        """Return the words of a verdict, by what is predicted."""
        return "class frequencies" if task.labels_are in ("class", "classes") else self.title

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Learn one value."""
        if task.labels_are == "other":
            return None
        shape = task.numbers(None).shape
        rows = np.concatenate([label.reshape(-1, *shape) for label in train.labels])
        if task.labels_are == "class":
            counts = np.bincount(rows[np.isfinite(rows)].astype(int), minlength=task.n_outputs)
            value = counts / counts.sum()
        else:
            n = np.isfinite(rows).sum(0)
            # NaN for a target without labels, where nanmean warns
            value = np.divide(np.nansum(rows, 0), n, out=np.full(n.shape, np.nan), where=n > 0)
        n_residue = 1 if task.level == "residue" else 0
        return [
            [np.broadcast_to(value, (*label.shape[:n_residue], *value.shape)) for label in o.labels]
            for o in others
        ]
