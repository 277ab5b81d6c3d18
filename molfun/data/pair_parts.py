"""Parts of pairs and sets of chains, made by giving their proteins to parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from molfun.data.clusters import cluster_sequences
from molfun.data.grouping import Splittable, check_threshold, together
from molfun.errors import DataError

LEFT_OUT = -1
"""Part of a sample whose proteins belong to several parts."""

Clusters = Sequence[frozenset[int]]
"""Clusters of the chains of each sample."""


def clusters_of(dataset: Splittable, threshold: float) -> list[frozenset[int]]:
    """Return the clusters of the chains of each sample."""
    check_threshold(threshold)
    chains = dataset.sequences()
    if not any(len(sample) > 1 for sample in chains):
        raise DataError(
            "This split is for samples of several chains, and these have one each. Write A:B, or "
            "name both columns (--sequence-column A,B)."
        )
    of = cluster_sequences([c for sample in chains for c in sample], threshold).of
    return [frozenset(of[chain] for chain in sample) for sample in chains]


def spared(groups: Sequence[list[int]], clusters: Clusters, sizes: Mapping[int, int]) -> np.ndarray:
    """Hold groups out in order, those whose proteins all remain in training samples."""
    uses = uses_of(clusters, range(len(clusters)))
    part = np.zeros(len(clusters), np.int64)
    room = dict(sizes)
    for rows in groups:
        taken = uses_of(clusters, rows)
        # the part that lacks most, so that a few that can be found are shared out
        number = max(room, key=lambda n: room[n])
        if len(rows) <= room[number] and all(uses[c] > n for c, n in taken.items()):
            uses.subtract(taken)
            part[rows] = number
            room[number] -= len(rows)
    return part


def uses_of(clusters: Clusters, rows: Iterable[int]) -> Counter[int]:
    """Return the number of samples with each protein."""
    return Counter(cluster for row in rows for cluster in clusters[row])


class Parts:
    """Part of each protein, training at first, and of each sample.

    A sample belongs to the part of all its proteins; with `mixed` to that of its new ones, where
    the others train. The rest is left out.
    """

    def __init__(self, clusters: Clusters, *, mixed: bool) -> None:
        self.clusters, self._mixed = clusters, mixed
        self.of_samples = np.zeros(len(clusters), np.int64)
        self._of_protein: dict[int, int] = {}
        self._samples: dict[int, list[int]] = {}
        for row, of_one in enumerate(clusters):
            for protein in of_one:
                self._samples.setdefault(protein, []).append(row)

    @property
    def proteins(self) -> list[int]:
        """All proteins, ascending."""
        return sorted(self._samples)

    @property
    def partners(self) -> np.ndarray:
        """Number of samples with any protein of each sample, some of them counted twice."""
        return np.array([sum(len(self._samples[p]) for p in of_one) for of_one in self.clusters])

    def holds_only_training(self, row: int) -> bool:
        """Return whether all proteins of a sample train."""
        return self._of_protein.keys().isdisjoint(self.clusters[row])

    def keeps_partners(self, protein: int) -> bool:
        """Return whether a partner of a protein has training samples without it."""
        rows = [row for row in self._samples[protein] if self.of_samples[row] == 0]
        others = {other for row in rows for other in self.clusters[row]} - {protein}
        return any(
            self.of_samples[row] == 0 and protein not in self.clusters[row]
            for other in others
            for row in self._samples[other]
        )

    def give(self, proteins: Iterable[int], number: int) -> None:
        """Give proteins to a part."""
        changed: set[int] = set()
        for protein in proteins:
            self._of_protein[protein] = number
            changed.update(self._samples[protein])
        for row in changed:
            self.of_samples[row] = self._part_of(row)

    def _part_of(self, row: int) -> int:
        found = {self._of_protein.get(protein, 0) for protein in self.clusters[row]}
        if self._mixed and found != {0}:
            return max(found) if len(found) == 2 and 0 in found else LEFT_OUT
        return found.pop() if len(found) == 1 else LEFT_OUT

    def count(self, number: int) -> int:
        """Return the number of samples of a part."""
        return int((self.of_samples == number).sum())

    def most_lacking(self, sizes: Mapping[int, float]) -> int | None:
        """Return the part that is farthest below its size; None if no part is below."""
        lacking = {number: size - self.count(number) for number, size in sizes.items()}
        number = max(lacking, key=lambda n: lacking[n])
        return number if lacking[number] > 0 else None


def give_families(parts: Parts, families: Sequence[list[int]], sizes: Mapping[int, int]) -> None:
    """Give whole families to test and validation while they fit; training keeps the last."""
    room = dict(sizes)
    for rows in families[:-1]:
        number = next((n for n, left in room.items() if len(rows) <= left), None)
        if number is not None:
            room[number] -= len(rows)
            for row in rows:
                parts.give(parts.clusters[row], number)


def give_pairs(parts: Parts, order: Sequence[int], shares: Mapping[int, float]) -> None:
    """Give proteins to the part that lacks most of its share of what is kept."""
    for row in order:
        kept = int((parts.of_samples != LEFT_OUT).sum())
        number = parts.most_lacking({n: share * kept for n, share in shares.items()})
        if number is None:
            break
        if parts.holds_only_training(row) and parts.count(0) > 1:
            parts.give(parts.clusters[row], number)


def c2_parts(clusters: Clusters, sizes: Mapping[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the part of each sample: held out with a protein that trains and one that does not."""
    parts = Parts(clusters, mixed=True)
    for protein in rng.permutation(parts.proteins).tolist():
        number = parts.most_lacking(sizes)
        if number is None:
            break
        if parts.keeps_partners(protein):
            parts.give([protein], number)
    part = parts.of_samples
    known = {cluster for i in np.flatnonzero(part == 0).tolist() for cluster in clusters[i]}
    for i in np.flatnonzero(part > 0).tolist():
        if not any(cluster in known for cluster in clusters[i]):
            part[i] = LEFT_OUT  # its other protein has no training sample of its own
    return part


def c3_parts(clusters: Clusters, sizes: Mapping[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the part of each sample: held out with proteins none of which trains."""
    parts = Parts(clusters, mixed=False)
    families = [list(rows) for rows in together([list(of_one) for of_one in clusters])]
    give_families(parts, [families[i] for i in rng.permutation(len(families))], sizes)
    # pairs whose proteins have few partners first: fewest others are cut in two
    order = rng.permutation(len(clusters))
    order = order[np.argsort(parts.partners[order], kind="stable")]
    give_pairs(
        parts, order.tolist(), {n: size / max(len(clusters), 1) for n, size in sizes.items()}
    )
    return parts.of_samples
