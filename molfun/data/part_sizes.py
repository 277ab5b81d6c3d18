"""Sizes of train, validation and test, and the choice of groups that fill them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from molfun.config import check_seed
from molfun.errors import ConfigError, DataError


def sizes_of(n: int, val_frac: float, test_frac: float) -> tuple[int, int, int]:
    """Return the sizes of train, validation and test.

    Raises
    ------
    ConfigError
        If a fraction is out of range, or they leave nothing for train.
    DataError
        If there are too few samples for the parts.
    """
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


def fill(
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
        chosen = choose(left, size, at_most=len(left) - still_needed)
        for group in chosen:
            part[group] = number
        taken = {id(group) for group in chosen}
        left = [group for group in left if id(group) not in taken]
    return part


def choose(groups: Sequence[Sequence[int]], size: int, *, at_most: int) -> list[Sequence[int]]:
    """Return groups in order as long as they fit; the smallest one if none fits."""
    chosen: list[Sequence[int]] = []
    room = size
    for group in groups:
        if len(group) <= room and len(chosen) < at_most:
            chosen.append(group)
            room -= len(group)
    return chosen if chosen or not size else [min(groups, key=len)]
