"""The probability from which a sample counts as positive, chosen on the validation part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from molfun.tasks.base import Task
from molfun.tasks.class_metrics import class_scores
from molfun.tasks.classification import BinaryTask


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it gives.

    Parameters
    ----------
    value
        Probability of the second class from which it is said.
    metrics
        Accuracy, balanced accuracy, F1 and MCC of the test part at this threshold.
    """

    value: float
    metrics: dict[str, float]


def chosen(
    task: Task,
    val: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    test: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
) -> Threshold | None:
    """Return the threshold with the best balanced accuracy on validation, and its test metrics.

    Parameters
    ----------
    task
        The task; of two classes, else there is no threshold.
    val, test
        Predictions and labels of each part, one array per sample.

    Returns
    -------
    Threshold or None
        None without two classes in the validation part. Predictions that are not finite are left
        out.

    References
    ----------
    Youden 1950, "Index for rating diagnostic tests": the threshold with the largest sum of
    sensitivity and specificity.

    Examples
    --------
    >>> task = BinaryTask(classes=["no", "yes"])
    >>> rows = [np.array([1 - p, p]) for p in (0.1, 0.2, 0.3, 0.4)]
    >>> labels = [np.array(y) for y in (0.0, 0.0, 1.0, 1.0)]
    >>> found = chosen(task, (rows, labels), (rows, labels))
    >>> found.value, found.metrics["f1"]
    (0.3, 1.0)
    """
    if not isinstance(task, BinaryTask):
        return None
    probs, truth = _flat(task, *val)
    if len(np.unique(truth)) < 2:
        return None
    from sklearn.metrics import roc_curve

    false, true, values = roc_curve(truth, probs)
    # the first entry stands for "no sample is positive", with a threshold of infinity
    value = float(values[1:][np.argmax((true - false)[1:])])
    test_probs, test_truth = _flat(task, *test)
    said = (test_probs >= value).astype(int)
    scores = class_scores(np.eye(2)[said], test_truth)
    names = ("accuracy", "balanced_accuracy", "f1", "mcc")
    return Threshold(value, {name: scores[name] for name in names})


def _flat(
    task: Task, predictions: Sequence[np.ndarray], targets: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities of the second class and labels, where both are known."""
    probs, truth = task.join(predictions)[:, 1], task.join(targets)
    known = np.isfinite(truth) & np.isfinite(probs)
    return probs[known], truth[known].astype(int)
