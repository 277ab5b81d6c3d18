"""Identical chains of a structure, in the order that fits a prediction.

Two chains of one sequence have no order: a prediction that has them the other way round is as good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from molfun._shapes import Float, Int64
from molfun.protein import CA, Protein
from molfun.structures.scoring.superposition import superposed

MOST_ORDERS = 120
"""Most orders that are all compared, those of five identical chains; of more, the orders that fit
where one chain is laid on another (AlphaFold-Multimer, 2.2)."""
FAR = 15.0
"""Difference of two distances in angstrom above which it counts no more."""


def renamed(reference: Protein, predicted: Protein) -> Protein:
    """Return a reference with the coordinates of identical chains in the order of a prediction.

    Parameters
    ----------
    reference, predicted
        Structures of the same residues in the same order.
    """
    order = best_order(
        aatype=reference.aatype,
        residue_index=reference.residue_index,
        chain_index=reference.chain_index,
        places=reference.atom_positions[:, CA],
        known=reference.atom_mask[:, CA] > 0,
        predicted=predicted.atom_positions[:, CA],
    )
    if order is None:
        return reference
    return replace(
        reference,
        atom_positions=reference.atom_positions[order],
        atom_mask=reference.atom_mask[order],
    )


def best_order(
    *,
    aatype: np.ndarray,
    residue_index: np.ndarray,
    chain_index: np.ndarray,
    places: Float[np.ndarray, "n 3"],
    known: np.ndarray,
    predicted: Float[np.ndarray, "n 3"],
) -> Int64[np.ndarray, "n"] | None:
    """Return the row of the reference for each residue of a prediction; None to keep their order.

    Chains are identical if their residues have the same types and the same numbers from the first
    on. Orders are compared by the distances between CA atoms: all of them, or where there are more
    than `MOST_ORDERS`, those found by laying a chain on each of its copies.

    Parameters
    ----------
    aatype, residue_index, chain_index
        (n,) types, numbers and chains of the residues.
    places, known
        CA atoms of the reference in angstrom, and which of them exist.
    predicted
        Predicted CA atoms.
    """
    groups = [g for g in _identical(aatype, residue_index, chain_index) if len(g) > 1]
    if not groups:
        return None
    distance, true = _distances(predicted), _distances(places)

    def error(order: np.ndarray) -> float:
        there = known[order]
        difference = np.minimum(np.abs(distance - true[np.ix_(order, order)]), FAR)
        return float(difference[np.ix_(there, there)].mean()) if there.any() else 0.0

    if math.prod(math.factorial(len(group)) for group in groups) <= MOST_ORDERS:
        orders = _orders(groups, len(places))
    else:
        orders = _anchored(groups, places, known, predicted)
    return min(orders, key=error)


def _distances(places: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(places, places))


def _identical(
    aatype: np.ndarray, residue_index: np.ndarray, chain_index: np.ndarray
) -> list[list[np.ndarray]]:
    """Return the rows of each chain, those of identical chains together."""
    groups: dict[tuple[bytes, bytes], list[np.ndarray]] = {}
    for name in np.unique(chain_index):
        rows = np.flatnonzero(chain_index == name)
        number = residue_index[rows]
        key = aatype[rows].tobytes(), (number - number[0]).tobytes()
        groups.setdefault(key, []).append(rows)
    return list(groups.values())


def _orders(groups: list[list[np.ndarray]], n: int) -> Iterator[np.ndarray]:
    """Yield rows of the reference in each order of identical chains, the given order first."""
    for orders in itertools.product(*map(itertools.permutations, groups)):
        yield _rows(groups, orders, n)


def _anchored(
    groups: list[list[np.ndarray]],
    places: Float[np.ndarray, "n 3"],
    known: np.ndarray,
    predicted: Float[np.ndarray, "n 3"],
) -> Iterator[np.ndarray]:
    """Yield the given order, and for each pair of identical chains one that follows from it.

    The reference is moved so that one of its chains lies on a predicted one. Each group of chains
    then takes the order of the least distances between their centres.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    yield np.arange(len(places))
    pairs = [pair for group in groups for pair in itertools.product(group, group)]
    for source, target in pairs:
        there = known[source]
        n = int(there.sum())
        if n < 3:
            continue
        mobile = np.concatenate([places[source[there]], places])
        moved = superposed(mobile, predicted[target[there]], fit=np.arange(n))[n:]
        orders = []
        for group in groups:
            # a chain that is not known lies nowhere: it takes what is left
            centres = np.array([_centre(moved[row[known[row]]]) for row in group])
            wanted = np.array([predicted[row].mean(0) for row in group])
            _, taken = linear_sum_assignment(cdist(wanted, centres))
            orders.append(tuple(group[i] for i in taken))
        yield _rows(groups, tuple(orders), len(places))


def _centre(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3"]:
    return points.mean(0) if len(points) else np.zeros(3)


def _rows(
    groups: list[list[np.ndarray]], orders: tuple[tuple[np.ndarray, ...], ...], n: int
) -> np.ndarray:
    """Return the row of the reference for each residue, where chains take these orders."""
    rows = np.arange(n)
    for group, order in zip(groups, orders, strict=True):
        for place, source in zip(group, order, strict=True):
            rows[place] = source
    return rows
