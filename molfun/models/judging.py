"""Judge a trained model on its split: baselines of the training rows, intervals and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from molfun.data.base import SampleDataset
from molfun.data.clusters import cluster_sequences, linked
from molfun.data.folds import Fold
from molfun.data.splits import IDENTITY
from molfun.evaluation.baselines import MOST_ROWS, Embedder, Indexed, Labelled
from molfun.evaluation.kept import Found, kept_predictions
from molfun.evaluation.results import HeadVerdict
from molfun.evaluation.verdict import OUT_OF_FOLD, Predicted, judge
from molfun.models.assembly import AssembledModel
from molfun.models.base_embeddings import BaseEmbeddings
from molfun.models.zero_shot import scores_of
from molfun.nn.substitutions import SubstitutionTable
from molfun.sample import Sample
from molfun.text import counted
from molfun.training.supervised import HeadResult
from molfun.training.task_head import TaskHead

COLUMNS = frozenset({"assay", "assay_id", "dms_id", "complex", "protein", "family", "organism"})
"""Columns by whose values metrics are reported without being asked for."""
MOST_VALUES = 50
"""Distinct values above which a column does not group samples, but names them."""


@dataclass(frozen=True)
class Measured:
    """Results of a model on one part of the data.

    Parameters
    ----------
    samples
        The samples, by index; only those with a label are read.
    heads
        Heads with the tasks that measured them.
    results
        Predictions and labels of each head by its name, in the order of the samples.
    groups
        A cluster, patient or family per sample, which intervals draw whole; None draws samples.
    columns
        Columns by whose values metrics are reported, with one value per sample.
    """

    samples: Indexed
    heads: Sequence[TaskHead]
    results: Mapping[str, HeadResult]
    groups: Sequence[Hashable] | None = None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def judged(
    model: AssembledModel,
    train: Indexed,
    targets: Sequence[Any],
    parts: Mapping[str, Measured],
    *,
    draws: int = 1000,
    keep: Path | None = None,
    rows: str = "",
    compared: bool = True,
) -> dict[str, HeadVerdict]:
    """Return the verdict on each head that has labels in any part.

    Parameters
    ----------
    model
        The trained model.
    train, targets
        Training samples by index, and their labels; baselines learn from these alone.
    parts
        Results by part: ``"val"``, ``"test"``.
    draws
        Bootstrap draws.
    keep
        Folder in which the predictions of baselines are kept; None keeps nothing.
    rows
        Word for one row, where it is none of the part's.
    compared
        Whether baselines are fitted; they look up the labels of rows that they learnt from.
    """
    scores, embedder = scores_of(model), BaseEmbeddings(model)

    def baselines(head: TaskHead, labelled: Mapping[str, _Own]) -> Found:
        if not compared:
            return {}
        labels = [head.task.numbers(target) for target in head.labels(targets)]
        learnt = Labelled.of(train, labels, most=MOST_ROWS).scored(scores)
        learnt = replace(learnt, embedder=embedder)
        others = [own.rows.scored(scores) for own in labelled.values()]
        return kept_predictions(_file_in(keep, head), learnt, others, head.task)

    return _judged(parts, baselines, random_weights=model.random_base, draws=draws, rows=rows)


def judged_folds(
    found: Measured,
    folds: Sequence[Fold],
    *,
    dataset: Any,
    random_weights: bool,
    draws: int = 1000,
    keep: Path | None = None,
    scores: SubstitutionTable | None = None,
    embedder: Embedder | None = None,
) -> dict[str, HeadVerdict]:
    """Return the verdict on the out-of-fold predictions of each head that has labels.

    Baselines learn from the training rows of each fold and predict those that it tests; of several
    repeats they are averaged, as the predictions of the models are.

    Parameters
    ----------
    found
        Out-of-fold predictions and labels of the samples that a fold tests.
    folds
        The folds, of all repeats.
    dataset
        All samples, of which those that no fold tests train all the same.
    random_weights
        Whether the backbone started from random weights where pretrained ones are usual.
    draws, keep
        As in `judged`.
    scores
        Zero-shot scores of the samples, if they are variants of a protein.
    embedder
        Representations of the samples by the base weights.
    """
    n_repeats = max(fold.repeat for fold in folds)
    words = f" of {len(folds) // n_repeats} folds"
    if n_repeats > 1:
        words += f", mean of {counted(n_repeats, 'repeat')}"

    tested = sorted({i for fold in folds for i in fold.test.tolist()})

    def baselines(head: TaskHead, rows: Mapping[str, _Own]) -> Found:
        own = rows[OUT_OF_FOLD]
        if len(tested) == len(dataset):
            return _out_of_fold(head, own, own, folds, keep, scores, embedder)
        labels = [head.task.numbers(target) for target in head.labels(dataset.targets)]
        every = _labelled_rows(dataset, labels, labels)
        own = own._replace(places=[tested[i] for i in own.places])
        return _out_of_fold(head, own, every, folds, keep, scores, embedder)

    return _judged(
        {OUT_OF_FOLD: found}, baselines, random_weights=random_weights, draws=draws, of=words
    )


def _out_of_fold(
    head: TaskHead,
    own: _Own,
    every: _Own,
    folds: Sequence[Fold],
    keep: Path | None,
    scores: SubstitutionTable | None,
    embedder: Embedder | None,
) -> dict[str, list[list[np.ndarray]]]:
    """Return the predictions for `own` rows of baselines that learn from `every` row of a fold."""
    predicted: dict[str, list[list[np.ndarray]]] = {}
    for fold in folds:
        train = np.flatnonzero(np.isin(every.places, fold.train))
        test = np.flatnonzero(np.isin(own.places, fold.test))
        if not len(test):
            continue
        learnt = every.rows.at(train.tolist(), most=MOST_ROWS).scored(scores)
        learnt = replace(learnt, embedder=embedder)
        held_out = own.rows.at(test.tolist()).scored(scores)
        path = _file_in(keep, head, f"{fold.name}_")
        for name, (rows,) in kept_predictions(path, learnt, [held_out], head.task).items():
            each = predicted.setdefault(name, [[] for _ in own.places])
            for i, row in zip(test, rows, strict=True):
                each[i].append(row)
    return _means(predicted, n=max(fold.repeat for fold in folds))


def _means(
    predicted: Mapping[str, Sequence[Sequence[np.ndarray]]], *, n: int
) -> dict[str, list[list[np.ndarray]]]:
    """Return the mean of the `n` predictions of each baseline for each sample."""
    # one that does not apply to the rows of some fold cannot be compared on all of them
    return {
        name: [[np.mean(rows, axis=0) for rows in each]]
        for name, each in predicted.items()
        if all(len(rows) == n for rows in each)
    }


def _judged(
    parts: Mapping[str, Measured],
    baselines: Callable[[TaskHead, Mapping[str, _Own]], Found],
    *,
    random_weights: bool,
    draws: int,
    of: str = "",
    rows: str = "",
) -> dict[str, HeadVerdict]:
    """Return the verdict on each head; `baselines` predicts the labelled samples of the parts."""
    found = {}
    for i, head in enumerate(next(iter(parts.values())).heads):
        labelled = {name: _labelled(part, part.heads[i]) for name, part in parts.items()}
        labelled = {name: own for name, own in labelled.items() if len(own.rows)}
        if labelled:
            predicted = _with_baselines(parts, labelled, baselines(head, labelled))
            found[head.name] = judge(
                head.task, predicted, random_weights=random_weights, draws=draws, of=of, rows=rows
            )
    return found


def _file_in(folder: Path | None, head: TaskHead, fold: str = "") -> Path | None:
    if folder is None:
        return None
    return folder / f"baselines_{fold}{head.name or 'head'}.safetensors"


class _Own(NamedTuple):
    """Samples of a part with a label for a head, their places, and the predictions for them."""

    rows: Labelled
    places: list[int]
    predictions: list[np.ndarray]


def _labelled(part: Measured, head: TaskHead) -> _Own:
    result = part.results[head.name]
    return _labelled_rows(part.samples, result.targets, result.predictions)


def _labelled_rows(
    samples: Indexed, labels: Sequence[np.ndarray], predictions: Sequence[np.ndarray]
) -> _Own:
    places = [i for i, label in enumerate(labels) if np.isfinite(label).any()]
    rows = Labelled([samples[i] for i in places], [labels[i] for i in places])
    return _Own(rows, places, [predictions[i] for i in places])


def _with_baselines(
    parts: Mapping[str, Measured],
    rows: Mapping[str, _Own],
    baselines: Mapping[str, Sequence[Sequence[np.ndarray]]],
) -> dict[str, Predicted]:
    """Return the predictions of model and baselines by part, for the samples with a label."""
    found = {}
    for n, (name, own) in enumerate(rows.items()):
        part, places = parts[name], own.places
        found[name] = Predicted(
            own.predictions,
            own.rows.labels,
            {baseline: predicted[n] for baseline, predicted in baselines.items()},
            groups=None if part.groups is None else [part.groups[i] for i in places],
            columns={column: [v[i] for i in places] for column, v in part.columns.items()},
        )
    return found


def groups_of(
    dataset: SampleDataset,
    *,
    split: str = "random",
    column: str = "group",
    threshold: float = IDENTITY,
) -> list[Hashable] | None:
    """Return the group of each sample that a split keeps whole; None where it keeps none.

    Parameters
    ----------
    dataset
        The samples. Time series have subjects, which every split keeps whole.
    split
        ``"group"`` keeps the values of `column` whole, ``"identity"`` similar sequences.
    column
        Column of the groups; a blank cell is a group of its own.
    threshold
        Identity above which sequences are similar.
    """
    own: Any = getattr(dataset, "groups", None)
    if own is not None:
        return list(own)
    if split == "group":
        return _values(dataset.metadata[column])
    if split != "identity":
        return None
    chains = dataset.sequences()
    clusters = cluster_sequences([c for row in chains for c in row], threshold).of
    return list(linked([[clusters[chain] for chain in row] for row in chains]))


def _values(cells: pd.Series[Any]) -> list[Hashable]:
    """Return a group per cell: an unknown one is not the same as the next unknown one."""
    blank = (cells.isna() | (cells.astype(str).str.strip() == "")).tolist()
    return [("blank", i) if blank[i] else str(cell) for i, cell in enumerate(cells)]


def as_samples_say(found: Measured, samples: Sequence[Sample]) -> Measured:
    """Return results with the columns and subjects that the samples themselves name."""
    series = all("timeseries" in (s.features or {}) and "group" in s.metadata for s in samples)
    groups: list[Hashable] = [str(s.metadata["group"]) for s in samples] if series else []
    table = pd.DataFrame([dict(s.metadata) for s in samples])
    # a subject of one sample each: these are samples
    known = groups if len(set(groups)) < len(groups) else None
    return replace(found, groups=known, columns=_grouping(table))


def columns_of(dataset: Any, asked: str | None = None) -> dict[str, list[str]]:
    """Return the columns that group the samples of a data set: `asked` and those of `COLUMNS`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> table = pd.DataFrame({"assay": ["a", "b", "a"], "protein": ["x", "x", "x"]})
    >>> columns_of(SimpleNamespace(metadata=table))
    {'assay': ['a', 'b', 'a']}
    """
    return _grouping(dataset.metadata, asked)


def _grouping(table: pd.DataFrame, asked: str | None = None) -> dict[str, list[str]]:
    found = {}
    for name in table.columns:
        if name == asked or str(name).lower() in COLUMNS:
            values = [str(value) for value in table[name]]
            if name == asked or 1 < len(set(values)) <= MOST_VALUES:
                found[str(name)] = values
    return found
