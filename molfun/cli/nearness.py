"""Compare new samples with the training set of a model, which a flag names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from molfun.cli.console import say
from molfun.cli.training_rows import TrainingRows, rows_of
from molfun.data.base import SampleDataset
from molfun.data.kinds.base import DataKind
from molfun.errors import ConfigError
from molfun.evaluation.nearest import NEAR, Nearest, nearest
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
