"""Folds of a cross-validation: positions of the samples that train, choose the epoch, and test.

scikit-learn divides the groups; `molfun.data.grouping` says what is a group.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from molfun._shapes import Int64
from molfun.config import check_seed
from molfun.data.grouping import (
    Groups,
    Splittable,
    cells_of,
    identical,
    together,
)
from molfun.data.part_sizes import choose
from molfun.errors import ConfigError, DataError
from molfun.sample import is_missing
from molfun.text import counted

if TYPE_CHECKING:
    from collections.abc import Hashable

logger = logging.getLogger(__name__)

Positions: TypeAlias = "Int64[np.ndarray, 'samples']"


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """Positions of the samples of one fold, ascending in each part.

    Parameters
    ----------
    name
        ``"fold_1"``; with several repeats ``"repeat_1_fold_1"``.
    train, val, test
        Samples to train on, to choose the epoch by (may be empty), and to predict.
    repeat, number
        Repeat and number of the fold in it, both from 1.
    some_untested
        Whether samples of the data set may be tested in no fold, as those of pairs.
    """

    name: str
    train: Positions
    val: Positions
    test: Positions
    repeat: int = 1
    number: int = 1
    some_untested: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class NestedFold:
    """An outer fold, and inner folds of the samples that it does not test.

    Parameters
    ----------
    outer
        Fold that measures a choice of settings.
    inner
        Folds that make this choice.
    """

    outer: Fold
    inner: list[Fold]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers of a cross-validation, see `molfun.data.DataSplitter.k_fold`.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    n_folds: int = 5
    repeats: int = 1
    val_frac: float = 0.1
    seed: int = 42

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.n_folds < 2:
            raise ConfigError(f"A cross-validation has at least 2 folds, got {self.n_folds}.")
        if self.repeats < 1:
            raise ConfigError(f"repeats must be at least 1, got {self.repeats}.")
        if not 0 <= self.val_frac < 1:
            raise ConfigError(f"val_frac must be at least 0 and below 1, got {self.val_frac}.")

    def folds(self, groups: Groups, what: str, classes: Positions | None = None) -> list[Fold]:
        """Return the folds of all repeats.

        Parameters
        ----------
        groups
            Positions that stay together.
        what
            Name of the groups in errors.
        classes
            Number of the class of each sample, whose shares are to be the same in all folds.

        Raises
        ------
        DataError
            If there are too few groups.
        """
        found = []
        for repeat in range(1, self.repeats + 1):
            rng = np.random.default_rng([self.seed, repeat])
            tests = _divided(groups, self.n_folds, rng, what, classes)
            for number, tested in enumerate(tests, start=1):
                name = f"fold_{number}"
                found.append(
                    _fold(
                        groups, tested, self.val_frac, rng, what, repeat=repeat, number=number,
                        name=name if self.repeats == 1 else f"repeat_{repeat}_{name}",
                    )
                )  # fmt: skip
        return found

    def nested(self, groups: Groups, what: str, n_inner: int) -> list[NestedFold]:
        """Return outer folds, each with `n_inner` folds of the groups that it does not test."""
        inner = Plan(n_folds=n_inner, val_frac=self.val_frac, seed=self.seed)
        found = []
        for outer in self.folds(groups, what):
            tested = set(outer.test.tolist())
            rest = [group for group in groups if group[0] not in tested]
            found.append(NestedFold(outer=outer, inner=inner.folds(rest, what)))
        return found


def given(dataset: Splittable, column: str, *, val_frac: float, seed: int) -> list[Fold]:
    """Return the folds that a column names; see `molfun.data.DataSplitter.column_folds`.

    Validation samples are chosen at random, identical sequences together: which samples of a
    published fold belong together is not known.
    """
    from sklearn.model_selection import PredefinedSplit

    Plan(val_frac=val_frac, seed=seed)
    names, places = np.unique(
        [str(value) for value in cells_of(dataset, column)], return_inverse=True
    )
    if len(names) < 2:
        raise DataError(
            f"Column {column!r} names one fold, {str(names[0])!r}; at least 2 are needed, for "
            f"example the numbers 0 to 4."
        )
    links: list[list[Hashable]] = [
        [(fold, *keys)] for fold, keys in zip(places.tolist(), identical(dataset), strict=True)
    ]
    groups = together(links)
    rng = np.random.default_rng([seed, 1])
    return [
        _fold(groups, test, val_frac, rng, "groups of distinct samples",
              name=f"fold_{number}", number=number)
        for number, (_, test) in enumerate(PredefinedSplit(places).split(), start=1)
    ]  # fmt: skip


def classes_of(dataset: Any) -> Positions:
    """Return the number of the class of each sample; those without a label are a class of theirs.

    Raises
    ------
    ConfigError
        If the labels are no classes.
    """
    labels = ["" if is_missing(one) else one for one in dataset.targets]
    numbers = {one for one in labels if isinstance(one, float | np.floating)}
    if any(not isinstance(one, str | int | float | np.number) for one in labels) or any(
        not float(one).is_integer() for one in numbers
    ):
        raise ConfigError(
            "stratify keeps the shares of classes, and these labels are not one class per sample: "
            "leave it out."
        )
    return np.unique([str(one) for one in labels], return_inverse=True)[1]


def fold_of_each(folds: Iterable[Fold], n: int) -> Positions:
    """Return the number of the fold that tests each of `n` samples, of one repeat."""
    number = np.zeros(n, np.int64)
    for fold in folds:
        number[fold.test] = fold.number
    return number


def _divided(
    groups: Groups,
    n_folds: int,
    rng: np.random.Generator,
    what: str,
    classes: Positions | None = None,
) -> list[Positions]:
    """Return the positions that each fold tests, folds as equal in size as the groups allow."""
    if len(groups) < n_folds:
        raise DataError(
            f"Cannot divide {len(groups)} {what} into {n_folds} folds. Add samples, or lower the "
            f"number of folds."
        )
    labels = np.zeros(sum(map(len, groups)), np.int64)
    positions = np.zeros(len(labels), np.int64)
    # GroupKFold puts the largest group into the smallest fold, and groups of equal size in the
    # order of their labels: with labels in random order the folds are random and still balanced
    at = 0
    for label, group in zip(rng.permutation(len(groups)), groups, strict=True):
        labels[at : at + len(group)] = label
        positions[at : at + len(group)] = group
        at += len(group)
    parts = None
    if classes is not None:
        parts = _stratified(labels, classes[positions], n_folds, rng)
    return [np.sort(positions[test]) for test in parts or _equal(labels, n_folds)]


def _equal(groups: Positions, n_folds: int) -> list[Positions]:
    """Return folds of about equal size."""
    from sklearn.model_selection import GroupKFold

    return [test for _, test in GroupKFold(n_splits=n_folds).split(groups, groups=groups)]


def _stratified(
    groups: Positions, classes: Positions, n_folds: int, rng: np.random.Generator
) -> list[Positions] | None:
    """Return folds with about equal shares of the classes; None where the groups give none."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    rarest = int(np.unique(classes, return_counts=True)[1].min())
    if rarest < n_folds:
        logger.warning(
            "The rarest class has %s for %d folds: some folds test none of it.",
            counted(rarest, "sample"), n_folds,
        )  # fmt: skip
    if np.unique(classes, return_counts=True)[1].max() < n_folds:
        return None
    whole = len(np.unique(groups)) < len(groups)
    make = StratifiedGroupKFold if whole else StratifiedKFold
    splitter = make(n_splits=n_folds, shuffle=True, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the rarest class: said above
        parts = [test for _, test in splitter.split(classes, classes, groups)]
    # few groups of mixed classes may leave a fold without any
    return parts if all(len(test) for test in parts) else None


def _fold(
    groups: Groups,
    test: np.ndarray,
    val_frac: float,
    rng: np.random.Generator,
    what: str,
    *,
    name: str,
    repeat: int = 1,
    number: int = 1,
) -> Fold:
    """Return the fold that tests `test`; part of the other groups chooses the epoch."""
    tested = set(np.asarray(test).tolist())
    rest = [group for group in groups if group[0] not in tested]
    n_rest = sum(map(len, rest))
    n_val = max(1, math.floor(n_rest * val_frac + 0.5)) if val_frac > 0 else 0
    if len(rest) < 1 + (n_val > 0):
        raise DataError(
            f"{name} would train on none of {len(groups)} {what}: validation takes the last one. "
            f"Add samples, or leave validation out with val_frac=0."
        )
    val = _some_of(rest, n_val, rng)
    return Fold(
        name=name, repeat=repeat, number=number,
        train=np.setdiff1d(np.concatenate(rest), val), val=val, test=np.sort(test),
    )  # fmt: skip


def _some_of(groups: Groups, n: int, rng: np.random.Generator) -> Positions:
    """Return the positions of random groups with `n` samples together, or a few less."""
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    chosen = choose(shuffled, n, at_most=len(shuffled) - 1)
    return np.array(sorted(i for group in chosen for i in group), np.int64)
