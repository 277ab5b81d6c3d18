"""Compare new samples with the training set of a model, which a flag names."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molfun._paths import as_path
from molfun.cli.console import say
from molfun.cli.places import as_started
from molfun.config import read_yaml
from molfun.data.base import SampleDataset
from molfun.data.cells import escape
from molfun.data.kinds.base import DataKind
from molfun.errors import ConfigError, DataError
from molfun.evaluation.nearest import NEAR, Nearest, nearest
from molfun.runs.folder import CONFIG, SPLITS
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
    folder = as_path(path)
    if folder.is_dir():
        return _of_run(folder, kind, trained)
    data = kind.reopen(trained, {**about, "data": path}, labels=False)
    return Training(data.ids, data.sequences())


def _of_run(folder: Path, kind: DataKind, trained: Mapping[str, Any]) -> Training:
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"--training-data {folder} is not the folder of a run: {CONFIG} is missing. Give that "
            f"folder, or the table of the training samples."
        )
    stored = as_started(read_yaml(folder / CONFIG), folder)
    if not isinstance(stored.get("data"), str):
        raise ConfigError(f"{folder / CONFIG} names no table: give the training samples as one.")
    names = {"data", *kind.settings.model_fields}
    own = {name: stored[name] for name in names if stored.get(name) is not None}
    data = kind.reopen(trained, own, labels=False)
    return _parts(data, folder / SPLITS)


def _parts(data: SampleDataset, splits: Path) -> Training:
    """Return training and validation set; all samples train where no file says otherwise."""
    chains = data.sequences()
    if not splits.is_file():  # of a cross-validation, whose folds train on all of them
        return Training(data.ids, chains)
    with splits.open(encoding="utf-8", newline="") as file:
        part = dict(csv.reader(file))
    of = [part.get(escape(name)) for name in data.ids]
    train = [i for i, name in enumerate(of) if name == "train"]
    if not train:
        raise DataError(f"{splits} names no training sample of the table in {CONFIG}.")
    return Training(
        [data.ids[i] for i in train],
        [chains[i] for i in train],
        [chains[i] for i, name in enumerate(of) if name == "val"],
    )


def compare(dataset: SampleDataset, training: Training) -> dict[str, list[Any]]:
    """Say how close samples are to the training set; return the columns of it."""
    found = nearest(dataset.sequences(), training.chains)
    _say_counts(found, len(dataset))
    if len(training.validation):
        limit = float(nearest(training.validation, training.chains).identities.min())
        below = int((found.identities < limit).sum())
        if below:
            say(
                f"{counted(below, 'sample')} of {len(dataset)} less similar to the training set "
                f"than any validation sample (identity below {three_digits(limit)}): no metric "
                f"of the run speaks of such samples."
            )
    return {
        "nearest_id": [training.ids[i] if i >= 0 else "" for i in found.places],
        "identity": found.identities.tolist(),
    }


def _say_counts(found: Nearest, n: int) -> None:
    say(
        f"Of {counted(n, 'sample')}, {found.n_same} have a sequence of the training set, and "
        f"{found.n_near} more are at least {NEAR:.0%} identical to one."
    )
