"""Identical chains are found in any order, also where there are too many orders to try all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_structures import chain, joined, moved

from molfun.protein import Protein
from molfun.structures.rows import known_structure, own_rows, rows_of
from molfun.structures.scoring.identical import copies, renamed

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


def swapped(protein: Protein) -> Protein:
    """Return a prediction of a dimer, right but for the order of its chains."""
    return moved(in_order(protein, [1, 0]), 0.2)


def test_drawn_crops_show_other_residues_of_each_chain() -> None:
    """Windows of two chains differ, and the copy's coordinates come from outside of the crop."""
    dimer, generator = ring(2), np.random.default_rng(0)
    other = swapped(dimer)
    different = 0
    for _ in range(50):
        known = dimer.random_crop(14, "auto", generator)
        kept = np.searchsorted(dimer.positions, known.positions)
        found = renamed(known, other.take(kept))
        assert np.allclose(found.atom_positions, in_order(dimer, [1, 0]).take(kept).atom_positions)
        counts = np.bincount(known.chain_index, minlength=2)
        different += counts[0] != counts[1]
    assert different > 25


def test_a_residue_without_coordinates_in_one_chain() -> None:
    dimer = ring(2)
    lacks = dimer.take(np.delete(np.arange(len(dimer)), [0, 15]))  # one of each chain
    predicted = swapped(dimer).take(lacks.positions)
    found = renamed(lacks, predicted)
    there = found.atom_mask.any(-1)
    # what the other chain lacks counts nowhere
    assert there.tolist() == [i not in (2, 11) for i in range(len(lacks))]
    wanted = in_order(dimer, [1, 0]).take(lacks.positions)
    assert np.allclose(found.atom_positions[there], wanted.atom_positions[there])


def test_other_chains_of_some_equal_residues_are_no_copies() -> None:
    first, second = chain("MKRDEFYWGAVL", seed=1), chain("MKRDEGYWGAVL", seed=2)
    both = joined(first, second, names=("A", "B"))
    kind, _ = copies(both.aatype, both.residue_index, both.chain_index)
    assert len(set(kind.tolist())) == 2
    assert renamed(both, swapped(both)) is both


def test_labels_carry_the_copies_that_a_crop_leaves_out() -> None:
    dimer = ring(2)
    crop = dimer.random_crop(10, "contiguous", np.random.default_rng(3))
    rows = rows_of(crop)
    assert len(rows) == len(dimer)
    assert np.array_equal(own_rows(rows), rows[crop.positions], equal_nan=True)
    known = known_structure(rows)
    assert np.array_equal(known.atom_positions, crop.atom_positions)
    predicted = swapped(dimer).take(crop.positions)
    wanted = renamed(crop, predicted).atom_positions
    assert np.array_equal(renamed(known, predicted).atom_positions, wanted)
    # a chain without copies takes no room
    assert len(rows_of(ring(1).crop(5))) == 5
