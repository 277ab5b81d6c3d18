"""Structures of a trained model next to the known ones: files and scores."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_structures import SEQUENCE, chain, joined, moved

from molfun.data import read_structure
from molfun.protein import UNKNOWN_RESIDUE
from molfun.structures.folded import JUMPED, Maker
from molfun.structures.predicted import (
    residues_table,
    scores_table,
    structures_folder,
    write_predicted,
)
from molfun.structures.scoring.in_place import backbone_fape, lddt_ca, scores_in_place
from molfun.structures.scoring.score import score

MAKER = Maker(
    model="OpenFold tiny",
    software={"molfun": "1"},
    weights="some.npz",
    weights_sha256="abc",
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_in_place_are_those_of_the_written_file(tmp_path: Path) -> None:
    known = joined(chain(SEQUENCE), chain(SEQUENCE[:20], at=(12, 0, 0), seed=3))
    mask = known.atom_mask.copy()
    mask[5, 1] = 0  # a residue without CA counts nowhere
    known = replace(known, atom_mask=mask)
    predicted = moved(replace(known, atom_mask=np.ones_like(mask) * (mask.any(-1)[:, None])), 0.8)
    positions = np.where(known.atom_mask[..., None] > 0, predicted.atom_positions, np.nan)
    result = {
        "ids": ["a/b"],
        "positions": [positions],
        "plddt": [np.linspace(20, 90, len(known))],
    }
    table = tmp_path / "predictions_val.csv"
    assert write_predicted(table, result, {"a/b": known}, MAKER) == structures_folder(table)
    (row,) = read(scores_table(table))
    written = read_structure(structures_folder(table) / "a_b.cif")
    assert written.sequence == known.sequence
    assert np.allclose(written.b_factors[:, 0], np.linspace(20, 90, len(known)), atol=0.01)
    independent = score(written, known).values
    for name in ("lddt_ca", "tm_score", "gdt_ts", "rmsd"):
        assert float(row[name]) == pytest.approx(independent[name], abs=2e-3), name
    rows = read(residues_table(table))
    assert len(rows) == len(known) - 1
    assert np.mean([float(r["lddt_ca"]) for r in rows]) == pytest.approx(
        float(row["lddt_ca"]), abs=1e-4
    )


def test_fape_and_lddt_are_those_of_openfold() -> None:
    import torch
    from openfold.utils import loss
    from openfold.utils.rigid_utils import Rigid

    known = chain(SEQUENCE)
    predicted = moved(known, 1.5)
    one, other = (torch.from_numpy(p.atom_positions).double() for p in (predicted, known))
    ones = torch.ones(len(known), dtype=torch.float64)
    # as openfold's own frames of a backbone: C, CA, N
    frames = [Rigid.from_3_points(p[:, 2], p[:, 1], p[:, 0]) for p in (one, other)]
    wanted = loss.compute_fape(
        frames[0], frames[1], ones, one[:, 1], other[:, 1], ones,
        length_scale=10.0, l1_clamp_distance=10.0, eps=0.0,
    )  # fmt: skip
    assert backbone_fape(predicted, known) == pytest.approx(float(wanted), rel=1e-6)
    assert backbone_fape(moved(known, 0.0), known) == pytest.approx(0.0, abs=1e-5)
    theirs = loss.lddt_ca(one, other, torch.from_numpy(known.atom_mask).double())
    ours = lddt_ca(one[:, 1].numpy(), other[:, 1].numpy())
    assert np.allclose(ours, theirs.numpy(), atol=1e-6)


def test_too_few_atoms_have_no_score() -> None:
    known = chain("MK")
    assert all(np.isnan(value) for value in scores_in_place(known, known).values())


def test_a_prediction_without_an_atom_that_is_known_has_no_score() -> None:
    known = chain(SEQUENCE)
    mask = known.atom_mask.copy()
    mask[3] = 0
    broken = replace(known, atom_mask=mask, atom_positions=known.atom_positions * mask[..., None])
    assert all(np.isnan(value) for value in scores_in_place(broken, known).values())


def test_residues_of_unknown_type_have_no_score(tmp_path: Path) -> None:
    known = chain(SEQUENCE)
    kinds = known.aatype.copy()
    kinds[3] = UNKNOWN_RESIDUE
    known = replace(known, aatype=kinds)
    mask = known.atom_mask.copy()
    mask[3] = 0
    positions = np.where(mask[..., None] > 0, known.atom_positions, np.nan)
    result = {"ids": ["x"], "positions": [positions], "plddt": [np.full(len(known), 50.0)]}
    write_predicted(tmp_path / "t.csv", result, {"x": known}, MAKER)
    (row,) = read(scores_table(tmp_path / "t.csv"))
    assert (float(row["lddt_ca"]), float(row["fape"])) == pytest.approx((1.0, 0.0), abs=1e-4)
    assert len(read(residues_table(tmp_path / "t.csv"))) == len(known) - 1


def test_files_claim_no_passes_and_features_alone_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = chain(SEQUENCE)
    result = {
        "ids": ["x", "f"],
        "positions": [known.atom_positions] * 2,
        "plddt": [np.full(len(known), 50.0)] * 2,
    }
    write_predicted(tmp_path / "t.csv", result, {"x": known}, MAKER)
    folder = structures_folder(tmp_path / "t.csv")
    assert [path.name for path in folder.iterdir()] == ["x.cif"]
    assert "1 sample of features are not written next to the table" in caplog.text
    text = (folder / "x.cif").read_text()
    assert "recycles" not in text
    assert "OpenFold tiny, weights some.npz" in text
    assert "sha256 abc" in " ".join(text.split())
    assert "_struct.title 'x by OpenFold tiny'" in text
    words = " ".join(text.split())
    assert "recycling passes of the training" in words
    assert "made from a single sequence" in words
    write_predicted(tmp_path / "t.csv", result, {"x": known}, MAKER, aligned={"x"})
    assert "made from a single sequence" not in " ".join((folder / "x.cif").read_text().split())


def test_a_crop_and_chains_are_named_in_the_file(tmp_path: Path) -> None:
    known = joined(chain(SEQUENCE), chain(SEQUENCE[:20], at=(12, 0, 0), seed=3)).crop(30)
    result = {
        "ids": ["x"],
        "positions": [known.atom_positions],
        "plddt": [np.full(len(known), 50.0)],
    }
    write_predicted(tmp_path / "t.csv", result, {"x": known}, MAKER)
    (path,) = structures_folder(tmp_path / "t.csv").glob("*.cif")
    words = " ".join(path.read_text().split())
    assert "to 30 residues (spatial)" in words
    assert JUMPED in words


def test_a_chain_of_unknown_residues_has_no_place_in_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = joined(chain(SEQUENCE), chain(SEQUENCE[:8], at=(12, 0, 0)))
    alone = known.chain_index == 1
    kinds, mask = known.aatype.copy(), known.atom_mask.copy()
    kinds[alone], mask[alone] = UNKNOWN_RESIDUE, 0
    half = replace(known, aatype=kinds, atom_mask=mask)
    empty = half.take(np.flatnonzero(alone))
    positions = np.where(mask[..., None] > 0, known.atom_positions, np.nan)
    result = {
        "ids": ["half", "empty"],
        "positions": [positions, positions[alone]],
        "plddt": [np.full(len(known), 50.0), np.full(8, 50.0)],
    }
    folder = write_predicted(tmp_path / "t.csv", result, {"half": half, "empty": empty}, MAKER)
    assert folder is not None
    assert [path.name for path in folder.iterdir()] == ["half.cif"]
    assert len(read_structure(folder / "half.cif")) == len(SEQUENCE)
    assert "No structure is written for 1 sample of unknown residues alone: empty" in caplog.text


def test_nothing_is_written_for_other_predictions(tmp_path: Path) -> None:
    assert write_predicted(tmp_path / "x.csv", {"prediction": [1.0]}, {}, MAKER) is None
    assert not list(tmp_path.iterdir())
