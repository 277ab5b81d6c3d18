"""The mean of the training labels, or how often each class occurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines.base import Baseline, Labelled, Predictions
from molfun.tasks.base import Task
from molfun.tasks.classification import MulticlassTask, MultilabelTask
from molfun.tasks.regression import RegressionTask


class Mean(Baseline):
    """Predict the same for every sample or residue: the mean label, or the share of each class."""

    name = "mean"
    title = "mean of the training labels"

    def predict(self, train: Labelled, others: Sequence[Labelled], task: Task) -> Predictions:
        """Learn one value."""
        if not isinstance(task, RegressionTask | MulticlassTask | MultilabelTask):
            return None
        width = np.atleast_1d(task.numbers(None)).shape[-1] if _has_columns(task) else 0
        rows = np.concatenate([label.reshape(-1, *[width] * bool(width)) for label in train.labels])
        if isinstance(task, MulticlassTask):
            counts = np.bincount(rows[np.isfinite(rows)].astype(int), minlength=task.n_outputs)
            value = counts / counts.sum()
        else:
            value = np.nanmean(rows, axis=0)
        n_residue = 1 if task.level == "residue" else 0
        return [
            [np.broadcast_to(value, (*label.shape[:n_residue], *value.shape)) for label in o.labels]
            for o in others
        ]


def _has_columns(task: Task) -> bool:
    """Return whether a label is a row of numbers: a vector, or a 0 or 1 per class."""
    return isinstance(task, MultilabelTask) or bool(getattr(task, "shape", ()))
