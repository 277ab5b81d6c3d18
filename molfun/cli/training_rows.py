"""Open the training set of a model again: from a table, or from the run that the model is of."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from molfun._paths import as_path
from molfun.cli.places import as_started
from molfun.config import read_yaml
from molfun.data.base import SampleDataset
from molfun.data.cells import escape
from molfun.data.kinds.base import DataKind
from molfun.data.kinds.structures import STRUCTURE
from molfun.data.named_targets import NamedTargets
from molfun.errors import ConfigError, DataError
from molfun.runs.folder import CONFIG, SPLITS


@dataclass(frozen=True)
class TrainingRows:
    """Training set of a model, and its validation set, if it is known."""

    train: SampleDataset
    validation: SampleDataset | None = None


def rows_of(
    path: str | Path,
    kind: DataKind,
    trained: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    labels: bool,
) -> TrainingRows:
    """Open the training set of a model.

    Parameters
    ----------
    path
        Table of the training samples (a folder, where they are structures alone), or the folder of
        the run, which names it.
    kind
        Data kind of the model.
    trained
        Input settings in its checkpoint.
    about
        Settings of the data kind on the command line, for a table.
    labels
        Whether the samples must have labels.

    Raises
    ------
    ConfigError
        If the folder is not that of a run, or names no table.
    DataError
        If a file is missing or bad.
    """
    folder = as_path(path)
    if _holds_samples(folder, trained):
        given = {**about, "data": str(path)}
        return TrainingRows(reopened(kind, trained, given, labels=labels))
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"--training-data {folder} is not the folder of a run: {CONFIG} is missing. Give that "
            f"folder, or the table of the training samples."
        )
    stored = as_started(read_yaml(folder / CONFIG), folder)
    several = kind.takes_several_files and isinstance(stored.get("data"), list)
    if not (several or isinstance(stored.get("data"), str)):
        raise ConfigError(f"{folder / CONFIG} names no table: give the training samples as one.")
    names = {"data", *kind.settings.model_fields}
    own = {name: stored[name] for name in names if stored.get(name) is not None}
    data = reopened(kind, trained, own, labels=labels)
    found = _parts(data, folder / SPLITS, stored)
    validation = _of_file(kind, trained, {**own, "data": stored.get("val")}, labels=labels)
    return found if validation is None else replace(found, validation=validation)


def _holds_samples(path: Path, trained: Mapping[str, Any]) -> bool:
    """Return True for a table, and for a folder of structures that are labels, not for a run."""
    of_structures = trained.get("labels") == STRUCTURE and not (path / CONFIG).is_file()
    return of_structures or not path.is_dir()


def _of_file(
    kind: DataKind, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
) -> SampleDataset | None:
    """Open a validation file; None if there is none any more: the training set is known."""
    if given["data"]:
        with contextlib.suppress(DataError):
            return reopened(kind, trained, given, labels=labels)
    return None


def run_of(checkpoint: str) -> Path | None:
    """Return the folder of the run that wrote a checkpoint; None if it lies elsewhere."""
    folder = as_path(checkpoint).resolve().parent
    return folder if (folder / CONFIG).is_file() else None


def reopened(
    kind: DataKind, trained: Mapping[str, Any], given: Mapping[str, Any], *, labels: bool
) -> SampleDataset:
    """Open samples prepared as in training, with the labels of each head if there are several."""
    of_heads = trained.get("heads")
    if not (labels and of_heads):
        return kind.reopen(trained, given, labels=labels)
    return NamedTargets(
        {name: kind.reopen(own, given, labels=labels) for name, own in of_heads.items()}
    )


def _parts(data: SampleDataset, splits: Path, stored: Mapping[str, Any]) -> TrainingRows:
    """Return training and validation set; all samples train where no file says otherwise.

    Parts in files of their own, which the settings name, may repeat ids: numbers of rows.
    """
    if not splits.is_file():  # of a cross-validation, whose folds train on all of them
        return TrainingRows(data)
    with splits.open(encoding="utf-8", newline="") as file:
        part = {name: own for name, own in csv.reader(file) if not stored.get(own)}
    of = [part.get(escape(name)) for name in data.ids]
    train, val = ([i for i, own in enumerate(of) if own == name] for name in ("train", "val"))
    if not train:
        raise DataError(f"{splits} names no training sample of the table in {CONFIG}.")
    return TrainingRows(data.subset(train), data.subset(val) if val else None)
