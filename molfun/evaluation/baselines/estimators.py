"""Linear models of scikit-learn behind one call, by the kind of the labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from molfun.tasks.base import Task

LinearModel = Callable[[Any, np.ndarray, Sequence[Any]], list[list[np.ndarray]]]
"""Function from training features, labels and the features of each part to its predictions."""

_PENALTIES = np.logspace(-3, 5, 17)


def linear_model(task: Task) -> LinearModel | None:
    """Return the linear model of a task, or None for labels that no linear model here predicts."""
    if task.level == "pair":
        return None
    if task.labels_are == "class":
        return lambda x, y, parts: logistic(x, y, parts, n_classes=task.n_outputs)
    return {"numbers": ridge, "classes": one_per_class}.get(task.labels_are)


def ridge(x: Any, y: np.ndarray, parts: Sequence[Any]) -> list[list[np.ndarray]]:
    """Fit a ridge whose penalty is chosen by leave-one-out, on standardised features."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline

    known = np.isfinite(y.reshape(len(y), -1)).all(1)
    model = make_pipeline(_scaler(), RidgeCV(alphas=_PENALTIES)).fit(x[known], y[known])
    return [list(model.predict(part)) for part in parts]


def logistic(
    x: Any, y: np.ndarray, parts: Sequence[Any], *, n_classes: int
) -> list[list[np.ndarray]]:
    """Fit a logistic regression; classes that do not occur get the probability 0."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    known = np.isfinite(y)
    x, y = x[known], y[known].astype(int)
    present = np.unique(y)
    if len(present) == 1:
        only = np.eye(n_classes)[present[0]]
        return [[only] * part.shape[0] for part in parts]
    model = make_pipeline(_scaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        # a baseline that has nearly converged is as good for a comparison
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    found = []
    for part in parts:
        probs = np.zeros((part.shape[0], n_classes))
        probs[:, present] = model.predict_proba(part)
        found.append(list(probs))
    return found


def one_per_class(x: Any, y: np.ndarray, parts: Sequence[Any]) -> list[list[np.ndarray]]:
    """Fit a logistic regression per class, for any number of classes at once."""
    columns = [
        [np.stack(rows)[:, 1] for rows in logistic(x, column, parts, n_classes=2)] for column in y.T
    ]
    return [list(np.stack(part, axis=1)) for part in zip(*columns, strict=True)]


def _scaler() -> Any:
    from sklearn.preprocessing import StandardScaler

    # without the mean sparse matrices stay sparse; the intercept takes it up
    return StandardScaler(with_mean=False)
