"""Colours of structures: pLDDT of a prediction, contributions, and what the model did not read."""

from __future__ import annotations

import csv
from pathlib import Path

import gemmi
import numpy as np
import pytest
from pdb_text import pdb_chain
from test_report import LARGEST, read

from molfun.data.structures import read_structure
from molfun.report import coordinates

RESIDUES = ["ALA", "GLY", "LEU", "LYS", "GLU", "TRP"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    text = "\n".join([*pdb_chain(RESIDUES), "END", ""])
    (tmp_path / "a.pdb").write_text(text)
    return tmp_path / "a.pdb"


def b_factors(text: str) -> list[float]:
    """B-factors of the alpha carbons."""
    return [float(row[60:66]) for row in text.splitlines() if row[12:16].strip() == "CA"]


def test_an_experiment_has_one_colour_per_chain(path: Path) -> None:
    structure, plddt = coordinates.read(path)
    text, mode = coordinates.coloured(structure, None, None, plddt=plddt)
    assert (mode, b_factors(text)) == ("chain", [0.0] * 6)


def test_cropped_residues_are_told_apart_by_their_coordinates(path: Path) -> None:
    structure, plddt = coordinates.read(path)
    cropped = read_structure(path).take(np.array([1, 2, 4]))
    places = coordinates.places_in(structure, cropped)
    assert places is not None
    assert places.tolist() == [-1, 0, 1, -1, 2, -1]
    values = np.array([0.2, -0.4, np.nan])
    text, mode = coordinates.coloured(structure, places, values, plddt=plddt)
    assert mode == "attribution"
    assert b_factors(text) == [-99, 25, -50, -99, 0, -99]
    moved = read_structure(path)
    moved.atom_positions[...] += 3.0
    assert coordinates.places_in(coordinates.read(path)[0], moved) is None


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_predictions_are_coloured_by_plddt(path: Path, tmp_path: Path, scale: float) -> None:
    structure = gemmi.read_structure(str(path))
    for chain in structure[0]:
        for i, residue in enumerate(chain):
            for atom in residue:
                atom.b_iso = scale * (40 + 10 * i)
    structure.info["_struct.title"] = "ALPHAFOLD MONOMER V2.0 PREDICTION FOR MYOGLOBIN (P02185)"
    structure.write_pdb(str(tmp_path / "b.pdb"))
    document = structure.make_mmcif_document()
    loop = document[0].init_loop("_ma_qa_metric.", ["id", "mode", "name", "type"])
    loop.add_row(["1", "global", "pLDDT", "pLDDT"])
    document.write_file(str(tmp_path / "c.cif"))
    for name in ("b.pdb", "c.cif"):
        found, plddt = coordinates.read(tmp_path / name)
        assert plddt
        places = coordinates.places_in(found, read_structure(tmp_path / name).take(np.arange(5)))
        # pLDDT goes before contributions
        text, mode = coordinates.coloured(found, places, np.ones(5), plddt=plddt)
        assert mode == "plddt"
        assert b_factors(text) == pytest.approx([40, 50, 60, 70, 80, -99])


def test_a_run_shows_contributions_and_crop(family: tuple[str, Path]) -> None:
    name, run = family
    if name != "structures":
        assert not (run / "attributions.csv").exists()
        return
    with (run / "attributions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == 4
    assert len(rows) == 40
    assert {row["chain"] for row in rows} == {"A"}
    assert [row["position"] for row in rows[:10]] == [str(i) for i in range(1, 11)]
    found = read(run)
    assert "raises the prediction" in found.text
    assert "not read by the model" in found.text
    assert (run / "report.html").stat().st_size <= LARGEST
