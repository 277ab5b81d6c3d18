"""Split into train, validation and test without leaks.

No method puts samples with identical sequences into different parts; complexes are identical if all
their chains are. Complexes that share only some chains stay together in `DataSplitter.by_identity`.

Sizes: the validation and test parts get ``floor(n * fraction + 0.5)`` samples each, at least one
where the fraction is above 0, and train gets the rest. Where samples have to stay together
(identical sequences, clusters, groups) a part may end up smaller, and larger only if every group is
larger than it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from molfun.config import check_seed
from molfun.data.clusters import Clusters, cluster_sequences, comparable, linked
from molfun.data.columns import numeric
from molfun.errors import ConfigError, DataError
from molfun.text import counted, listing, nearest

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_ISO_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?", re.ASCII)
_NAMES = ("train", "validation", "test")
PART_WORDS = {
    "train": 0, "training": 0,
    "val": 1, "valid": 1, "validation": 1, "dev": 1,
    "test": 2, "testing": 2,
}  # fmt: skip


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


AnyDataset = TypeVar("AnyDataset", bound=Splittable)


class DataSplitter:
    """Ways to split a data set into train, validation and test.

    All give three data sets that share the parsed structures of the first; the order of samples
    within each part is that of the data set.
    """

    @staticmethod
    def random(
        dataset: AnyDataset,
        *,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split at random, identical sequences together.

        Parameters
        ----------
        dataset
            What to split.
        val_frac, test_frac
            Fractions of the samples; 0 leaves the part empty.
        seed
            Another seed gives another split.

        Returns
        -------
        tuple
            Train, validation and test.

        Raises
        ------
        ConfigError
            If the fractions are negative or leave nothing for train.
        DataError
            If there are too few samples for the parts.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> parts = DataSplitter.random(AffinityDataset.synthetic(10))
        >>> [len(part) for part in parts]
        [8, 1, 1]
        """
        sizes = _sizes(len(dataset), val_frac, test_frac)
        groups = _together(_identical(dataset))
        return _parts(dataset, _fill(groups, sizes, seed, "groups of distinct samples"))

    @staticmethod
    def temporal(
        dataset: AnyDataset,
        *,
        year_column: str = "year",
        val_frac: float = 0.1,
        test_frac: float = 0.1,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split by time: the oldest samples train, the newest test.

        Samples of one year are ordered by id where a border cuts through the year. A sample
        whose sequence also occurs in an earlier part moves there.

        Parameters
        ----------
        dataset
            What to split.
        year_column
            Column of numbers, or of dates as ``2016-05-01``.
        val_frac, test_frac
            Fractions of the samples; 0 leaves the part empty.

        Returns
        -------
        tuple
            Train, validation and test.

        Raises
        ------
        ConfigError
            If the fractions are negative or leave nothing for train.
        DataError
            If the column is missing or has blank cells, or a part would be empty.
        """
        n_train, n_val, n_test = _sizes(len(dataset), val_frac, test_frac)
        when = _times(dataset, year_column)
        order = sorted(range(len(dataset)), key=lambda i: (when[i], dataset.ids[i]))
        part = np.zeros(len(dataset), np.int64)
        part[order[n_train:]] = 1
        part[order[n_train + n_val :]] = 2
        _move_to_earliest(part, _together(_identical(dataset)))
        for number, size in ((1, n_val), (2, n_test)):
            if size and not (part == number).any():
                raise DataError(
                    f"The {_NAMES[number]} part would be empty: its {size} newest samples repeat "
                    f"sequences of earlier ones. Raise its fraction, or add newer samples."
                )
        return _parts(dataset, part)

    @staticmethod
    def by_identity(
        dataset: AnyDataset,
        *,
        threshold: float = 0.4,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split so that no chain of one part is similar to a chain of another.

        Chains are joined by single linkage where the identical residues of their alignment make
        at least `threshold` of the shorter chain; two complexes stay together if any of their
        chains do. ``mmseqs`` does the clustering if it is on the PATH, else
        `molfun.data.clusters.cluster_by_alignment`; the log says which.

        Parameters
        ----------
        dataset
            What to split.
        threshold
            Sequence identity, above 0 and at most 1. Lower is stricter: 0.3 separates most
            families.
        val_frac, test_frac
            Fractions of the samples; 0 leaves the part empty.
        seed
            Another seed gives another choice of clusters.

        Returns
        -------
        tuple
            Train, validation and test.

        Raises
        ------
        ConfigError
            If the threshold or the fractions are out of range.
        DataError
            If there are too few clusters for the parts.
        """
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold must be above 0 and at most 1, got {threshold}.")
        sizes = _sizes(len(dataset), val_frac, test_frac)
        chains = dataset.sequences()
        clusters = cluster_sequences([c for sample in chains for c in sample], threshold)
        groups = _together([[clusters.of[chain] for chain in sample] for sample in chains])
        _log_clusters(clusters, groups, threshold)
        return _parts(dataset, _fill(groups, sizes, seed, f"clusters at {threshold:.0%} identity"))

    @staticmethod
    def by_group(
        dataset: AnyDataset,
        column: str,
        *,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split so that samples with the same value in a column stay together.

        Parameters
        ----------
        dataset
            What to split.
        column
            Column of the table, a protein family for example.
        val_frac, test_frac
            Fractions of the samples; 0 leaves the part empty.
        seed
            Another seed gives another choice of groups.

        Returns
        -------
        tuple
            Train, validation and test.

        Raises
        ------
        ConfigError
            If the fractions are negative or leave nothing for train.
        DataError
            If the column is missing or has blank cells, or there are too few groups.
        """
        sizes = _sizes(len(dataset), val_frac, test_frac)
        values = _column(dataset, column)
        links: list[list[Hashable]] = [
            [("group", value), *keys]
            for value, keys in zip(values, _identical(dataset), strict=True)
        ]
        return _parts(dataset, _fill(_together(links), sizes, seed, f"groups of {column!r}"))

    @staticmethod
    def by_column(
        dataset: AnyDataset, column: str = "split"
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split as a column of the table says, for published splits.

        Parameters
        ----------
        dataset
            What to split.
        column
            Column of ``train``, ``val`` (or ``valid``, ``validation``, ``dev``) and ``test``.
            Without any row for validation or test that part is empty.

        Returns
        -------
        tuple
            Train, validation and test.

        Raises
        ------
        DataError
            If the column is missing, has blank cells or other words, or no row is for training.
        """
        texts = [str(value).strip().lower() for value in _column(dataset, column)]
        unknown = sorted({text for text in texts if text not in PART_WORDS})
        if unknown:
            raise DataError(
                f"Column {column!r} holds {listing([repr(t) for t in unknown], 5).strip()}; "
                f"expected train, val or test."
            )
        part = np.array([PART_WORDS[text] for text in texts], np.int64)
        if not (part == 0).any():
            raise DataError(f"Column {column!r} leaves no sample for training.")
        _warn_shared(dataset, part)
        return _parts(dataset, part)


# Sizes and filling


def _sizes(n: int, val_frac: float, test_frac: float) -> tuple[int, int, int]:
    for name, fraction in (("val_frac", val_frac), ("test_frac", test_frac)):
        if not 0 <= fraction < 1:
            raise ConfigError(f"{name} must be at least 0 and below 1, got {fraction}.")
    if val_frac + test_frac >= 1:
        raise ConfigError(
            f"val_frac + test_frac must be below 1, got {val_frac} + {test_frac}; nothing would "
            f"be left for training."
        )
    n_val, n_test = (
        max(1, math.floor(n * fraction + 0.5)) if fraction > 0 else 0
        for fraction in (val_frac, test_frac)
    )
    if n - n_val - n_test < 1:
        raise DataError(_too_few(n, "samples", n_val + n_test + 1, n_val, n_test))
    return n - n_val - n_test, n_val, n_test


def _too_few(n: int, what: str, needed: int, n_val: int, n_test: int) -> str:
    parts = ["train", *(["validation"] if n_val else []), *(["test"] if n_test else [])]
    return (
        f"Cannot split {n} {what} into {', '.join(parts)}: at least {needed} are needed. Add "
        f"samples, or leave a part out with val_frac=0 or test_frac=0."
    )


def _fill(
    groups: Sequence[Sequence[int]], sizes: tuple[int, int, int], seed: int, what: str
) -> np.ndarray:
    """Return the part of each sample: groups in random order into test, validation, then train."""
    n_train, n_val, n_test = sizes
    needed = 1 + (n_val > 0) + (n_test > 0)
    if len(groups) < needed:
        raise DataError(_too_few(len(groups), what, needed, n_val, n_test))
    part = np.zeros(n_train + n_val + n_test, np.int64)
    shuffled = np.random.default_rng(check_seed(seed)).permutation(len(groups))
    left = [groups[i] for i in shuffled]
    # test first: it has to be as large as asked for, while train takes what is left
    for number, size, still_needed in ((2, n_test, 1 + (n_val > 0)), (1, n_val, 1)):
        chosen = _choose(left, size, at_most=len(left) - still_needed)
        for group in chosen:
            part[group] = number
        taken = {id(group) for group in chosen}
        left = [group for group in left if id(group) not in taken]
    return part


def _choose(groups: Sequence[Sequence[int]], size: int, *, at_most: int) -> list[Sequence[int]]:
    """Return groups in order as long as they fit; the smallest one if none fits."""
    chosen: list[Sequence[int]] = []
    room = size
    for group in groups:
        if len(group) <= room and len(chosen) < at_most:
            chosen.append(group)
            room -= len(group)
    return chosen if chosen or not size else [min(groups, key=len)]


def _parts(dataset: AnyDataset, part: np.ndarray) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
    train, val, test = (dataset.subset(np.flatnonzero(part == number)) for number in range(3))
    return train, val, test


# What stays together


def _identical(dataset: Splittable) -> list[list[Hashable]]:
    """Return one key per sample: its chains, in any order and either case."""
    return [[tuple(sorted(map(comparable, chains)))] for chains in dataset.sequences()]


def _together(links: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Group samples that share a key, directly or through others, by their first sample."""
    groups: dict[int, list[int]] = {}
    for i, root in enumerate(linked(links)):
        groups.setdefault(root, []).append(i)
    return list(groups.values())


def _move_to_earliest(part: np.ndarray, groups: Sequence[Sequence[int]]) -> None:
    moved = 0
    for group in groups:
        earliest = part[group].min()
        moved += int((part[group] != earliest).sum())
        part[group] = earliest
    if moved:
        logger.warning(
            "%s moved to an earlier part, where the sequence occurs already.",
            counted(moved, "sample"),
        )


def _warn_shared(dataset: Splittable, part: np.ndarray) -> None:
    """Warn that a split that was given may leak, and leave it as it is."""
    groups = _together(_identical(dataset))
    shared = sum(len(group) for group in groups if len(set(part[group])) > 1)
    if shared:
        logger.warning(
            "%s with the same sequence in two parts of the split.", counted(shared, "sample")
        )


def _log_clusters(clusters: Clusters, groups: Sequence[Sequence[int]], threshold: float) -> None:
    logger.info(
        "%s: %d chains in %d clusters at %.0f%% identity; %d groups of samples, the largest %d",
        clusters.method, len(clusters.of), len(set(clusters.of.values())), 100 * threshold,
        len(groups), max(map(len, groups)),
    )  # fmt: skip


# Columns


def _times(dataset: Splittable, column: str) -> list[float] | list[str]:
    values = _column(dataset, column, numeric(dataset.metadata))
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


def _column(dataset: Splittable, column: str, candidates: Sequence[str] | None = None) -> list[Any]:
    """Return the values of a column without blanks."""
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
