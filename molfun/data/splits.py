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
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from molfun.data import folds
from molfun.data.folds import Fold, NestedFold
from molfun.data.grouping import (
    Splittable,
    cells_of,
    check_threshold,
    identical,
    same_value,
    similar,
    times_of,
    together,
)
from molfun.data.part_sizes import fill, fill_by_code, sizes_of
from molfun.errors import ConfigError, DataError
from molfun.text import counted, listing

logger = logging.getLogger(__name__)

IDENTITY = 0.4
"""Identity from which sequences are similar; below 0.4 an alignment alone seldom shows a family."""
_NAMES = ("train", "validation", "test")
PART_WORDS = {
    "train": 0, "training": 0,
    "val": 1, "valid": 1, "validation": 1, "dev": 1,
    "test": 2, "testing": 2,
}  # fmt: skip


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
        sizes = sizes_of(len(dataset), val_frac, test_frac)
        if hasattr(dataset, "input_codes"):  # too many samples for lists of them
            return parts_of(dataset, fill_by_code(dataset.input_codes(), sizes, seed))
        groups = together(identical(dataset))
        return parts_of(dataset, fill(groups, sizes, seed, "groups of distinct samples"))

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
        n_train, n_val, n_test = sizes_of(len(dataset), val_frac, test_frac)
        when = times_of(dataset, year_column)
        order = sorted(range(len(dataset)), key=lambda i: (when[i], dataset.ids[i]))
        part = np.zeros(len(dataset), np.int64)
        part[order[n_train:]] = 1
        part[order[n_train + n_val :]] = 2
        _move_to_earliest(part, together(identical(dataset)))
        for number, size in ((1, n_val), (2, n_test)):
            if size and not (part == number).any():
                raise DataError(
                    f"The {_NAMES[number]} part would be empty: its {size} newest samples repeat "
                    f"sequences of earlier ones. Raise its fraction, or add newer samples."
                )
        return parts_of(dataset, part)

    @staticmethod
    def by_identity(
        dataset: AnyDataset,
        *,
        threshold: float = IDENTITY,
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
        check_threshold(threshold)
        sizes = sizes_of(len(dataset), val_frac, test_frac)
        groups = similar(dataset, threshold)
        return parts_of(dataset, fill(groups, sizes, seed, f"clusters at {threshold:.0%} identity"))

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
        sizes = sizes_of(len(dataset), val_frac, test_frac)
        groups = same_value(dataset, column)
        return parts_of(dataset, fill(groups, sizes, seed, f"groups of {column!r}"))

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
        texts = [str(value).strip().lower() for value in cells_of(dataset, column)]
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
        return parts_of(dataset, part)

    # Folds of a cross-validation: positions, for `molfun.models.cross_validate`

    @staticmethod
    def k_fold(
        dataset: Splittable,
        n_folds: int = 5,
        *,
        repeats: int = 1,
        val_frac: float = 0.1,
        seed: int = 42,
        stratify: bool = False,
    ) -> list[Fold]:
        """Make folds at random, identical sequences together.

        Parameters
        ----------
        dataset
            What to split.
        n_folds
            Number of folds; each sample is tested in exactly one.
        repeats
            Number of times that all samples are divided, each time otherwise.
        val_frac
            Fraction of what a fold does not test that chooses its epoch; 0 for none.
        seed
            Another seed gives other folds.
        stratify
            Whether each fold tests the classes in the shares that they have in the whole, by
            scikit-learn's StratifiedKFold or, where samples stay together, StratifiedGroupKFold.

        Returns
        -------
        list of Fold
            Positions for ``dataset.subset``; ``n_folds`` of each repeat.

        Raises
        ------
        ConfigError
            If a number is out of range.
        DataError
            If there are fewer groups than folds, or too few to leave any for validation.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> folds = DataSplitter.k_fold(AffinityDataset.synthetic(10), 5)
        >>> [(fold.name, len(fold.train), len(fold.val), len(fold.test)) for fold in folds[:2]]
        [('fold_1', 7, 1, 2), ('fold_2', 7, 1, 2)]
        """
        how = folds.Plan(n_folds=n_folds, repeats=repeats, val_frac=val_frac, seed=seed)
        classes = folds.classes_of(dataset) if stratify else None
        return how.folds(together(identical(dataset)), "groups of distinct samples", classes)

    @staticmethod
    def group_k_fold(
        dataset: Splittable,
        column: str,
        n_folds: int = 5,
        *,
        stratify: bool = False,
        **options: Any,
    ) -> list[Fold]:
        """Make folds in which samples with the same value in a column stay together.

        Validation samples share no value with training samples either.

        Parameters
        ----------
        dataset
            What to split.
        column
            Column of the table, a protein family for example.
        n_folds
            Number of folds.
        stratify, **options
            As in `k_fold`: ``repeats``, ``val_frac`` and ``seed``.

        Raises
        ------
        DataError
            If the column is missing or has blank cells, or there are too few groups.
        """
        how = folds.Plan(n_folds=n_folds, **options)
        classes = folds.classes_of(dataset) if stratify else None
        return how.folds(same_value(dataset, column), f"groups of {column!r}", classes)

    @staticmethod
    def identity_k_fold(
        dataset: Splittable,
        n_folds: int = 5,
        *,
        threshold: float = 0.4,
        stratify: bool = False,
        **options: Any,
    ) -> list[Fold]:
        """Make folds in which no chain is similar to a chain of another fold.

        Parameters
        ----------
        dataset
            What to split.
        n_folds
            Number of folds.
        threshold
            Sequence identity above which samples stay together, as in `by_identity`.
        stratify, **options
            As in `k_fold`: ``repeats``, ``val_frac`` and ``seed``.

        Raises
        ------
        ConfigError
            If the threshold is out of range.
        DataError
            If there are too few clusters.
        """
        check_threshold(threshold)
        how = folds.Plan(n_folds=n_folds, **options)
        what = f"clusters at {threshold:.0%} identity"
        classes = folds.classes_of(dataset) if stratify else None
        return how.folds(similar(dataset, threshold), what, classes)

    @staticmethod
    def column_folds(
        dataset: Splittable, column: str, *, val_frac: float = 0.1, seed: int = 42
    ) -> list[Fold]:
        """Make the folds that a column names, for published ones: each value is tested once.

        Parameters
        ----------
        dataset
            What to split.
        column
            Column with the number or name of the fold of each sample.
        val_frac, seed
            As in `k_fold`.

        Raises
        ------
        DataError
            If the column is missing, has blank cells, names fewer than two folds, or has the words
            for training, validation and test set.
        """
        named = sorted({str(value).strip().lower() for value in cells_of(dataset, column)})
        if set(named) <= PART_WORDS.keys():
            raise DataError(
                f"Column {column!r} names parts of the data ({', '.join(named)}), and no folds. "
                f"Name another column with folds, or make them at random."
            )
        found = folds.given(dataset, column, val_frac=val_frac, seed=seed)
        _warn_shared(dataset, folds.fold_of_each(found, len(dataset)))
        return found

    @staticmethod
    def nested(
        dataset: Splittable,
        n_folds: int = 5,
        n_inner: int = 4,
        *,
        column: str | None = None,
        threshold: float | None = None,
        val_frac: float = 0.1,
        seed: int = 42,
    ) -> list[NestedFold]:
        """Make folds within folds: the inner ones choose settings, the outer ones measure them.

        Parameters
        ----------
        dataset
            What to split.
        n_folds, n_inner
            Number of outer folds, and of inner folds in each of them.
        column, threshold
            What stays together: samples with the same value in a column, or similar ones; of
            neither, identical sequences alone.
        val_frac, seed
            As in `k_fold`.

        Returns
        -------
        list of NestedFold
            Each with the fold ``outer``, and ``inner`` folds of the samples that it does not test.

        Raises
        ------
        ConfigError
            If both `column` and `threshold` are given, or a number is out of range.
        DataError
            If there are too few groups.
        """
        if column is not None and threshold is not None:
            raise ConfigError("nested keeps together by column or by threshold: leave one out.")
        if threshold is not None:
            check_threshold(threshold)
            groups, what = similar(dataset, threshold), f"clusters at {threshold:.0%} identity"
        elif column is not None:
            groups, what = same_value(dataset, column), f"groups of {column!r}"
        else:
            groups, what = together(identical(dataset)), "groups of distinct samples"
        how = folds.Plan(n_folds=n_folds, val_frac=val_frac, seed=seed)
        return how.nested(groups, what, n_inner)


def parts_of(dataset: AnyDataset, part: np.ndarray) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
    """Return the samples whose part is 0 (train), 1 (validation) and 2 (test)."""
    train, val, test = (dataset.subset(np.flatnonzero(part == number)) for number in range(3))
    return train, val, test


# Warnings


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
    groups = together(identical(dataset))
    shared = sum(len(group) for group in groups if len(set(part[group])) > 1)
    if shared:
        logger.warning(
            "%s with the same sequence in two parts of the split.", counted(shared, "sample")
        )
