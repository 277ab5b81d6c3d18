"""Split pairs and sets of chains by which of their proteins were trained on.

A protein with many partners is easy to recognise: a model that only knows how often it binds looks
good on its other pairs. Park and Marcotte 2012 (Nature Methods 9, "Flaws in evaluation schemes for
pair-input computational predictions") therefore name three classes of a test pair, by whether its
proteins are in training pairs: C1 both, C2 one of them, C3 none. Here a protein stands for its
cluster of similar ones.
"""

from __future__ import annotations

import logging

import numpy as np

from molfun.config import check_seed
from molfun.data import pair_folds
from molfun.data.clusters import cluster_sequences
from molfun.data.folds import Fold
from molfun.data.grouping import Splittable, check_threshold, identical, together
from molfun.data.pair_folds import PairClass
from molfun.data.pair_parts import LEFT_OUT, c2_parts, c3_parts, clusters_of, spared
from molfun.data.part_sizes import sizes_of
from molfun.data.splits import IDENTITY, AnyDataset, parts_of
from molfun.errors import DataError
from molfun.text import counted

logger = logging.getLogger(__name__)


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
        clusters = clusters_of(dataset, threshold)
        groups = [list(rows) for rows in together(identical(dataset))]
        order = np.random.default_rng(check_seed(seed)).permutation(len(groups))
        part = spared([groups[i] for i in order], clusters, {2: n_test, 1: n_val})
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
        rng = np.random.default_rng(check_seed(seed))
        part = c2_parts(clusters_of(dataset, threshold), {2: n_test, 1: n_val}, rng)
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
        rng = np.random.default_rng(check_seed(seed))
        part = c3_parts(clusters_of(dataset, threshold), {2: n_test, 1: n_val}, rng)
        _need_parts(part, n_val, n_test, "whose proteins are all new")
        return _kept(dataset, part, "c3")

    @staticmethod
    def folds(
        dataset: Splittable,
        pair_class: PairClass = "C3",
        n_folds: int = 5,
        *,
        threshold: float = IDENTITY,
        val_frac: float = 0.1,
        seed: int = 42,
    ) -> list[Fold]:
        """Make folds whose tests are of one class, for `molfun.models.cross_validate`.

        Proteins are divided into `n_folds` parts, one of which no training sample of a fold has
        (C2, C3). Each sample is tested in at most one fold. Those of no fold, such as samples
        across two parts in C3, are counted in a warning; they train in the folds whose proteins
        they do not have. The epoch is chosen on samples of the same class.

        Parameters
        ----------
        dataset
            Samples of several chains.
        pair_class
            ``"C1"``, ``"C2"`` or ``"C3"``, in either case.
        n_folds
            Number of folds.
        threshold
            Identity from which proteins are one.
        val_frac
            Fraction of the samples without a tested protein that chooses the epoch.
        seed
            Another seed gives other folds.

        Returns
        -------
        list of Fold
            Positions for ``dataset.subset``.

        Raises
        ------
        ConfigError
            If a number is out of range, or there is no such class.
        DataError
            If samples have one chain, or a fold would test nothing or train on nothing.

        Examples
        --------
        >>> from molfun.data import SequencePairDataset
        >>> drawn = [f"{a * 9}:{b * 9}" for a, b in ("AC", "DE", "FG")]
        >>> pairs = SequencePairDataset.from_list(drawn)
        >>> folds = PairSplitter.folds(pairs, "C3", 3, val_frac=0)
        >>> [len(fold.train) for fold in folds], sorted(int(fold.test[0]) for fold in folds)
        ([2, 2, 2], [0, 1, 2])
        """
        return pair_folds.folds(
            dataset, pair_class, n_folds, threshold=threshold, val_frac=val_frac, seed=seed
        )


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
    left_out = int((part == LEFT_OUT).sum())
    if left_out:
        logger.warning(
            "The split %s leaves out %d of %s: their proteins belong to several parts.",
            name, left_out, counted(len(part), "sample"),
        )  # fmt: skip
    return parts_of(dataset, part)
