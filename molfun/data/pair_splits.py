"""Split pairs and sets of chains by which of their proteins were trained on.

A protein with many partners is easy to recognise: a model that only knows how often it binds looks
good on its other pairs. Park and Marcotte 2012 (Nature Methods 9, "Flaws in evaluation schemes for
pair-input computational predictions") therefore name three classes of a test pair, by whether its
proteins are in training pairs: C1 both, C2 one of them, C3 none. Here a protein stands for its
cluster of similar ones.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from molfun.config import check_seed
from molfun.data.clusters import cluster_sequences
from molfun.data.grouping import Splittable, check_threshold, identical, together
from molfun.data.part_sizes import sizes_of
from molfun.data.splits import IDENTITY, AnyDataset, parts_of
from molfun.errors import DataError
from molfun.text import counted

logger = logging.getLogger(__name__)

PairClass = Literal["C1", "C2", "C3"]
_LEFT_OUT = -1


class PairSplitter:
    """Ways to split samples of several chains into train, validation and test.

    Chains are joined to clusters as in `DataSplitter.by_identity`. Arguments and result of all
    three: a data set; ``threshold``, the identity from which proteins are one; ``val_frac`` and
    ``test_frac``, fractions of the samples; ``seed``. Train, validation and test come back, samples
    in the order of the data set. Samples that fit into no part are left out, and counted in a
    warning.
    """

    @staticmethod
    def c1(
        dataset: AnyDataset,
        *,
        threshold: float = IDENTITY,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Hold out samples all of whose proteins are in training samples too; none is left out.

        It asks how well gaps between known proteins are filled in.

        Raises
        ------
        DataError
            If no sample can be held out without taking a protein from training.
        """
        _, n_val, n_test = sizes_of(len(dataset), val_frac, test_frac)
        clusters = _clusters(dataset, threshold)
        groups = [list(rows) for rows in together(identical(dataset))]
        order = np.random.default_rng(check_seed(seed)).permutation(len(groups))
        part = _spared([groups[i] for i in order], clusters, {2: n_test, 1: n_val})
        _need_parts(part, n_val, n_test, "whose proteins all occur in other samples")
        found = int((part > 0).sum())
        if found < n_val + n_test:
            logger.warning(
                "The split c1 holds out %d of the %d samples asked for: the others have a protein "
                "that no training sample would have.", found, n_val + n_test,
            )  # fmt: skip
        return parts_of(dataset, part)

    @staticmethod
    def c2(
        dataset: AnyDataset,
        *,
        threshold: float = IDENTITY,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Hold out samples with a protein that is in training samples and one that is in none.

        It asks how a new protein binds those that are known. Samples of new proteins alone are left
        out.

        Raises
        ------
        DataError
            If a part would be empty.
        """
        _, n_val, n_test = sizes_of(len(dataset), val_frac, test_frac)
        clusters = _clusters(dataset, threshold)
        parts = _Parts(clusters, mixed=True)
        for protein in np.random.default_rng(check_seed(seed)).permutation(parts.proteins).tolist():
            number = parts.most_lacking({2: n_test, 1: n_val})
            if number is None:
                break
            if parts.keeps_partners(protein):
                parts.give([protein], number)
        part = parts.of_samples
        known = {cluster for i in np.flatnonzero(part == 0) for cluster in clusters[i]}
        for i in np.flatnonzero(part > 0):
            if not any(cluster in known for cluster in clusters[i]):
                part[i] = _LEFT_OUT  # its other protein has no training sample of its own
        _need_parts(part, n_val, n_test, "with one known and one new protein")
        return _kept(dataset, part, "c2")

    @staticmethod
    def c3(
        dataset: AnyDataset,
        *,
        threshold: float = IDENTITY,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Hold out samples none of whose proteins is in training samples.

        It asks how new proteins bind each other. Samples with proteins of two parts are left out.
        Families of samples that share no protein with others go to a part as a whole, so that none
        has to be left out where there are enough of them. Of the others, proteins with few partners
        are held out first, which leaves out fewest; the fractions are those of the samples that are
        kept. `DataSplitter.by_identity` leaves out none at all, and fails where all samples hang
        together.

        Raises
        ------
        DataError
            If a part would be empty.
        """
        _, n_val, n_test = sizes_of(len(dataset), val_frac, test_frac)
        clusters = _clusters(dataset, threshold)
        rng = np.random.default_rng(check_seed(seed))
        parts = _Parts(clusters, mixed=False)
        families = [list(rows) for rows in together([list(of_one) for of_one in clusters])]
        _give_families(parts, [families[i] for i in rng.permutation(len(families))], n_val, n_test)
        # pairs whose proteins have few partners first: fewest others are cut in two
        order = rng.permutation(len(clusters))
        order = order[np.argsort(parts.partners[order], kind="stable")]
        shares = {2: n_test / len(dataset), 1: n_val / len(dataset)}
        _give_pairs(parts, order.tolist(), shares)
        part = parts.of_samples
        _need_parts(part, n_val, n_test, "whose proteins are all new")
        return _kept(dataset, part, "c3")


def pair_classes(
    train: Splittable, held_out: Splittable, *, threshold: float = IDENTITY
) -> list[PairClass]:
    """Return the class of each held-out sample: of its proteins C1 all, C2 some, C3 none trained.

    Parameters
    ----------
    train, held_out
        Data sets of several chains per sample.
    threshold
        Identity from which proteins are one.

    Examples
    --------
    >>> from molfun.data import SequencePairDataset
    >>> a, b, c = "MKVLAAGICW" * 4, "DDEEPPNNHH" * 4, "WYWYFFHHRR" * 4
    >>> train = SequencePairDataset.from_list([f"{a}:{a}"])
    >>> pair_classes(train, SequencePairDataset.from_list([f"{a}:{b}", f"{b}:{c}"]))
    ['C2', 'C3']
    """
    check_threshold(threshold)
    ours, others = train.sequences(), held_out.sequences()
    of = cluster_sequences([c for sample in (*ours, *others) for c in sample], threshold).of
    known = {of[chain] for sample in ours for chain in sample}
    found: list[PairClass] = []
    for sample in others:
        n = sum(of[chain] in known for chain in sample)
        found.append("C1" if n == len(sample) else "C2" if n else "C3")
    return found


# Parts


def _clusters(dataset: Splittable, threshold: float) -> list[frozenset[int]]:
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


def _spared(
    groups: Sequence[list[int]], clusters: Sequence[frozenset[int]], sizes: Mapping[int, int]
) -> np.ndarray:
    """Hold groups out in order, those whose proteins all remain in training samples."""
    uses = _uses(clusters, range(len(clusters)))
    part = np.zeros(len(clusters), np.int64)
    room = dict(sizes)
    for rows in groups:
        taken = _uses(clusters, rows)
        # the part that lacks most, so that a few that can be found are shared out
        number = max(room, key=lambda n: room[n])
        if len(rows) <= room[number] and all(uses[c] > n for c, n in taken.items()):
            uses.subtract(taken)
            part[rows] = number
            room[number] -= len(rows)
    return part


def _uses(clusters: Sequence[frozenset[int]], rows: Iterable[int]) -> Counter[int]:
    """Return the number of samples with each protein."""
    return Counter(cluster for row in rows for cluster in clusters[row])


class _Parts:
    """Part of each protein, training at first, and of each sample.

    A sample belongs to the part of all its proteins; with `mixed` to that of its new ones, where
    the others train. The rest is left out.
    """

    def __init__(self, clusters: Sequence[frozenset[int]], *, mixed: bool) -> None:
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
            return max(found) if len(found) == 2 and 0 in found else _LEFT_OUT
        return found.pop() if len(found) == 1 else _LEFT_OUT

    def count(self, number: int) -> int:
        """Return the number of samples of a part."""
        return int((self.of_samples == number).sum())

    def most_lacking(self, sizes: Mapping[int, float]) -> int | None:
        """Return the part that is farthest below its size; None if no part is below."""
        lacking = {number: size - self.count(number) for number, size in sizes.items()}
        number = max(lacking, key=lambda n: lacking[n])
        return number if lacking[number] > 0 else None


def _give_families(parts: _Parts, families: Sequence[list[int]], n_val: int, n_test: int) -> None:
    """Give whole families to test and validation while they fit; training keeps the last."""
    room = {2: n_test, 1: n_val}
    for rows in families[:-1]:
        number = next((n for n, left in room.items() if len(rows) <= left), None)
        if number is not None:
            room[number] -= len(rows)
            for row in rows:
                parts.give(parts.clusters[row], number)


def _give_pairs(parts: _Parts, order: Sequence[int], shares: Mapping[int, float]) -> None:
    """Give proteins to the part that lacks most of its share of what is kept."""
    for row in order:
        kept = int((parts.of_samples != _LEFT_OUT).sum())
        number = parts.most_lacking({n: share * kept for n, share in shares.items()})
        if number is None:
            break
        if parts.holds_only_training(row) and parts.count(0) > 1:
            parts.give(parts.clusters[row], number)


def _need_parts(part: np.ndarray, n_val: int, n_test: int, what: str) -> None:
    for number, size, name in ((0, 1, "training"), (1, n_val, "validation"), (2, n_test, "test")):
        if size and not (part == number).any():
            raise DataError(
                f"The {name} part would be empty: too few samples {what if number else 'are left'}."
                f" Add samples, or leave a part out: val_frac=0 or test_frac=0 (--val-frac 0)."
            )


def _kept(
    dataset: AnyDataset, part: np.ndarray, name: str
) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
    left_out = int((part == _LEFT_OUT).sum())
    if left_out:
        logger.warning(
            "The split %s leaves out %d of %s: their proteins belong to several parts.",
            name, left_out, counted(len(part), "sample"),
        )  # fmt: skip
    return parts_of(dataset, part)
