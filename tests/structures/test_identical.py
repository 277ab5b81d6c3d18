"""Identical chains are found in any order, also where there are too many orders to try all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_structures import chain, joined, moved

from molfun.protein import Protein
from molfun.structures.scoring.identical import renamed

SEQUENCE = "MKRDEFYWGAVL"


def ring(copies: int, others: int = 0) -> Protein:
    """Return copies of a chain at places of their own, and of another chain next to them."""
    rng = np.random.default_rng(0)
    places = [tuple(p) for p in rng.normal(0, 30, (copies + others, 3))]
    made = [
        chain(SEQUENCE if i < copies else SEQUENCE[:7], at=place, seed=3)
        for i, place in enumerate(places)
    ]
    return joined(*made, names=tuple("ABCDEFGHIJ"[: len(made)]))


def in_order(protein: Protein, order: list[int]) -> Protein:
    """Return a structure whose chains have the coordinates of others."""
    rows = np.concatenate([np.flatnonzero(protein.chain_index == i) for i in order])
    return replace(
        protein,
        atom_positions=protein.atom_positions[rows],
        atom_mask=protein.atom_mask[rows],
    )


@pytest.mark.parametrize(
    ("copies", "others", "order"),
    [
        (3, 0, [2, 0, 1]),
        (6, 0, [3, 5, 0, 1, 4, 2]),  # 720 orders
        (4, 4, [2, 3, 1, 0, 7, 4, 6, 5]),  # 576 orders of two groups
    ],
)
def test_chains_are_put_in_the_order_of_a_prediction(
    copies: int, others: int, order: list[int]
) -> None:
    known = ring(copies, others)
    predicted = moved(known, 0.5)
    found = renamed(in_order(known, order), predicted)
    assert np.allclose(found.atom_positions, known.atom_positions)
    # and the given order is kept where it is the best
    assert np.allclose(renamed(known, predicted).atom_positions, known.atom_positions)


def test_a_chain_that_is_not_known_takes_the_place_that_is_left() -> None:
    known = ring(6)
    mask = known.atom_mask.copy()
    mask[known.chain_index == 4] = 0
    part = replace(known, atom_mask=mask, atom_positions=known.atom_positions * mask[..., None])
    found = renamed(in_order(part, [3, 5, 0, 1, 4, 2]), moved(known, 0.5))
    assert np.array_equal(found.atom_mask, part.atom_mask)
    assert np.allclose(found.atom_positions, part.atom_positions)
