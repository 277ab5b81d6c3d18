"""Labels and predictions of one head, read back from a table of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Form = Literal["number", "class", "other"]
CLASSES = ("binary", "multiclass")
NUMBERS = ("regression", "gaussian", "quantile", "energy")


@dataclass(frozen=True)
class HeadOfRun:
    """A head and its task, as the checkpoint describes them.

    Parameters
    ----------
    name
        Name among several heads; empty for a single one.
    task, level
        Registered name of the task, and what has a label: ``"sequence"``, ``"residue"``, ...
    target
        Column of the labels.
    classes
        Names of the classes; empty for numbers.
    settings
        Settings of the task.
    """

    name: str = ""
    task: str = ""
    level: str = "sequence"
    target: str = "target"
    classes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def prediction_column(self) -> str:
        """Column of the predictions; another one where the labels had its name first."""
        column = f"{self.name}_prediction" if self.name else "prediction"
        return f"{column}_molfun" if column == self.target else column


@dataclass(frozen=True)
class Predicted:
    """Labels and predictions of one head on one part of the data.

    Parameters
    ----------
    head
        The head.
    form
        ``"number"``, ``"class"`` (one of several), or ``"other"``: several classes per label, or
        pairs of residues, which have a table and no plots.
    labels, predictions
        (labels,) float64 with NaN where there is none, or numbers of classes and -1.
    sample
        (labels,) place in `rows` of the sample that each label belongs to; residues of one protein
        share theirs.
    probs
        (labels, classes) probabilities; None where the table has none.
    rows
        Rows of the table, as texts.
    """

    head: HeadOfRun
    form: Form
    labels: np.ndarray
    predictions: np.ndarray
    sample: np.ndarray
    probs: np.ndarray | None
    rows: Sequence[Mapping[str, str]]

    @property
    def known(self) -> np.ndarray:
        """(labels,) True where there is a label."""
        return self.labels >= 0 if self.form == "class" else np.isfinite(self.labels)

    @property
    def ids(self) -> list[str]:
        """Id of each row: its first cell."""
        return [next(iter(row.values()), "") for row in self.rows]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) letters of the sequence, 0 where the table has none."""
        return np.array([len(row.get("sequence", "")) for row in self.rows])

    @property
    def label_column(self) -> str:
        """Name of the column with the labels."""
        return _label_column([*self.rows[0]], self.head.prediction_column, self.head) or ""

    def label_cell(self, place: int) -> str:
        """Cell with the label of a row, as it was written."""
        return self.rows[place].get(self.label_column, "")

    def prediction_cell(self, place: int) -> str:
        """Cell with the prediction of a row, as it was written."""
        return self.rows[place][self.head.prediction_column]

    def errors(self) -> np.ndarray:
        """(rows,) mean absolute error, or share of wrong classes, of each sample with a label."""
        wrong = (
            (self.predictions != self.labels).astype(float)
            if self.form == "class"
            else np.abs(self.predictions - self.labels)
        )
        known, n = self.known, len(self.rows)
        total = np.bincount(self.sample[known], wrong[known], minlength=n)
        count = np.bincount(self.sample[known], minlength=n)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def read_predicted(rows: Sequence[Mapping[str, str]], head: HeadOfRun) -> Predicted | None:
    """Read the columns of a head; None if the table lacks them.

    Parameters
    ----------
    rows
        Rows of a table of predictions, as texts.
    head
        The head.
    """
    prefix = f"{head.name}_" if head.name else ""
    column = head.prediction_column
    target = _label_column(list(rows[0]), column, head)
    if target is None:
        return None
    cells = [(row[target], row[column]) for row in rows]
    form: Form = "other"
    if head.task in CLASSES:
        form = "class"
    elif head.task in NUMBERS and head.level != "pair":
        form = "number"
    if form == "class":
        labels, predictions, sample = _classes(cells, head)
    else:
        labels, predictions, sample = _numbers(cells) if form == "number" else _nothing(len(cells))
    return Predicted(head, form, labels, predictions, sample, _probs(rows, prefix, head), rows)


def _label_column(columns: list[str], prediction: str, head: HeadOfRun) -> str | None:
    """Name of the labels: that of the head, else what stands before the predictions."""
    if prediction not in columns:
        return None
    if head.target in columns:
        return head.target
    return columns[columns.index(prediction) - 1]


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def _numbers(cells: Sequence[tuple[str, str]]) -> Arrays:
    """Read numbers; a cell holds several where residues have labels."""
    found = [(_floats(label), _floats(prediction)) for label, prediction in cells]
    # of a sample without labels all are missing
    labels = [a if len(a) == len(b) else np.full(len(b), np.nan) for a, b in found]
    return _joined(labels, [b for _, b in found])


def _floats(cell: str) -> np.ndarray:
    return np.array([_float(text) for text in cell.split()] or [np.nan])


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _classes(cells: Sequence[tuple[str, str]], head: HeadOfRun) -> Arrays:
    """Read names of classes as their numbers; -1 where there is none."""
    number = {name: i for i, name in enumerate(head.classes)}

    def numbers(cell: str) -> np.ndarray:
        if head.level != "residue":
            names: Sequence[str] = [cell]
        else:
            names = cell.split(";") if ";" in cell else [*cell]
        return np.array([number.get(name, -1) for name in names], dtype=np.int64)

    found = [(numbers(label), numbers(prediction)) for label, prediction in cells]
    labels = [a if len(a) == len(b) else np.full(len(b), -1) for a, b in found]
    return _joined(labels, [b for _, b in found])


def _nothing(n: int) -> Arrays:
    return np.full(n, np.nan), np.full(n, np.nan), np.arange(n)


def _joined(labels: list[np.ndarray], predictions: list[np.ndarray]) -> Arrays:
    sizes = [len(one) for one in labels]
    return (
        np.concatenate(labels),
        np.concatenate(predictions),
        np.repeat(np.arange(len(sizes)), sizes),
    )


def _probs(rows: Sequence[Mapping[str, str]], prefix: str, head: HeadOfRun) -> Any:
    columns = [f"{prefix}prob_{name}" for name in head.classes]
    if not columns or any(name not in rows[0] for name in columns):
        return None
    return np.array([[_float(row[name]) for name in columns] for row in rows])
