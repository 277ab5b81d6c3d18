"""Split variants of one protein by where, and by how much, they differ from the wild type.

A random split asks how well values between known variants are filled in: a test variant then has
neighbours that differ from it in one residue at the same position. The splits here ask for more:
for positions that were never varied, for more mutations at once, for better proteins than any that
were measured.

A position belongs to one part. A variant that is mutated in positions of several parts goes to the
latest of these (test after validation after train), so that no training variant is mutated where a
validation or test variant is the first to be. The wild type itself is a training sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from molfun.config import check_seed
from molfun.data.folds import Fold, Plan
from molfun.data.part_sizes import sizes_of
from molfun.data.splits import AnyDataset, parts_of
from molfun.data.variant_tables import mutated_places
from molfun.errors import ConfigError, DataError
from molfun.text import counted

Places = list[frozenset[int]]
SCHEMES = ("position", "contiguous", "modulo")
"""Splits that put positions into parts."""


class VariantSplitter:
    """Ways to split variants into train, validation and test; all samples keep their order."""

    @staticmethod
    def position(
        dataset: AnyDataset,
        *,
        wild_type: str | None = None,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split by mutated position, positions in random order.

        Parameters
        ----------
        dataset
            Variants, from `SequenceDataset.from_variants` or as sequences of one length.
        wild_type
            Letters or FASTA file of the wild type, if the data set does not know it.
        val_frac, test_frac
            Fractions of the samples; 0 leaves the part empty. Whole positions are taken until a
            part is as large, so it may be larger.
        seed
            Another seed gives another split.

        Returns
        -------
        tuple
            Train, validation and test.

        Raises
        ------
        DataError
            If there is no wild type, lengths differ, or there are too few positions.

        Examples
        --------
        >>> from molfun.data import SequenceDataset
        >>> data = SequenceDataset.from_list(["AKV", "MAV", "MKA", "MKV"])
        >>> parts = VariantSplitter.position(data, wild_type="MKV", val_frac=0.25, test_frac=0.25)
        >>> [len(part) for part in parts]
        [2, 1, 1]
        """
        places = mutated_places(dataset, wild_type)
        sites = _sites(places)
        order = np.random.default_rng(check_seed(seed)).permutation(len(sites))
        chosen = [sites[i] for i in order]
        return _by_sites(dataset, places, chosen, val_frac, test_frac, fitting=True)

    @staticmethod
    def contiguous(
        dataset: AnyDataset,
        *,
        wild_type: str | None = None,
        val_frac: float = 0.1,
        test_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split by mutated position, so that each part is a stretch of the sequence.

        The validation part lies beside the test part; where they begin is random. Arguments, result
        and errors are those of `position`.
        """
        places = mutated_places(dataset, wild_type)
        sites = _sites(places)
        start = int(np.random.default_rng(check_seed(seed)).integers(max(1, len(sites))))
        return _by_sites(dataset, places, sites[start:] + sites[:start], val_frac, test_frac)

    @staticmethod
    def modulo(
        dataset: AnyDataset,
        *,
        wild_type: str | None = None,
        val_frac: float = 0.2,
        test_frac: float = 0.2,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Split by mutated position: every n-th of the mutated positions tests, the next validates.

        n is 1 over the fraction, so that 0.2 is every fifth, as in ProteinNPT: counted among the
        mutated positions, not along the sequence. Arguments, result and errors are those of
        `position`.
        """
        places = mutated_places(dataset, wild_type)
        sites = _sites(places)
        sizes_of(len(dataset), val_frac, test_frac)
        part = dict.fromkeys(sites, 0)
        for number, fraction in ((1, val_frac), (2, test_frac)):
            every = round(1 / fraction) if fraction else len(sites) + 1
            for site in sites[number % every :: every] if fraction else []:
                part[site] = number
        return _parts(dataset, places, part)

    @staticmethod
    def n_mutations(
        dataset: AnyDataset,
        *,
        wild_type: str | None = None,
        train_mutations: int = 1,
        val_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Train on variants with few mutations, and test on those with more.

        Parameters
        ----------
        dataset, wild_type
            As for `position`.
        train_mutations
            Most mutations of a training variant. The validation part is a random part of these.
        val_frac
            Fraction of the variants with few mutations that validates.
        seed
            Another seed gives another validation part.

        Raises
        ------
        DataError
            If no variant has more mutations, or too few have as few.
        """
        counts = np.array([len(places) for places in mutated_places(dataset, wild_type)])
        few = counts <= train_mutations
        what = f"variants with at most {counted(train_mutations, 'mutation')}"
        return _two(dataset, few, val_frac, seed, what, f"{counts.max(initial=0)} at most")

    @staticmethod
    def low_to_high(
        dataset: AnyDataset,
        *,
        wild_type: str | None = None,
        threshold: float | None = None,
        val_frac: float = 0.1,
        seed: int = 42,
    ) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
        """Train on variants with low labels, and test on those with high ones.

        Parameters
        ----------
        dataset, wild_type
            As for `position`; the wild type is needed if there is no threshold.
        threshold
            Training variants have labels below it; None takes the wild type's own label (its
            mean, if it was measured several times), as in FLIP's GB1.
        val_frac
            Fraction of the variants with low labels that validates.
        seed
            Another seed gives another validation part.

        Raises
        ------
        DataError
            If no label is the wild type's, labels are no numbers, or a part would be empty.
        """
        labels = np.asarray(getattr(dataset, "targets", None))
        if labels.dtype.kind != "f":
            raise DataError("The split low_to_high needs labels that are numbers.")
        if threshold is None:
            places = mutated_places(dataset, wild_type)
            own = labels[[not mutated for mutated in places]]
            if not np.isfinite(own).any():
                raise DataError(
                    "No sample is the wild type with a label, which is where high labels begin: "
                    "give threshold."
                )
            threshold = float(np.nanmean(own))
        low = labels < threshold
        return _two(dataset, low, val_frac, seed, f"labels below {threshold:g}", "none above")

    @staticmethod
    def folds(
        dataset: AnyDataset,
        scheme: str,
        n_folds: int = 5,
        *,
        wild_type: str | None = None,
        val_frac: float = 0.1,
        seed: int = 42,
    ) -> list[Fold]:
        """Make folds of positions: ``"position"``, ``"contiguous"`` or ``"modulo"``.

        Each variant is tested once. All its positions have to be in one fold, so that neither fold
        leaks into another: this is for single mutants, or for mutations that stay close together.

        Parameters
        ----------
        dataset, wild_type
            As for `position`.
        scheme
            How positions are divided: at random, in stretches, or every n-th into one fold.
        n_folds
            Number of folds.
        val_frac
            Fraction of the samples that train which chooses the epoch, whole positions.
        seed
            Seed of the random division and of the validation parts.

        Raises
        ------
        ConfigError
            If the scheme is unknown.
        DataError
            If variants are mutated in positions of several folds, or positions are too few.

        References
        ----------
        Notin et al. 2023, "ProteinNPT", NeurIPS 36, section 4.1.
        """
        if scheme not in SCHEMES:
            raise ConfigError(f"Unknown scheme {scheme!r}; known: {', '.join(SCHEMES)}.")
        places = mutated_places(dataset, wild_type)
        sites = _sites(places)
        plan = Plan(n_folds=n_folds, val_frac=val_frac, seed=seed)
        if len(sites) < n_folds:
            raise DataError(
                f"{counted(len(sites), 'mutated position')} for {n_folds} folds: too few."
            )
        number = _FOLDS[scheme](len(sites), n_folds, np.random.default_rng(seed))
        fold = dict(zip(sites, number.tolist(), strict=True))
        mixed = sum(len({fold[site] for site in mutated}) > 1 for mutated in places)
        if mixed:
            raise DataError(
                f"{mixed} of {counted(len(places), 'variant')} are mutated in positions of several "
                f"folds, and would be trained on where they are tested. Use one split by position, "
                f"which sends each to the latest part."
            )
        return _folds(places, fold, plan)


def _random_folds(n: int, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.arange(n) % n_folds)


def _stretches(n: int, n_folds: int, _: np.random.Generator) -> np.ndarray:
    return np.repeat(np.arange(n_folds), [len(p) for p in np.array_split(np.arange(n), n_folds)])


def _every(n: int, n_folds: int, _: np.random.Generator) -> np.ndarray:
    return np.arange(n) % n_folds


_FOLDS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "position": _random_folds,
    "contiguous": _stretches,
    "modulo": _every,
}


def _sites(places: Places) -> list[int]:
    return sorted({site for mutated in places for site in mutated})


def _by_sites(
    dataset: AnyDataset,
    places: Places,
    order: Sequence[int],
    val_frac: float,
    test_frac: float,
    *,
    fitting: bool = False,
) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
    """Give positions in this order to test, then to validation, until these are large enough.

    With `fitting` one that fits goes before one that does not, and the smallest where none does.
    """
    _, n_val, n_test = sizes_of(len(dataset), val_frac, test_frac)
    needed = 1 + (n_val > 0) + (n_test > 0)
    if len(order) < needed:
        raise DataError(f"{counted(len(order), 'mutated position')} for {needed} parts: too few.")
    part = dict.fromkeys(order, 0)
    left = list(order)
    counts = Counter(site for mutated in places for site in mutated)
    taken = np.zeros(len(places), bool)
    for number, size in ((2, n_test), (1, n_val)):
        while (n := _n_taken(taken, part, places, number)) < size and len(left) > number:
            site = _that_fits(left, size - n, counts) if fitting else left[0]
            left.remove(site)
            part[site] = number
        taken |= np.array([_latest(mutated, part) == number for mutated in places])
    return _parts(dataset, places, part)


def _that_fits(sites: Sequence[int], room: int, counts: Mapping[int, int]) -> int:
    """Return the first position with at most so many variants, or the one with fewest."""
    return next((s for s in sites if counts[s] <= room), min(sites, key=lambda s: counts[s]))


def _n_taken(taken: np.ndarray, part: dict[int, int], places: Places, number: int) -> int:
    """Count the samples that a part has so far, without those of later parts."""
    return sum(
        not done and _latest(mutated, part) == number
        for done, mutated in zip(taken, places, strict=True)
    )


def _latest(mutated: frozenset[int], part: dict[int, int]) -> int:
    return max((part[site] for site in mutated), default=0)


def _parts(
    dataset: AnyDataset, places: Places, part: dict[int, int]
) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
    found = np.array([_latest(mutated, part) for mutated in places])
    if not (found == 0).any():
        raise DataError("All variants would test or validate: no position is left for training.")
    return parts_of(dataset, found)


def _two(
    dataset: AnyDataset, early: np.ndarray, val_frac: float, seed: int, what: str, found: str
) -> tuple[AnyDataset, AnyDataset, AnyDataset]:
    """Test what is not `early`, and validate on a random part of the rest."""
    n = int(early.sum())
    if n == len(early):
        raise DataError(f"All {n} samples are {what} ({found}): nothing is left to test.")
    if n == 0:
        raise DataError(f"There are no {what}: nothing is left to train on.")
    _, n_val, _ = sizes_of(n, val_frac, 0.0)
    part = np.where(early, 0, 2)
    rows = np.flatnonzero(early)
    part[np.random.default_rng(check_seed(seed)).permutation(rows)[:n_val]] = 1
    return parts_of(dataset, part)


def _folds(places: Places, fold: dict[int, int], plan: Plan) -> list[Fold]:
    # the wild type has no position: it trains in every fold and is tested in the first
    own = np.array([fold[min(mutated)] if mutated else 0 for mutated in places])
    found = []
    for number in range(plan.n_folds):
        rng = np.random.default_rng([plan.seed, number])
        rest = np.flatnonzero(own != number)
        sites = sorted({site for i in rest for site in places[i]})
        chosen: set[int] = set()
        n_val = round(plan.val_frac * len(rest))
        val: list[int] = []
        for site in rng.permutation(sites).tolist():
            if len(val) >= n_val:
                break
            chosen.add(site)
            val = [int(i) for i in rest if places[i] & chosen]
        train = np.setdiff1d(rest, val)
        found.append(
            Fold(
                name=f"fold_{number + 1}",
                train=train,
                val=np.array(val, np.int64),
                test=np.flatnonzero(own == number),
                number=number + 1,
            )
        )
    return found
