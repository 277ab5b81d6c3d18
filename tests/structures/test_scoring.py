"""Scores of structures, against values by hand and against independent programs."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from made_structures import LOCAL, SEQUENCE, chain, joined, moved, written
from openfold.utils.validation_metrics import gdt_ha, gdt_ts

from molfun.errors import DataError
from molfun.protein import CA, Protein
from molfun.structures import score
from molfun.structures.scoring import geometry
from molfun.structures.scoring.pairing import paired
from molfun.structures.scoring.superposition import GDT_HA, gdt, superposed, tm_score


def test_a_moved_copy_is_perfect() -> None:
    reference = chain(SEQUENCE)
    values = score(moved(reference, 0), reference).values
    for name in ("lddt_ca", "lddt", "tm_score", "gdt_ts", "gdt_ha"):
        assert values[name] == pytest.approx(1, abs=1e-4)
    assert values["rmsd"] == pytest.approx(0, abs=1e-4)
    assert values["residues"] == values["paired"] == len(SEQUENCE)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_lddt_is_the_share_of_preserved_distances(noise: float) -> None:
    reference = chain(SEQUENCE)
    predicted = moved(reference, noise)
    found = score(predicted, reference)
    tables = [
        np.linalg.norm(p.atom_positions[:, None, CA] - p.atom_positions[None, :, CA], axis=-1)
        for p in (reference, predicted)
    ]
    near = (tables[0] < 15) & ~np.eye(len(reference), dtype=bool)
    kept = np.mean([np.abs(tables[0] - tables[1]) < c for c in (0.5, 1, 2, 4)], axis=0)
    assert found.values["lddt_ca"] == pytest.approx((kept * near).sum() / near.sum(), abs=1e-6)
    by_row = (kept * near).sum(1) / near.sum(1)
    assert [row["lddt_ca"] for row in found.residues] == pytest.approx(by_row.tolist(), abs=1e-6)


def test_gdt_is_openfolds() -> None:
    reference = chain(SEQUENCE)
    predicted = moved(reference, 1.5)
    mobile = predicted.atom_positions[:, CA].astype(np.float64)
    fixed = reference.atom_positions[:, CA].astype(np.float64)
    placed = torch.from_numpy(superposed(mobile, fixed))
    mask = torch.ones(len(fixed))
    assert gdt(mobile, fixed, len(fixed)) == pytest.approx(
        float(gdt_ts(placed, torch.from_numpy(fixed), mask))
    )
    assert gdt(mobile, fixed, len(fixed), GDT_HA) == pytest.approx(
        float(gdt_ha(placed, torch.from_numpy(fixed), mask))
    )


def test_the_tm_score_finds_the_half_that_fits() -> None:
    """One superposition of all residues does not show what a hinge leaves in place."""
    reference = chain(SEQUENCE * 2)
    n = len(reference)
    predicted = moved(reference, 30, rows=slice(n // 2, None))
    mobile = predicted.atom_positions[:, CA].astype(np.float64)
    fixed = reference.atom_positions[:, CA].astype(np.float64)
    found = tm_score(mobile, fixed, n)
    assert 0.5 <= found < 0.6
    whole = np.linalg.norm(superposed(mobile, fixed) - fixed, axis=-1)
    scale = 1.24 * (n - 15) ** (1 / 3) - 1.8
    assert found > (1 / (1 + (whole / scale) ** 2)).mean()


def test_residues_that_are_missing_count_as_wrong() -> None:
    reference = chain(SEQUENCE)
    found = score(reference.take(np.arange(11, 44)), reference)
    assert found.values["paired"] == 33
    assert found.values["tm_score"] == pytest.approx(0.75, abs=1e-3)
    assert found.values["gdt_ts"] == pytest.approx(0.75)
    assert found.notes == ["the prediction lacks 11 residues of the reference"]
    assert np.isnan(found.residues[0]["ca_distance"])
    assert found.residues[11]["ca_distance"] == pytest.approx(0, abs=1e-5)


def test_equal_chains_are_paired_by_place() -> None:
    one, two = chain(SEQUENCE), chain(SEQUENCE, at=(30, 0, 0), seed=3)
    reference = joined(one, two)
    swapped = joined(two, one, names=("X", "Y"))
    assert paired(swapped, reference).chains == {0: 1, 1: 0}
    values = score(swapped, reference).values
    assert values["rmsd"] == pytest.approx(0, abs=1e-4)


def test_a_ring_of_equal_chains_in_another_order() -> None:
    """Eight chains have 40,320 orders."""
    turns = [2 * np.pi * k / 8 for k in range(8)]
    ring = [
        chain(SEQUENCE, at=(40 * np.cos(t), 40 * np.sin(t), 0), seed=k) for k, t in enumerate(turns)
    ]
    names = tuple("ABCDEFGH")
    order = np.random.default_rng(0).permutation(8)
    reference = joined(*ring, names=names)
    shuffled = joined(*(ring[i] for i in order), names=names)
    found = paired(moved(shuffled, 0.2), reference)
    assert found.chains == {int(r): place for place, r in enumerate(order)}


def test_chains_that_only_one_structure_has_are_named() -> None:
    one, two = chain(SEQUENCE), chain("GSHMKKLLPTAAAGLLLLAAQPAMA", at=(9, 0, 0), seed=3)
    found = score(one, joined(one, two))
    assert found.notes == ["the prediction has no chain for B of the reference"]
    found = score(joined(one, two), one)
    assert found.notes == ["the reference has no chain for B of the prediction"]


def complex_of_three() -> Protein:
    """Return three chains side by side, of which A and C do not touch."""
    return joined(
        chain(SEQUENCE),
        chain("GSHMKKLLPTAAAGLLLLAAQPAMA", at=(9, 0, 0), seed=3),
        chain("WYWPGDNECWYHHKKDDEEPPGWWY", at=(19, 0, 0), seed=5),
    )


def contacts(protein: Protein, one: int, other: int) -> np.ndarray:
    """Return (one, other): which residues of two chains have atoms within 5 angstrom."""
    rows = [np.flatnonzero(protein.chain_index == number) for number in (one, other)]
    first, second = (protein.atom_positions[row][:, : len(LOCAL)] for row in rows)
    gap = np.linalg.norm(first[:, None, :, None] - second[None, :, None, :], axis=-1)
    return np.asarray((gap <= 5).any((2, 3)))


def test_contacts_of_missing_residues_are_missed() -> None:
    reference = complex_of_three().take(np.arange(len(SEQUENCE) + 25))
    native = contacts(reference, 0, 1)
    (whole,) = score(moved(reference, 0), reference).interfaces
    assert (whole.fnat, whole.contacts) == (1, native.sum())
    assert whole.dockq == pytest.approx(1, abs=1e-4)
    # the prediction is right but lacks the half of B that is nearer to its start
    lacking = np.arange(12)
    kept = np.setdiff1d(np.arange(len(reference)), len(SEQUENCE) + lacking)
    assert 0 < native[:, lacking].sum() < native.sum()
    (part,) = score(moved(reference.take(kept), 0), reference).interfaces
    assert part.contacts == native.sum()
    assert part.fnat == pytest.approx(1 - native[:, lacking].sum() / native.sum())
    assert part.dockq == pytest.approx((part.fnat + 2) / 3, abs=1e-4)


def test_an_interface_of_a_missing_chain_has_no_dockq() -> None:
    reference = complex_of_three()
    found = score(moved(reference.take(np.arange(len(SEQUENCE) + 25)), 0), reference)
    ab, bc = found.interfaces
    assert (ab.chains, bc.chains) == (("A", "B"), ("B", "C"))
    assert ab.dockq == pytest.approx(1, abs=1e-4)
    assert (bc.dockq, bc.fnat, bc.contacts) == (0, 0, contacts(reference, 1, 2).sum())
    assert np.isnan([bc.irmsd, bc.lrmsd]).all()
    assert found.values["dockq"] == pytest.approx(0.5, abs=1e-4)


def test_an_interface_without_backbone_atoms_in_the_prediction() -> None:
    """No superposition is possible, which is no reason to fail."""
    reference = complex_of_three().take(np.arange(len(SEQUENCE) + 25))
    predicted = moved(reference, 0)
    predicted.atom_mask[len(SEQUENCE) :, [0, 1, 2, 4]] = 0
    (found,) = score(predicted, reference).interfaces
    assert np.isnan([found.irmsd, found.lrmsd]).all()
    assert found.dockq == pytest.approx(found.fnat / 3)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="have no chain in common"):
        score(chain("GGGGGGGGGG"), chain(SEQUENCE))
    with pytest.raises(DataError, match="have 2 CA atoms in common; a superposition needs 3"):
        score(chain("MK"), chain("MK"))


def test_clashes_and_bonds() -> None:
    protein = chain("AAAA")
    spread = protein.atom_positions.copy()
    for i in range(4):
        spread[i, :5] = LOCAL + np.array([20.0 * i, 0, 0])
    apart = dataclasses.replace(protein, atom_positions=spread)
    assert geometry.clashes(apart) == 0
    assert geometry.wrong_bonds(apart) == 3
    close = spread.copy()
    close[2, 1] = spread[0, 1] + np.array([0.5, 0, 0])
    assert geometry.clashes(dataclasses.replace(protein, atom_positions=close)) >= 1
    joined_bond = spread.copy()
    joined_bond[1, 0] = spread[0, 2] + np.array([0.5, -1.231, 0])
    assert geometry.wrong_bonds(dataclasses.replace(protein, atom_positions=joined_bond)) == 2
    assert geometry.clashes(dataclasses.replace(protein, atom_positions=joined_bond)) == 0


@pytest.mark.skipif(shutil.which("TMscore") is None, reason="TMscore is not installed (tm-align)")
@pytest.mark.parametrize("noise", [0.5, 2.0, 4.0])
def test_tm_score_is_that_of_its_authors_program(noise: float, tmp_path: Path) -> None:
    reference = chain(SEQUENCE * 2)
    predicted = moved(reference, noise)
    files = [written(predicted, tmp_path / "p.pdb"), written(reference, tmp_path / "r.pdb")]
    theirs = subprocess.run(["TMscore", *files], capture_output=True, text=True, check=True).stdout
    expected = float(re.search(r"^TM-score\s+= ([\d.]+)", theirs, re.MULTILINE)[1])
    assert score(predicted, reference).values["tm_score"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.skipif(shutil.which("DockQ") is None, reason="DockQ is not on the PATH")
@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_dockq_is_that_of_its_authors_program(noise: float, tmp_path: Path) -> None:
    reference = joined(chain(SEQUENCE), chain("GSHMKKLLPTAAAGLLLLAAQPAMA", at=(9, 0, 0), seed=3))
    rows = slice(len(SEQUENCE), None)
    predicted = moved(reference, noise, rows=rows)
    files = [written(predicted, tmp_path / "p.pdb"), written(reference, tmp_path / "r.pdb")]
    theirs = subprocess.run(["DockQ", *files], capture_output=True, text=True, check=True).stdout
    (own,) = score(predicted, reference).interfaces
    for name, value in (
        ("DockQ", own.dockq), ("iRMSD", own.irmsd), ("LRMSD", own.lrmsd), ("fnat", own.fnat)
    ):  # fmt: skip
        expected = float(re.search(rf"^\s+{name}: ([\d.]+)", theirs, re.MULTILINE)[1])
        assert value == pytest.approx(expected, abs=2e-3)
