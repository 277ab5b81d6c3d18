"""Files that are read by columns give what the reader of records gives, or are left to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pdb_text import pdb_atom, pdb_chain, pdb_residue

from molfun.data import structures
from molfun.data.pdb_plain import read_plain
from molfun.data.structures import read_structure
from molfun.protein import Protein

SIX = "ALA GLY SER LEU LYS TRP"
CHAIN = pdb_chain(SIX)
LIGAND = pdb_atom("C1", "ATP", "A", 90, record="HETATM", xyz=(90, 0, 0))
WATER = pdb_atom("O", "HOH", "W", 1, record="HETATM")


def edited(start: int, text: str, row: int = 8) -> list[str]:
    """Return the chain with other columns in one line."""
    line = CHAIN[row]
    changed = line[:start] + text + line[start + len(text) :]
    return [*CHAIN[:row], changed, *CHAIN[row + 1 :]]


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Protein, Protein]:
    quick = read_structure(path)
    with monkeypatch.context() as patch:
        patch.setattr(structures, "read_plain", lambda *_: None)
        return quick, read_structure(path)


def assert_equal(left: Protein, right: Protein) -> None:
    for name in ("aatype", "atom_positions", "atom_mask", "b_factors", "residue_index",
                 "chain_index"):  # fmt: skip
        one, other = getattr(left, name), getattr(right, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    for name in ("name", "chain_ids", "residue_ids", "notes", "resolution"):
        assert getattr(left, name) == getattr(right, name)
    assert len(left.residue_ids) == len(left)
    assert [note.kind for note in left.notes] == [note.kind for note in right.notes]


@pytest.mark.parametrize(
    "lines",
    [
        CHAIN,
        [*CHAIN, "TER", *pdb_chain(SIX, "B"), "TER", LIGAND, WATER],
        [*CHAIN, *pdb_chain("ALA GLY SER", first=40)],
        pdb_chain(SIX, first=-3),
        ["SEQRES   1 A    8  ALA GLY SER LEU LYS TRP ALA ALA",
         "SEQRES   1 Z    2  GLY GLY", *CHAIN],
        [*CHAIN, pdb_atom("H", "TRP", number=6), pdb_atom("1HB", "TRP", number=6, element="H")],
        ["REMARK   1", *CHAIN[:3], "ANISOU    1  N   ALA A   1", "", *CHAIN[3:]],
        edited(30, " -12.345   0.000  -0.001"),
    ],
    ids=["chain", "ligand", "gap", "negative", "sequence", "hydrogens", "remarks", "minus"],
)  # fmt: skip
def test_plain_files_are_read_the_same(
    lines: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join([*lines, "END", ""])
    assert read_plain(text, "x") is not None
    path = tmp_path / "x.pdb"
    path.write_text(text)
    assert_equal(*both(path, monkeypatch))


@pytest.mark.parametrize(
    "lines",
    [
        edited(16, "B"),
        edited(26, "A"),
        edited(72, "SEG1"),
        edited(20, "AA"),
        edited(21, " "),
        edited(30, "********"),
        edited(30, "     NaN"),
        edited(60, "******"),
        edited(12, " OT1"),
        edited(17, "MSE"),
        edited(0, "atom"),
        edited(0, " ATO"),
        [line[:60] for line in CHAIN],
        ["MODEL        1", *CHAIN, "ENDMDL"],
        [*CHAIN[:12], "TER", *CHAIN[12:]],
        [*CHAIN[:12], LIGAND, *CHAIN[12:]],
        [*CHAIN, *pdb_chain(SIX)],
        [*CHAIN, pdb_atom("CA", "TRP", number=6)],
        [line for line in CHAIN if " CA " not in line],
        [*CHAIN[:-4], *pdb_residue("TRP", number=6, atoms=("N", "C"))],
        pdb_chain("ALA GLY"),
        [*CHAIN, "END", *pdb_chain(SIX, "B")],
        [*CHAIN, pdb_atom("CA", "MSE", "A", 7, record="HETATM")],
        [*CHAIN, pdb_atom("P", "DA", "D", 1, record="HETATM")],
        [*CHAIN, pdb_atom("C1", "SOL", "A", 90, record="HETATM")],
    ],
)
def test_others_are_left_to_the_reader_of_records(lines: Sequence[str]) -> None:
    assert read_plain("\n".join([*lines, "END", ""]), "x") is None


def test_a_file_that_ends_inside_a_line_is_left_to_it() -> None:
    assert read_plain("\n".join(CHAIN), "x") is None
    assert read_plain("\n".join([*CHAIN, "\u00e9", ""]), "x") is None


def test_real_complexes_are_read_the_same(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((real_data / "ppi_affinity/pdbs").glob("*.pdb"))[:12]
    assert any(read_plain(path.read_text(), "x") for path in paths)
    for path in paths:
        assert_equal(*both(path, monkeypatch))
