"""Labels and predictions of common samples, and the metrics that compare runs on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from molfun.errors import ConfigError
from molfun.evaluation.bootstrap import FEW_DRAWS
from molfun.registry import TASKS
from molfun.report.finished import FinishedRun
from molfun.report.inputs import samples
from molfun.report.predicted import HeadOfRun, Predicted
from molfun.tasks.class_metrics import class_scores, label_scores
from molfun.tasks.regression import RegressionTask

DRAWS = 1000
Score = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


@dataclass(frozen=True)
class Measure:
    """Metrics of labels and predictions.

    Parameters
    ----------
    score
        Function from labels and predictions to metrics by name.
    main
        Metric of the differences.
    higher_is_better
        Direction of it.
    draws
        Bootstrap samples.
    """

    score: Score
    main: str
    higher_is_better: bool
    draws: int


@dataclass(frozen=True)
class Values:
    """Labels and predictions of some samples; probabilities, where classes have any.

    Parameters
    ----------
    labels, predictions
        (labels, ...) values of all samples, one after the other.
    places
        Where those of each sample are.
    """

    labels: np.ndarray
    predictions: np.ndarray
    places: list[np.ndarray]

    @classmethod
    def joined(cls, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Values:
        """Join the labels and predictions of samples that have (labels, ...) of each."""
        sizes = np.cumsum([0, *(len(label) for label, _ in pairs)])
        places = [np.arange(a, b) for a, b in itertools.pairwise(sizes)]
        labels, predictions = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        return cls(labels, predictions, places)

    def drawn(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and predictions of the samples at `chosen`, joined."""
        places = np.concatenate([self.places[i] for i in chosen])
        return self.labels[places], self.predictions[places]


def measure_of(head: HeadOfRun, form: str) -> Measure:
    """Return the metrics of a head.

    Raises
    ------
    ConfigError
        If its labels are none that can be compared.
    """
    if form == "number":
        main = RegressionTask.main_metric
        return Measure(_of_numbers, main, main in RegressionTask.higher_is_better, DRAWS)
    scores: dict[str, Score] = {"multilabel": _of_labels, "contact": _of_contacts}
    score = _of_classes if form == "class" else scores.get(head.task)
    if score is None or (head.task == "multilabel" and head.level != "sequence"):
        raise ConfigError(f"Runs of the task {head.task!r} cannot be compared yet.")
    task = TASKS[head.task]
    # scikit-learn takes milliseconds for all metrics of classes
    return Measure(score, task.main_metric, task.main_metric in task.higher_is_better, FEW_DRAWS)


def values_of(found: Predicted, ids: Sequence[str]) -> Values:
    """Return the values of some samples, in the order of `ids`."""
    row = {name: i for i, name in enumerate(found.ids)}
    chosen = [row[name] for name in ids]
    if found.form == "other":
        read = _contacts if found.head.task == "contact" else _indicators
        return Values.joined([read(found, place) for place in chosen])
    predictions = _class_scores(found) if found.form == "class" else found.predictions
    borders = np.searchsorted(found.sample, np.arange(len(found.rows) + 1))
    return Values(
        found.labels, predictions, [np.arange(borders[i], borders[i + 1]) for i in chosen]
    )


def _class_scores(found: Predicted) -> np.ndarray:
    """Return (labels, classes) probabilities; 1 for the predicted class where there are none."""
    if found.probs is not None and len(found.probs) == len(found.labels):
        return found.probs
    one_hot: np.ndarray = np.eye(len(found.head.classes))[np.maximum(found.predictions, 0)]
    return one_hot


def _indicators(found: Predicted, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (1, classes) 1 for each class of a label, and probabilities; NaN without a label."""
    names = {
        part.strip() for part in found.label_cell(place).split(TASKS["multilabel"].separator)
    } - {""}
    label = np.array([[float(c in names) for c in found.head.classes]])
    probs = np.full(label.shape, np.nan) if found.probs is None else found.probs[place : place + 1]
    return (label if names else np.full(label.shape, np.nan)), probs


def _contacts(found: Predicted, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (pairs,) contacts, NaN for near pairs, and their probabilities."""
    label, predicted = (
        np.array([float(text) for text in cell.split()])
        for cell in (found.label_cell(place), found.prediction_cell(place))
    )
    n = math.isqrt(len(predicted))
    if len(label) != len(predicted) or n * n != len(predicted):
        return np.full(len(predicted), np.nan), predicted
    near = {k: v for k, v in found.head.settings.items() if k == "min_separation"}
    task: Any = TASKS["contact"](**near)
    return task.numbers(label.reshape(n, n)).reshape(-1), predicted


def forces_of(run: FinishedRun, part: str, ids: Sequence[str]) -> dict[str, Any]:
    """Return (components,) reference and predicted forces by id, in eV/Å; of fewer, where unknown.

    Predictions are in the structures next to the table of predictions, references in the data.
    """
    path = run.path / f"predictions_{part}_structures.xyz"
    if not path.is_file():
        return {}
    from ase.io import read

    frames = {str(f.info.get("id")): f for f in read(path, index=":", format="extxyz")}
    found = {}
    for name, sample in samples(run, [name for name in ids if name in frames]).items():
        target = sample.target if isinstance(sample.target, Mapping) else {}
        if target.get("forces") is not None:
            reference = np.asarray(target["forces"], dtype=float).reshape(-1)
            found[name] = reference, frames[name].get_forces().reshape(-1)
    return found


def forces_measure() -> Measure:
    """Return the metrics of forces, in meV/Å as those of the task."""

    def score(labels: np.ndarray, predictions: np.ndarray) -> Mapping[str, float]:
        error = 1000 * (predictions - labels)
        root = float(np.sqrt(np.square(error).mean()))
        return {"forces_mae": float(np.abs(error).mean()), "forces_rmse": root}

    return Measure(score, "forces_mae", higher_is_better=False, draws=DRAWS)


def _of_numbers(labels: np.ndarray, predictions: np.ndarray) -> Mapping[str, float]:
    return RegressionTask().metrics(predictions, labels)


def _of_classes(labels: np.ndarray, probs: np.ndarray) -> Mapping[str, float]:
    return class_scores(probs[labels >= 0], labels[labels >= 0])


def _of_labels(labels: np.ndarray, probs: np.ndarray) -> Mapping[str, float]:
    known = np.isfinite(labels).all(-1)
    return label_scores(probs[known], labels[known].astype(int))


def _of_contacts(labels: np.ndarray, predictions: np.ndarray) -> Mapping[str, float]:
    scores: Mapping[str, float] = TASKS["contact"]().metrics(predictions, labels)
    return scores
