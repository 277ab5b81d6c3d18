"""Compare new samples with a model's training set: that of a flag, or its checkpoint's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from molfun._paths import as_path
from molfun.cli.console import say
from molfun.cli.models import is_stock
from molfun.cli.training_rows import TrainingRows, rows_of
from molfun.data.base import SampleDataset
from molfun.data.kinds.base import DataKind
from molfun.errors import ConfigError
from molfun.evaluation.nearest import NEAR, Nearest, nearest
from molfun.evaluation.sketch import MOST
from molfun.models.ensemble import is_ensemble, members_of
from molfun.models.training_record import TrainingRecord
from molfun.runs.checkpoint import read_record
from molfun.text import counted, three_digits

KINDS = ("sequences", "structures")
"""Data kinds whose samples are compared by sequence."""
Chains = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Training:
    """Ids and chains of a training set, and chains of its validation set, if it is known."""

    ids: list[str]
    chains: Chains
    validation: Chains = ()


def training_of(
    path: str, kind: DataKind, trained: Mapping[str, Any], about: Mapping[str, Any]
) -> Training:
    """Open the training set of a model.

    Parameters
    ----------
    path
        Table of the training samples, or the folder of the run, which names it.
    kind
        Data kind of the model.
    trained
        Input settings in its checkpoint.
    about
        Settings of the data kind on the command line, for a table.

    Raises
    ------
    ConfigError
        If the samples have no sequences to compare, or the folder is not that of a run.
    """
    if kind.name not in KINDS:
        raise ConfigError(f"--training-data compares sequences, and the model takes {kind.title}.")
    return chains_of(rows_of(path, kind, trained, about, labels=False))


def chains_of(rows: TrainingRows) -> Training:
    """Return what samples are compared with."""
    validation = () if rows.validation is None else rows.validation.sequences()
    return Training(rows.train.ids, rows.train.sequences(), validation)


def compare(dataset: SampleDataset, training: Training) -> dict[str, list[Any]]:
    """Say how close samples are to the training set; return the columns of it."""
    found = nearest(dataset.sequences(), training.chains)
    _say_counts(found, len(dataset))
    _say_ids(dataset, found, np.isin(dataset.ids, training.ids))
    if len(training.validation):
        limit = float(nearest(training.validation, training.chains).identities.min())
        _say_below(found, limit)
    return {
        "nearest_id": [training.ids[i] if i >= 0 else "" for i in found.places],
        "identity": found.identities.tolist(),
    }


def compare_with_record(path: str, kind: DataKind, dataset: SampleDataset) -> dict[str, list[Any]]:
    """Say how close samples are to the training rows that a checkpoint keeps a sketch of.

    Parameters
    ----------
    path
        Folder of the checkpoint or ensemble, already verified.
    kind
        Data kind of the model.
    dataset
        The samples.

    Returns
    -------
    dict
        The columns of it; none if there is no sketch, or the samples have no sequences.
    """
    records = [] if kind.name not in KINDS or is_stock(path) else _records(path)
    sketches = [record.sketch for record in records if record.sketch is not None]
    if len(sketches) < max(1, len(records)):
        return {}
    chains = dataset.sequences()
    of_each = [sketch.nearest(chains) for sketch in sketches]
    found = _best(of_each)
    _say_counts(found, len(dataset), of=" (identities estimated from the checkpoint)")
    _say_ids(dataset, found, np.any([s.knows(dataset.ids) for s in sketches], axis=0))
    _say_left_out(sum(sketch.n_left_out for sketch in sketches))
    # NaN where a member had no validation rows
    _say_below(found, float(np.fmin.reduce([record.least_identity for record in records])))
    return _columns(of_each, found)


def columns_of_run(
    record: TrainingRecord | None, kind: DataKind, dataset: SampleDataset, scores: Any
) -> dict[str, list[Any]]:
    """Return the columns that `molfun predict` writes, for the samples of the run itself.

    Parameters
    ----------
    record
        Record of the model.
    kind, dataset
        The samples.
    scores
        Their predictions.
    """
    if record is None:
        return {}
    columns: dict[str, list[Any]] = {}
    if record.sketch is not None and kind.name in KINDS:
        found = record.sketch.nearest(dataset.sequences())
        columns = _columns([found], found)
    return columns | _distance_column(scores, record)


def _columns(of_each: Sequence[Nearest], found: Nearest) -> dict[str, list[Any]]:
    return {"nearest_id": _rows_named(of_each), "identity": found.identities.round(3).tolist()}


def _say_left_out(n: int) -> None:
    if n:
        say(
            f"Relatives of {n:,} training sequences are not found: a checkpoint keeps the words "
            f"of {MOST:,}."
        )


def _records(path: str) -> list[TrainingRecord]:
    """Return the record of a checkpoint, or those of an ensemble; an empty one where none is."""
    folders = members_of(path) if is_ensemble(path) else [as_path(path)]
    found = [TrainingRecord.from_tensors(read_record(folder)) for folder in folders]
    return [TrainingRecord() if record is None else record for record in found]


def _best(of_each: Sequence[Nearest]) -> Nearest:
    """Return the nearest training sample over the members of an ensemble."""
    identities = np.array([found.identities for found in of_each])
    best = identities.argmax(axis=0)
    return Nearest(
        places=np.choose(best, [found.places for found in of_each]),
        identities=identities.max(axis=0),
        same=np.any([found.same for found in of_each], axis=0),
    )


def _rows_named(of_each: Sequence[Nearest]) -> list[str]:
    """Return ``row 17`` for the 17th training sample; of an ensemble also which member's it is."""
    best = np.array([found.identities for found in of_each]).argmax(axis=0)
    names = []
    for i, member in enumerate(best):
        place = of_each[member].places[i]
        start = f"member {member + 1} " if len(of_each) > 1 else ""
        names.append(f"{start}row {place + 1}" if place >= 0 else "")
    return names


def distances(scores: Any, record: TrainingRecord | None) -> dict[str, list[Any]]:
    """Say how many samples are far in the model's representation; return the column of it.

    Parameters
    ----------
    scores
        Result of `predict` or `evaluate`.
    record
        Record of the model.
    """
    column = _distance_column(scores, record)
    space = None if record is None else record.space
    if space is not None and column and (beyond := space.n_beyond(scores.distances)):
        say(
            f"{counted(beyond, 'sample')} of {len(scores.distances)} farther from the training set "
            f"in the model's representation than any validation sample (distance above "
            f"{three_digits(space.limit)}): no metric of the run speaks of such samples."
        )
    return column


def _distance_column(scores: Any, record: TrainingRecord | None) -> dict[str, list[Any]]:
    found = getattr(scores, "distances", None)
    if found is None or record is None or record.space is None:
        return {}
    return {"distance": [float(three_digits(value)) for value in found]}


def _say_counts(found: Nearest, n: int, of: str = "") -> None:
    say(
        f"Of {counted(n, 'sample')}, {found.n_same} have a sequence of the training set, and "
        f"{found.n_near} more are at least {NEAR:.0%} identical to one{of}."
    )


def _say_ids(dataset: SampleDataset, found: Nearest, known: np.ndarray) -> None:
    """Say how many samples have a training sample's id and another sequence."""
    ids = dataset.ids
    # numbers that a reader gave to the rows of a table without ids say nothing
    numbered = all(name == f"{name.rpartition('_')[0]}_{i}" for i, name in enumerate(ids, start=1))
    further = 0 if numbered else int((known & ~found.same).sum())
    if further:
        say(
            f"{counted(further, 'sample')} of {len(ids)} with the id of a training sample and "
            f"another sequence: check that these are new."
        )


def _say_below(found: Nearest, limit: float) -> None:
    """Say how many samples are less similar to the training set than any validation sample."""
    below = int((found.identities < limit).sum())
    if below:
        say(
            f"{counted(below, 'sample')} of {len(found.identities)} less similar to the training "
            f"set than any validation sample (identity below {three_digits(limit)}): no metric "
            f"of the run speaks of such samples."
        )
