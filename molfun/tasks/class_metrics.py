"""Metrics of classes, by scikit-learn; NaN where undefined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np


def class_scores(probs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return scores where each sample is of one class.

    Parameters
    ----------
    probs
        Probabilities, (samples, classes).
    truth
        Numbers of the classes, (samples,).

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
        recalls = [float((hard[truth == c] == c).mean()) for c in present]
        result["balanced_accuracy"] = float(np.mean(recalls))
        result |= _hard_scores(hard, truth, chosen)
        result |= _ranking_scores([(truth == c, probs[:, c]) for c in chosen])
    return result


def _hard_scores(hard: np.ndarray, truth: np.ndarray, chosen: Sequence[int]) -> dict[str, float]:
    from sklearn import metrics

    with warnings.catch_warnings():
        # F1 of a class nobody predicts is 0, which sklearn warns about
        warnings.simplefilter("ignore")
        f1 = metrics.f1_score(truth, hard, labels=chosen, average="macro")
        mcc = metrics.matthews_corrcoef(truth, hard)
    # MCC is 0 / 0 where all predictions are the same class
    return {"f1": float(f1), "mcc": float(mcc) if len(np.unique(hard)) > 1 else math.nan}


def _ranking_scores(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Return AUROC and AUPRC, means over classes, from one-vs-rest labels and probabilities."""
    from sklearn import metrics

    return {
        "auroc": _mean(float(metrics.roc_auc_score(true, p)) for true, p in pairs),
        "auprc": _mean(float(metrics.average_precision_score(true, p)) for true, p in pairs),
    }


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
        **_ranking_scores(both),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan
