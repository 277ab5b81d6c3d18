"""Identical chains of a structure, in the order that fits a prediction.

Two chains of one sequence have no order: a prediction that has them the other way round is as good.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from molfun._shapes import Float, Int64
from molfun.protein import CA, Protein

MOST_ORDERS = 120
"""Most orders that are compared: all those of five identical chains."""
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
    on. All orders are compared by the distances between CA atoms.

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

    return min(_orders(groups, len(places)), key=error)


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
    each = [itertools.permutations(group) for group in groups]
    for orders in itertools.islice(itertools.product(*each), MOST_ORDERS):
        rows = np.arange(n)
        for group, order in zip(groups, orders, strict=True):
            for place, source in zip(group, order, strict=True):
                rows[place] = source
        yield rows
