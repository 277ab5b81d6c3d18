"""Folds of pairs and sets of chains whose tests are of one class of Park and Marcotte."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from molfun.data.folds import Fold, Plan
from molfun.data.grouping import Splittable, identical, together
from molfun.data.pair_parts import Clusters, c2_parts, c3_parts, clusters_of, spared, uses_of
from molfun.errors import DataError
from molfun.strict import check_choice
from molfun.text import counted

logger = logging.getLogger(__name__)

PairClass = Literal["C1", "C2", "C3"]
_WHY = {
    "C1": "each has a protein that no other sample would train",
    "C2": "their proteins are all new in one fold, or their known one is in no training sample",
    "C3": "their proteins belong to several folds",
}


def folds(
    dataset: Splittable,
    pair_class: str,
    n_folds: int,
    *,
    threshold: float,
    val_frac: float,
    seed: int,
) -> list[Fold]:
    """Return the folds; see `molfun.data.PairSplitter.folds`."""
    name = pair_class.upper()
    check_choice("class of pairs", name, get_args(PairClass))
    plan = Plan(n_folds=n_folds, val_frac=val_frac, seed=seed)
    clusters = clusters_of(dataset, threshold)
    rng = np.random.default_rng([plan.seed, 1])
    if name == "C1":
        groups = [list(rows) for rows in together(identical(dataset))]
        found = _of_known(groups, clusters, plan, rng)
    else:
        found = _of_new(clusters, plan, rng, name)
    _need_parts(found, plan, name)
    _say_left_out(found, len(clusters), name)
    return found


# C1


def _of_known(
    groups: Sequence[list[int]], clusters: Clusters, plan: Plan, rng: np.random.Generator
) -> list[Fold]:
    """Return folds that leave each tested protein in a training sample."""
    tests = _known_tests(groups, clusters, plan.n_folds, rng)
    found = []
    for number, test in enumerate(tests, start=1):
        held_out = set(test)
        rest = [rows for rows in groups if rows[0] not in held_out]
        left = sorted(row for rows in rest for row in rows)
        # places among the rows that are left: `spared` counts the uses of all that it is given
        drawn = [np.searchsorted(left, rest[i]).tolist() for i in rng.permutation(len(rest))]
        part = spared(drawn, [clusters[row] for row in left], {1: _n_val(left, plan)})
        found.append(_fold(number, left, part, test))
    return found


def _known_tests(
    groups: Sequence[list[int]], clusters: Clusters, n_folds: int, rng: np.random.Generator
) -> list[list[int]]:
    """Return the samples that each fold tests, each group in the smallest one that spares it."""
    uses = uses_of(clusters, range(len(clusters)))
    taken: list[Counter[int]] = [Counter() for _ in range(n_folds)]
    tests: list[list[int]] = [[] for _ in range(n_folds)]
    for g in rng.permutation(len(groups)).tolist():
        own = uses_of(clusters, groups[g])
        for k in sorted(range(n_folds), key=lambda k: len(tests[k])):
            if all(taken[k][c] + n < uses[c] for c, n in own.items()):
                taken[k].update(own)
                tests[k] += groups[g]
                break
    return tests


# C2 and C3


def _of_new(clusters: Clusters, plan: Plan, rng: np.random.Generator, name: str) -> list[Fold]:
    """Return folds that train on no sample with a protein of their part of the proteins."""
    part_of = _divided(clusters, plan.n_folds, rng, joins=name == "C3")
    parts = [frozenset(part_of[c] for c in of_one) for of_one in clusters]
    make = c3_parts if name == "C3" else c2_parts
    splits = []
    for k in range(plan.n_folds):
        left = [row for row, own in enumerate(parts) if k not in own]
        part = make([clusters[row] for row in left], {1: _n_val(left, plan)}, rng)
        splits.append((left, part))
    if name == "C3":
        tests = _of_one_part(parts, plan.n_folds)
    else:
        tests = _with_a_partner(clusters, parts, splits, rng)
    both = enumerate(zip(splits, tests, strict=True), start=1)
    return [_fold(number, left, part, test) for number, ((left, part), test) in both]


def _divided(
    clusters: Clusters, n_folds: int, rng: np.random.Generator, *, joins: bool
) -> dict[int, int]:
    """Return the part of each cluster, parts with about as many chains of samples.

    With `joins` partners go to one part where there is room (families whole, then as by Stanton and
    Kliot 2012, "Streaming graph partitioning for large distributed graphs", KDD); else to different
    ones.
    """
    partners: dict[int, Counter[int]] = {}
    sizes: Counter[int] = Counter()
    for of_one in clusters:
        sizes.update(of_one)
        for cluster in of_one:
            partners.setdefault(cluster, Counter()).update(of_one - {cluster})
    if len(sizes) < n_folds:
        raise DataError(
            f"Cannot divide {counted(len(sizes), 'cluster')} of similar proteins into {n_folds} "
            f"folds. Add samples, or lower the number of folds."
        )
    load = [0.0] * n_folds
    room = sum(sizes.values()) / n_folds
    part_of: dict[int, int] = {}
    for family in _families(clusters, rng):
        total = sum(sizes[c] for c in family)
        whole = joins and total <= room
        least = min(range(n_folds), key=lambda k: load[k])
        for cluster in family:
            k = least if whole else _place(partners[cluster], part_of, load, room, joins=joins)
            part_of[cluster] = k
            load[k] += sizes[cluster]
    return part_of


def _families(clusters: Clusters, rng: np.random.Generator) -> list[list[int]]:
    """Return the clusters of samples that hang together, large ones first, each from a random one.

    The clusters of a family follow their partners.
    """
    groups = together([list(of_one) for of_one in clusters])
    drawn = [groups[i] for i in rng.permutation(len(groups))]
    return [
        _walked([clusters[rows[i]] for i in rng.permutation(len(rows))])
        for rows in sorted(drawn, key=len, reverse=True)
    ]


def _walked(family: Clusters) -> list[int]:
    """Return the clusters of samples that hang together, from those of the first one on."""
    samples: dict[int, list[frozenset[int]]] = {}
    for of_one in family:
        for cluster in of_one:
            samples.setdefault(cluster, []).append(of_one)
    order = dict.fromkeys(sorted(family[0]))
    waiting = list(order)
    for cluster in waiting:  # grows along the way
        new = [c for of_one in samples[cluster] for c in sorted(of_one) if c not in order]
        waiting += dict.fromkeys(new)
        order |= dict.fromkeys(new)
    return waiting


def _place(
    partners: Counter[int],
    part_of: dict[int, int],
    load: Sequence[float],
    room: float,
    *,
    joins: bool,
) -> int:
    """Return the part of a cluster, by those of its partners and what is free."""
    near = [0.0] * len(load)
    for other, n in partners.items():
        if other in part_of:
            near[part_of[other]] += n
    free = [1 - own / room for own in load]
    if joins:
        return max(range(len(load)), key=lambda k: (near[k] * max(free[k], 0.0), free[k]))
    open_ones = [k for k in range(len(load)) if free[k] > 0] or list(range(len(load)))
    return min(open_ones, key=lambda k: (near[k], -free[k]))


def _of_one_part(parts: Sequence[frozenset[int]], n_folds: int) -> list[list[int]]:
    """Return the tests of C3: each sample in the fold of all its proteins, if it is one."""
    tests: list[list[int]] = [[] for _ in range(n_folds)]
    for row, own in enumerate(parts):
        if len(own) == 1:
            tests[min(own)].append(row)
    return tests


def _with_a_partner(
    clusters: Clusters,
    parts: Sequence[frozenset[int]],
    splits: Sequence[tuple[list[int], np.ndarray]],
    rng: np.random.Generator,
) -> list[list[int]]:
    """Return the tests of C2: each sample in the smallest fold that trains on its partner."""
    known = [
        uses_of(clusters, np.array(left, np.int64)[part == 0].tolist()).keys()
        for left, part in splits
    ]
    tests: list[list[int]] = [[] for _ in splits]
    for row in rng.permutation(len(clusters)).tolist():
        fitting = [k for k in sorted(parts[row]) if not known[k].isdisjoint(clusters[row])]
        if fitting:
            min((tests[k] for k in fitting), key=len).append(row)
    return tests


# All


def _n_val(left: Sequence[int], plan: Plan) -> int:
    if not plan.val_frac:
        return 0
    return max(1, math.floor(len(left) * plan.val_frac + 0.5))


def _fold(number: int, left: Sequence[int], part: np.ndarray, test: Sequence[int]) -> Fold:
    """Return a fold of the rows that are left with their parts, and of those it tests."""
    rows = np.array(left, np.int64)
    return Fold(
        name=f"fold_{number}",
        number=number,
        some_untested=True,
        train=rows[part == 0],
        val=rows[part == 1],
        test=np.array(sorted(test), np.int64),
    )


def _need_parts(found: Sequence[Fold], plan: Plan, name: str) -> None:
    for fold in found:
        for part in ("train", "val", "test"):
            if not len(getattr(fold, part)) and (part != "val" or plan.val_frac):
                what = {"train": "train on", "val": "validate", "test": "test"}[part]
                raise DataError(
                    f"{fold.name} of {plan.n_folds} would {what} no sample. The folds "
                    f"are of the class {name}: add samples, lower the number of folds, or leave "
                    f"validation out with val_frac=0."
                )


def _say_left_out(found: Sequence[Fold], n: int, name: str) -> None:
    """Warn of samples that no fold tests, and of those that take no part in a fold."""
    lost = n - sum(len(fold.test) for fold in found)
    if lost:
        logger.warning(
            "%d of %s are tested in no fold of %s: %s.", lost, counted(n, "sample"), name,
            _WHY[name],
        )  # fmt: skip
    idle = [n - sum(len(getattr(f, part)) for part in ("train", "val", "test")) for f in found]
    if any(idle):
        logger.warning(
            "A fold of %s uses %s of %s; the others have proteins of several of its parts.",
            name, " to ".join(map(str, sorted({n - max(idle), n - min(idle)}))),
            counted(n, "sample"),
        )  # fmt: skip
