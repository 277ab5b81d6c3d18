"""Linear models of scikit-learn behind one call, by the kind of the labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from molfun.tasks.base import Task

LinearModel = Callable[[Any, np.ndarray, Sequence[Any]], list[list[np.ndarray]]]
"""Function from training features, labels and the features of each part to its predictions."""

Fit = Callable[[Any, np.ndarray, Sequence[Any]], Sequence[np.ndarray]]
"""Function from training features, labels without gaps and the features of each part."""

_PENALTIES = np.logspace(-3, 5, 17)
MOST_EXACT = 1000
"""Rows or columns, the fewer of both, up to which the penalty of a ridge on sparse features is
chosen by leave-one-out: 5,000 rows of 6,000 columns take 93 s and 2.4 GB, by conjugate gradients
and a held-out fifth 1.5 s and 0.3 GB, with the same correlation."""


def linear_model(task: Task) -> LinearModel | None:
    """Return the linear model of a task, or None for labels that no linear model here predicts."""
    if task.level == "pair":
        return None
    if task.labels_are == "class":
        return lambda x, y, parts: logistic(x, y, parts, n_classes=task.n_outputs)
    return {"numbers": ridge, "classes": one_per_class}.get(task.labels_are)


def ridge(x: Any, y: np.ndarray, parts: Sequence[Any]) -> list[list[np.ndarray]]:
    """Fit a ridge on standardised features, with its penalty chosen on rows that it did not see."""
    return [list(part) for part in by_target(_ridge, x, y, parts)]


def by_target(fit: Fit, x: Any, y: np.ndarray, parts: Sequence[Any]) -> list[np.ndarray]:
    """Fit each target on the rows where it is known; those known for the same rows share a fit.

    Parameters
    ----------
    fit
        Function that learns and predicts.
    x, y
        Training features, and labels (samples, ...) with NaN where there is none.
    parts
        Features to predict.

    Returns
    -------
    list
        One (samples, ...) array per part; NaN for a target without labels.

    Examples
    --------
    >>> mean = lambda x, y, parts: [np.full(len(part), y.mean()) for part in parts]
    >>> by_target(mean, np.zeros((2, 1)), np.array([[1.0, 5.0], [3.0, np.nan]]), [np.zeros((1, 1))])
    [array([[2., 5.]])]
    """
    flat = y.reshape(len(y), -1)
    found = [np.full((part.shape[0], flat.shape[1]), np.nan) for part in parts]
    patterns, which = np.unique(np.isfinite(flat), axis=1, return_inverse=True)
    for i, rows in enumerate(patterns.T):
        columns = np.flatnonzero(which.ravel() == i)
        if rows.any():
            labels = flat[rows][:, columns]
            # of one target as a vector, which scikit-learn solves as such
            predicted = fit(x[rows], labels[:, 0] if len(columns) == 1 else labels, parts)
            for values, own in zip(found, predicted, strict=True):
                values[:, columns] = own.reshape(len(own), -1)
    return [values.reshape(len(values), *y.shape[1:]) for values in found]


def _ridge(x: Any, y: np.ndarray, parts: Sequence[Any]) -> list[np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import GridSearchCV, ShuffleSplit
    from sklearn.pipeline import make_pipeline

    chosen: Any = RidgeCV(alphas=_PENALTIES)
    if not isinstance(x, np.ndarray) and min(x.shape) > MOST_EXACT:
        chosen = GridSearchCV(
            Ridge(solver="sparse_cg", tol=1e-3, max_iter=100),
            {"alpha": _PENALTIES},
            cv=ShuffleSplit(1, test_size=0.2, random_state=0),
            scoring="neg_mean_squared_error",
        )
    with warnings.catch_warnings():
        # a baseline that has nearly converged is as good for a comparison
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = make_pipeline(_scaler(), chosen).fit(x, y)
    return [model.predict(part) for part in parts]


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
    if len(present) < 2:
        only = np.eye(n_classes)[present[0]] if len(present) else np.full(n_classes, np.nan)
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
