"""Metrics of classes, by scikit-learn; NaN where undefined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np


def class_scores(
    probs: np.ndarray, truth: np.ndarray, *, only: str | None = None
) -> dict[str, float]:
    """Return scores where each sample is of one class.

    Parameters
    ----------
    probs
        Probabilities, (samples, classes).
    truth
        Numbers of the classes, (samples,).
    only
        Score to compute, the others staying NaN: a bootstrap needs one of them a thousand times.
        None computes all.

    Returns
    -------
    dict
        Accuracy, balanced accuracy, F1, MCC, AUROC and AUPRC. F1, AUROC and AUPRC are those of the
        second class where there are two, else the mean over the classes that occur. All are NaN
        without labels and where predictions are not finite, all but accuracy for one class alone.
    """
    names = ("accuracy", "balanced_accuracy", "f1", "mcc", "auroc", "auprc")
    result = dict.fromkeys(names, math.nan)
    if truth.size == 0 or not np.isfinite(probs).all():
        return result
    hard = probs.argmax(-1)
    result["accuracy"] = float((hard == truth).mean())
    present = np.unique(truth)
    if len(present) > 1:
        chosen = [1] if probs.shape[-1] == 2 else list(present)
        pairs = [(truth == c, probs[:, c]) for c in chosen]
        computed: dict[str, Callable[[], float]] = {
            "balanced_accuracy": lambda: _mean((hard[truth == c] == c).mean() for c in present),
            "f1": lambda: _f1(hard, truth, chosen),
            "mcc": lambda: _mcc(hard, truth),
            "auroc": lambda: _auroc(pairs),
            "auprc": lambda: _auprc(pairs),
        }
        result |= {name: score() for name, score in computed.items() if only in (None, name)}
    return result


def _f1(hard: np.ndarray, truth: np.ndarray, chosen: Sequence[int]) -> float:
    from sklearn.metrics import f1_score

    with warnings.catch_warnings():
        # F1 of a class nobody predicts is 0, which sklearn warns about
        warnings.simplefilter("ignore")
        return float(f1_score(truth, hard, labels=chosen, average="macro"))


def _mcc(hard: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    # MCC is 0 / 0 where all predictions are the same class
    return float(matthews_corrcoef(truth, hard)) if len(np.unique(hard)) > 1 else math.nan


Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
"""Labels of one class against the rest, and its probabilities, per class."""


def _auroc(pairs: Pairs) -> float:
    from sklearn.metrics import roc_auc_score

    return _mean(float(roc_auc_score(true, p)) for true, p in pairs)


def _auprc(pairs: Pairs) -> float:
    from sklearn.metrics import average_precision_score

    return _mean(float(average_precision_score(true, p)) for true, p in pairs)


def label_scores(probs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return scores where each sample has any number of classes.

    Parameters
    ----------
    probs, truth
        Probabilities, and 0 or 1, (samples, classes).

    Returns
    -------
    dict
        Share of right labels, F1 (mean over classes, and over all labels), AUROC and AUPRC. Means
        are over the classes for which the metric is defined; NaN where it is for none, and where
        predictions are not finite.
    """
    from sklearn.metrics import f1_score

    if truth.size == 0 or not np.isfinite(probs).all():
        return dict.fromkeys(("accuracy", "f1", "f1_micro", "auroc", "auprc"), math.nan)
    hard = (probs >= 0.5).astype(int)
    each = zip(truth.T, hard.T, probs.T, strict=True)
    columns = [column for column in each if column[0].any() or column[1].any()]
    both = [(true, p) for true, p in zip(truth.T, probs.T, strict=True) if 0 < true.mean() < 1]
    return {
        "accuracy": float((hard == truth).mean()),
        "f1": _mean(float(f1_score(true, said)) for true, said, _ in columns),
        "f1_micro": float(f1_score(truth.ravel(), hard.ravel())) if columns else math.nan,
        "auroc": _auroc(both),
        "auprc": _auprc(both),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan
