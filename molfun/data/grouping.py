"""Samples that no split and no fold may separate: identical, similar, or of one group."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from molfun.data.clusters import Clusters, cluster_sequences, comparable, linked
from molfun.data.columns import numeric
from molfun.errors import ConfigError, DataError
from molfun.text import listing, nearest

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_ISO_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?", re.ASCII)
Groups = list[list[int]]
"""Positions of the samples of each group, in order of their first sample."""


class Splittable(Protocol):
    """Protocol of what splits use of a data set: `AffinityDataset`, or a user's own."""

    def __len__(self) -> int:
        """Number of samples."""

    @property
    def ids(self) -> list[str]:
        """Ids in order."""

    @property
    def metadata(self) -> pd.DataFrame:
        """Columns to split by."""

    def sequences(self) -> list[tuple[str, ...]]:
        """Return the sequences of the chains of each sample."""

    def subset(self, indices: Any) -> Any:
        """Return the samples at `indices`."""


def identical(dataset: Splittable) -> list[list[Hashable]]:
    """Return one key per sample: its chains, in any order and either case."""
    return [[tuple(sorted(map(comparable, chains)))] for chains in dataset.sequences()]


def together(links: Sequence[Sequence[Hashable]]) -> Groups:
    """Group samples that share a key, directly or through others, by their first sample."""
    groups: dict[int, list[int]] = {}
    for i, root in enumerate(linked(links)):
        groups.setdefault(root, []).append(i)
    return list(groups.values())


def same_value(dataset: Splittable, column: str) -> Groups:
    """Group samples with the same value in a column, or identical sequences.

    Raises
    ------
    DataError
        If the column is missing or has blank cells.
    """
    links: list[list[Hashable]] = [
        [("group", value), *keys]
        for value, keys in zip(cells_of(dataset, column), identical(dataset), strict=True)
    ]
    return together(links)


def similar(dataset: Splittable, threshold: float) -> Groups:
    """Group samples of which any chains are similar, see `DataSplitter.by_identity`."""
    chains = dataset.sequences()
    clusters = cluster_sequences([c for sample in chains for c in sample], threshold)
    groups = together([[clusters.of[chain] for chain in sample] for sample in chains])
    _log_clusters(clusters, groups, threshold)
    return groups


def check_threshold(threshold: float) -> None:
    """Refuse a sequence identity that is no fraction.

    Raises
    ------
    ConfigError
        If it is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold must be above 0 and at most 1, got {threshold}.")


def _log_clusters(clusters: Clusters, groups: Groups, threshold: float) -> None:
    logger.info(
        "%s: %d chains in %d clusters at %.0f%% identity; %d groups of samples, the largest %d",
        clusters.method, len(clusters.of), len(set(clusters.of.values())), 100 * threshold,
        len(groups), max(map(len, groups)),
    )  # fmt: skip


def cells_of(
    dataset: Splittable, column: str, candidates: Sequence[str] | None = None
) -> list[Any]:
    """Return the values of a column without blanks.

    Raises
    ------
    DataError
        If it is missing or has blanks; `candidates` are the columns that could be meant.
    """
    if column not in dataset.metadata.columns:
        every = [str(name) for name in dataset.metadata.columns]
        known = ", ".join(every if candidates is None else candidates) or "none"
        raise DataError(
            f"The table has no column {column!r} to split by; columns that could serve: {known}."
            f"{nearest(column, every)}"
        )
    cells = dataset.metadata[column]
    blank = (cells.isna() | (cells.astype(str) == "")).to_numpy(bool)
    if blank.any():
        names = [dataset.ids[i] for i in np.flatnonzero(blank)]
        raise DataError(
            f"Column {column!r} is blank for {len(names)} of {len(dataset)} samples:\n"
            f"{listing(names)}\nFill it in, or filter these samples out."
        )
    return cells.tolist()


def times_of(dataset: Splittable, column: str) -> list[float] | list[str]:
    """Return the values of a column as numbers, or as dates that sort as texts.

    Raises
    ------
    DataError
        If the column is missing, has blanks, or holds something else.
    """
    values = cells_of(dataset, column, numeric(dataset.metadata))
    if column in numeric(dataset.metadata):
        return [float(value) for value in values]
    texts = [str(value) for value in values]
    bad = [
        f"{name}: {text!r}"
        for name, text in zip(dataset.ids, texts, strict=True)
        if not _ISO_DATE.fullmatch(text)
    ]
    if bad:
        raise DataError(
            f"Column {column!r} holds neither numbers nor dates as 2016-05-01:\n{listing(bad)}"
        )
    return texts
