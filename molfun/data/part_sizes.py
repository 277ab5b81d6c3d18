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


def fill_by_code(codes: np.ndarray, sizes: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return the part of each sample as `fill` does, from a number that identical samples share.

    The samples of the smallest codes, mixed with the seed, are the test part, and the next ones the
    validation part: in a few bytes of memory per sample, for as many as are never listed.

    Raises
    ------
    DataError
        If samples repeat each other so often that a part would be empty.

    Examples
    --------
    >>> codes = np.arange(1000, dtype=np.uint64) // 2
    >>> part = fill_by_code(codes, (800, 100, 100), seed=0)
    >>> np.bincount(part).tolist(), bool((part[::2] == part[1::2]).all())
    ([800, 100, 100], True)
    """
    _, n_val, n_test = sizes
    mixed = _mixed(codes, check_seed(seed))
    part = np.zeros(len(codes), np.uint8)
    for number, size in ((2, n_test), (1, n_val)):
        if size:
            part[_smallest(mixed, part == 0, size, sizes)] = number
    return part


def _smallest(
    mixed: np.ndarray, left: np.ndarray, size: int, sizes: tuple[int, int, int]
) -> np.ndarray:
    """Return which of the samples that are `left` have the `size` smallest codes."""
    rest = mixed[left]
    # the first code beyond the part: samples that have it stay together, beyond it
    place = min(size, len(rest) - 1)
    chosen: np.ndarray = left & (mixed < np.partition(rest, place)[place])
    if not chosen.any():  # the first samples repeat each other
        found, counts = np.unique(rest, return_counts=True)
        if len(found) < 2:
            _, n_val, n_test = sizes
            needed = 1 + (n_val > 0) + (n_test > 0)
            distinct = len(np.unique(mixed))
            raise DataError(_too_few(distinct, "groups of distinct samples", needed, n_val, n_test))
        chosen = left & (mixed == found[counts.argmin()])
    return chosen


def _mixed(codes: np.ndarray, seed: int) -> np.ndarray:
    """Return the upper half of each code, mixed with the seed by SplitMix64's finaliser."""
    found = np.empty(len(codes), np.uint32)
    for start in range(0, len(codes), 2**16):
        x = codes[start : start + 2**16].astype(np.uint64) + np.uint64(
            (seed * 0x9E3779B97F4A7C15 + 1) % 2**64
        )
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        found[start : start + 2**16] = x >> np.uint64(32)
    return found


def choose(groups: Sequence[Sequence[int]], size: int, *, at_most: int) -> list[Sequence[int]]:
    """Return groups in order as long as they fit; the smallest one if none fits."""
    chosen: list[Sequence[int]] = []
    room = size
    for group in groups:
        if len(group) <= room and len(chosen) < at_most:
            chosen.append(group)
            room -= len(group)
    return chosen if chosen or not size else [min(groups, key=len)]
