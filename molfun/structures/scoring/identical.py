"""Identical chains of a structure, in the order that fits a prediction.

Two chains of one sequence have no order: a prediction that has them the other way round is as good.
A crop may show other residues of each chain, and residues may lack coordinates in one of them, so
chains are compared in the structure before the crop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from molfun._shapes import Bool, Float, Int64
from molfun.protein import CA, UNKNOWN_RESIDUE, Protein
from molfun.structures.scoring.superposition import superposed

MOST_ORDERS = 120
"""Most orders that are all compared, those of five identical chains; of more, the orders that fit
where one chain is laid on another (AlphaFold-Multimer, 2.2)."""
FAR = 15.0
"""Difference of two distances in angstrom above which it counts no more."""
COMMON = 0.7
"""Share of the longer of two chains that both must have to be copies of each other."""
ABSENT = -1
"""Row of a residue that the chain in its place does not have."""


def renamed(reference: Protein, predicted: Protein) -> Protein:
    """Return a reference with the coordinates of identical chains in the order of a prediction.

    Parameters
    ----------
    reference
        Known structure; of a crop, ``reference.whole`` has the other residues of its chains.
    predicted
        Structure of the same residues in the same order.
    """
    whole = reference if reference.whole is None else reference.whole
    kind, place = copies(whole.aatype, whole.residue_index, whole.chain_index)
    order = best_order(
        kind=kind,
        place=place,
        chain=whole.chain_index,
        places=whole.atom_positions[:, CA],
        known=whole.atom_mask[:, CA] > 0,
        kept=kept_rows(reference),
        predicted=predicted.atom_positions[:, CA],
    )
    if order is None:
        return reference
    there = order != ABSENT
    return replace(
        reference,
        atom_positions=whole.atom_positions[order] * there[:, None, None],
        atom_mask=whole.atom_mask[order] * there[:, None],
    )


def kept_rows(protein: Protein) -> Int64[np.ndarray, "length"]:
    """Return the rows of the residues of a crop in the structure before it."""
    if protein.whole is None:
        return np.arange(len(protein))
    return np.searchsorted(protein.whole.positions, protein.positions)


def copies(
    aatype: Int64[np.ndarray, "n"],
    residue_index: Int64[np.ndarray, "n"],
    chain_index: Int64[np.ndarray, "n"],
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Return the kind of each residue's chain, and the place of the residue in that kind.

    Chains are copies of each other if residues of one number have one type, and both have at least
    `COMMON` of the longer one. Either may lack residues, and their numbers may begin elsewhere. A
    residue of unknown type agrees with any.

    Examples
    --------
    >>> types, numbers = np.array([3, 7, 5, 9, 7, 5, 9]), np.array([0, 1, 2, 3, 204, 205, 206])
    >>> kind, place = copies(types, numbers, np.array([0, 0, 0, 0, 1, 1, 1]))
    >>> kind.tolist(), place.tolist()
    ([0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 1, 2, 3])
    """
    kind, place = np.zeros(len(aatype), np.int64), np.zeros(len(aatype), np.int64)
    firsts: list[np.ndarray] = []  # rows of the first chain of each kind
    for name in np.unique(chain_index):
        rows = np.flatnonzero(chain_index == name)
        for number, first in enumerate(firsts):
            shift = _shift(aatype[first], place[first], aatype[rows], residue_index[rows])
            if shift is not None:
                kind[rows], place[rows] = number, residue_index[rows] - shift
                break
        else:
            kind[rows], place[rows] = len(firsts), residue_index[rows] - residue_index[rows[0]]
            firsts.append(rows)
    return kind, place


def _shift(
    types: np.ndarray, numbers: np.ndarray, other_types: np.ndarray, other_numbers: np.ndarray
) -> int | None:
    """Return by how much the numbers of a copy are larger; None for another chain."""
    if np.array_equal(types, other_types):
        shift = int(other_numbers[0] - numbers[0])
        if np.array_equal(other_numbers - shift, numbers):
            return shift
    pairs = np.nonzero(types[:, None] == other_types[None])
    if not len(pairs[0]):
        return None
    shifts, counts = np.unique(other_numbers[pairs[1]] - numbers[pairs[0]], return_counts=True)
    shift = int(shifts[counts.argmax()])
    _, here, there = np.intersect1d(numbers, other_numbers - shift, return_indices=True)
    left, right = types[here], other_types[there]
    agree = (left == right) | (left == UNKNOWN_RESIDUE) | (right == UNKNOWN_RESIDUE)
    enough = len(here) >= COMMON * max(len(types), len(other_types))
    return shift if enough and agree.all() else None


@dataclass(frozen=True)
class _Kind:
    """Chains that are copies of each other, of which a crop shows some.

    Parameters
    ----------
    rows
        (chains, places) row of each residue of each chain, `ABSENT` where it has none.
    shown
        Kept residues of each chain that the crop shows, by the number of the chain in `rows`, as
        places in the crop.
    places
        (kept,) place of each kept residue.
    """

    rows: np.ndarray
    shown: Mapping[int, np.ndarray]
    places: np.ndarray

    def of(self, shown: int, source: int) -> np.ndarray:
        """Return the rows of chain `source` for the residues that the crop shows of a chain."""
        return np.asarray(self.rows[source, self.places[self.shown[shown]]])


def best_order(
    *,
    kind: Int64[np.ndarray, "rows"],
    place: Int64[np.ndarray, "rows"],
    chain: Int64[np.ndarray, "rows"],
    places: Float[np.ndarray, "rows 3"],
    known: Bool[np.ndarray, "rows"],
    kept: Int64[np.ndarray, "kept"],
    predicted: Float[np.ndarray, "kept 3"],
) -> Int64[np.ndarray, "kept"] | None:
    """Return the row of the reference for each residue of a prediction; None to keep their order.

    Orders are compared by the distances between CA atoms: all of them, or where there are more than
    `MOST_ORDERS`, those found by laying a chain on each of its copies.

    Parameters
    ----------
    kind, place
        From `copies`.
    chain
        Chains of the residues.
    places, known
        CA atoms of the reference in angstrom, and which of them exist.
    kept
        Rows of the residues that were predicted.
    predicted
        Predicted CA atoms.

    Returns
    -------
    numpy.ndarray or None
        `ABSENT` for a residue that the chain in its place does not have.
    """
    kinds = _kinds(kind, place, chain, kept)
    if not kinds:
        return None
    distance, true = _distances(predicted), _distances(places)

    def error(order: np.ndarray) -> float:
        there = (order != ABSENT) & known[order]
        difference = np.minimum(np.abs(distance - true[np.ix_(order, order)]), FAR)
        return float(difference[np.ix_(there, there)].mean()) if there.any() else FAR

    if math.prod(math.perm(len(one.rows), len(one.shown)) for one in kinds) <= MOST_ORDERS:
        orders = _orders(kinds, kept)
    else:
        orders = _anchored(kinds, kept, places, known, predicted)
    return min(itertools.chain([kept], orders), key=error)


def _distances(places: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(places, places))


def _kinds(kind: np.ndarray, place: np.ndarray, chain: np.ndarray, kept: np.ndarray) -> list[_Kind]:
    """Return the kinds of several chains that a crop shows."""
    found = []
    for number in np.unique(kind[kept]):
        own = np.flatnonzero(kind == number)
        names = np.unique(chain[own])
        if len(names) < 2:
            continue
        least = place[own].min()  # a copy may begin before the first chain of its kind
        rows = np.full((len(names), place[own].max() - least + 1), ABSENT)
        rows[np.searchsorted(names, chain[own]), place[own] - least] = own
        of_kind = kind[kept] == number
        shown = {
            i: np.flatnonzero(of_kind & (chain[kept] == name))
            for i, name in enumerate(names)
            if (of_kind & (chain[kept] == name)).any()
        }
        found.append(_Kind(rows, shown, place[kept] - least))
    return found


Choice = tuple[int, ...]
"""Source of each chain of a kind that the crop shows."""


def _orders(kinds: list[_Kind], kept: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows of the reference in each order of identical chains."""
    each = [itertools.permutations(range(len(one.rows)), len(one.shown)) for one in kinds]
    for choices in itertools.product(*each):
        yield _rows(kinds, choices, kept)


def _anchored(
    kinds: list[_Kind],
    kept: np.ndarray,
    places: Float[np.ndarray, "rows 3"],
    known: np.ndarray,
    predicted: Float[np.ndarray, "kept 3"],
) -> Iterator[np.ndarray]:
    """Yield for each pair of identical chains an order that follows from it.

    The reference is moved so that one of its chains lies on a predicted one. The chains of each
    kind then take the order of the least distances between their centres.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    pairs = [
        (one, shown, source)
        for one in kinds
        for shown, source in itertools.product(one.shown, range(len(one.rows)))
    ]
    for one, shown, source in pairs:
        rows = one.of(shown, source)
        there = (rows != ABSENT) & known[rows]
        n = int(there.sum())
        if n < 3:
            continue
        mobile = np.concatenate([places[rows[there]], places])
        fixed = predicted[one.shown[shown][there]]
        moved = superposed(mobile, fixed, fit=np.arange(n))[n:]
        choices = []
        for each in kinds:
            wanted = np.array([predicted[own].mean(0) for own in each.shown.values()])
            centres = [
                [_centre(moved, known, each.of(i, s)) for s in range(len(each.rows))]
                for i in each.shown
            ]
            cost = [cdist(w[None], c)[0] for w, c in zip(wanted, np.array(centres), strict=True)]
            choices.append(tuple(linear_sum_assignment(np.array(cost))[1].tolist()))
        yield _rows(kinds, tuple(choices), kept)


def _centre(places: np.ndarray, known: np.ndarray, rows: np.ndarray) -> Float[np.ndarray, "3"]:
    # a chain that is not known lies nowhere: it takes what is left
    there = rows[(rows != ABSENT) & known[rows]]
    return np.asarray(places[there].mean(0) if len(there) else np.zeros(3))


def _rows(kinds: list[_Kind], choices: tuple[Choice, ...], kept: np.ndarray) -> np.ndarray:
    """Return the row of the reference for each kept residue, where chains take these sources."""
    rows = kept.copy()
    for one, choice in zip(kinds, choices, strict=True):
        for shown, source in zip(one.shown, choice, strict=True):
            rows[one.shown[shown]] = one.of(shown, source)
    return rows
