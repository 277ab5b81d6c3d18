"""Files of predicted structures, read back by gemmi, Biopython and our own reader."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB import MMCIFParser, PDBParser

from molfun.data.structures import read_structure
from molfun.protein import ATOM_NAMES, Protein
from molfun.structures.files import (
    as_one_chain,
    file_stem,
    is_complete,
    name_clashes,
    read_row,
    write_structure,
    write_summary,
)
from molfun.structures.folded import FoldedStructure, Maker
from molfun.structures.modelcif import mmcif_text
from molfun.structures.pdb import pdb_text, why_not_pdb

BACKBONE = [ATOM_NAMES.index(name) for name in ("N", "CA", "C", "O")]


def made(
    chains: list[str] | None = None, *, pae: bool = True, name: str = "x", **changes: object
) -> FoldedStructure:
    """Return a structure with the backbone atoms of a helix per chain."""
    protein = Protein.from_chains(chains or ["MKTAY", "GSHM"])
    n = len(protein)
    rng = np.random.default_rng(0)
    positions = np.zeros((n, 37, 3), np.float32)
    turn = np.arange(n) * np.pi / 1.8
    trace = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(n)], axis=-1)
    positions[:, BACKBONE] = trace[:, None] + rng.normal(0, 0.4, (n, 4, 3))
    mask = np.zeros((n, 37), np.float32)
    mask[:, BACKBONE] = 1
    protein = dataclasses.replace(protein, atom_positions=positions, atom_mask=mask, **changes)
    error = rng.uniform(0, 30, (n, n)).astype(np.float32)
    return FoldedStructure(
        id=name,
        protein=protein,
        plddt=np.linspace(20, 95, n).astype(np.float32),
        pae=error if pae else None,
        max_pae=31.75 if pae else None,
        ptm=0.62 if pae else None,
        iptm=0.41 if pae and len(protein.chain_ids) > 1 else None,
        recycles=3,
        notes=("made for a test",),
        maker=Maker(
            model="OpenFold model_1_ptm",
            software={"openfold": "0.0.1", "molfun": "0.1.0"},
            weights="finetuning_ptm_2.pt",
            weights_sha256="ab" * 32,
        ),
    )


def test_every_reader_gets_the_same_protein(tmp_path: Path) -> None:
    structure = made()
    write_structure(structure, tmp_path, plots=False)
    for file, parser in (("x.cif", MMCIFParser(QUIET=True)), ("x.pdb", PDBParser(QUIET=True))):
        own = read_structure(tmp_path / file)
        assert own.sequence == structure.protein.sequence
        assert own.chain_ids == ("A", "B")
        assert np.array_equal(own.chain_index, structure.protein.chain_index)
        assert np.abs(own.atom_positions - structure.protein.atom_positions).max() <= 1e-3
        assert np.array_equal(own.atom_mask, structure.protein.atom_mask)
        assert np.allclose(own.b_factors[:, 1], structure.plddt, atol=5e-3)
        model = gemmi.read_structure(str(tmp_path / file))[0]
        assert [chain.name for chain in model] == ["A", "B"]
        assert [len(chain) for chain in model] == [5, 4]
        theirs = parser.get_structure("x", tmp_path / file)[0]
        atoms = np.array([atom.coord for atom in theirs.get_atoms()])
        place = structure.protein.atom_positions[structure.protein.atom_mask > 0]
        # the order of atoms within a residue is that of the table
        assert np.abs(np.sort(atoms.ravel()) - np.sort(place.ravel())).max() <= 1e-3


def test_numbers_names_and_insertion_codes_survive(tmp_path: Path) -> None:
    ids = ("-2", "5", "5A", "7", "9", "100", "101", "101A", "103")
    structure = made(residue_ids=ids, chain_ids=("H", "L"))
    write_structure(structure, tmp_path, plots=False)
    for file in ("x.cif", "x.pdb"):
        model = gemmi.read_structure(str(tmp_path / file))[0]
        assert [str(residue.seqid) for chain in model for residue in chain] == list(ids)
        assert [chain.name for chain in model] == ["H", "L"]
        again = read_structure(tmp_path / file)
        assert again.residue_ids == ids
        assert again.take(np.array([1, 2])).residue_ids == ("5", "5A")


def test_the_mmcif_is_a_modelcif(tmp_path: Path) -> None:
    structure = made(name="my model")
    block = gemmi.cif.read_string(mmcif_text(structure)).sole_block()
    assert block.name == "my_model"
    assert block.find_value("_audit_conform.dict_name") == "mmcif_ma.dic"
    assert list(block.find_values("_ma_qa_metric.mode")).count("global") == 3
    local = [float(v) for v in block.find_values("_ma_qa_metric_local.metric_value")]
    assert local == pytest.approx(structure.plddt.tolist(), abs=1e-3)
    total = {
        name: float(value)
        for name, value in zip(
            ("pLDDT", "pTM", "ipTM"), block.find_values("_ma_qa_metric_global.metric_value"),
            strict=True,
        )
    }  # fmt: skip
    assert total == {"pLDDT": pytest.approx(57.5), "pTM": 0.62, "ipTM": 0.41}
    assert "ab" * 32 in block.find_values("_ma_software_parameter.value")
    assert list(block.find_values("_software.name")) == ["openfold", "molfun"]
    assert list(block.find_values("_entity.pdbx_number_of_molecules")) == ["1", "1"]
    assert block.find_value("_struct.pdbx_structure_determination_methodology") == "computational"


def test_equal_chains_are_one_entity() -> None:
    block = gemmi.cif.read_string(mmcif_text(made(["MKT", "MKT"]))).sole_block()
    assert list(block.find_values("_entity.pdbx_number_of_molecules")) == ["2"]
    assert list(block.find_values("_struct_asym.id")) == ["A", "B"]


def test_unknown_residues_are_unk(tmp_path: Path) -> None:
    write_structure(made(["MXK"]), tmp_path, plots=False)
    for file in ("x.cif", "x.pdb"):
        names = [r.name for r in gemmi.read_structure(str(tmp_path / file))[0][0]]
        assert names == ["MET", "UNK", "LYS"]


def test_confidence_and_errors_are_files(tmp_path: Path) -> None:
    structure = made()
    names = [path.name for path in write_structure(structure, tmp_path)]
    assert names == ["x.pdb", "x_confidence.json", "x_pae.npz", "x_confidence.png", "x.cif"]
    stored = json.loads((tmp_path / "x_confidence.json").read_text())
    assert stored["ptm"] == 0.62
    assert stored["iptm"] == 0.41
    assert stored["confidence"] == pytest.approx(0.8 * 0.41 + 0.2 * 0.62)
    assert stored["chains"] == ["A"] * 5 + ["B"] * 4
    assert stored["residues"] == ["1", "2", "3", "4", "5", "1", "2", "3", "4"]
    with np.load(tmp_path / "x_pae.npz") as errors:
        assert np.array_equal(errors["pae"], structure.pae)
        assert errors["max_pae"] == 31.75
    assert (tmp_path / "x_confidence.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_tm_head_there_is_no_error_file(tmp_path: Path) -> None:
    structure = made(pae=False)
    names = [path.name for path in write_structure(structure, tmp_path)]
    assert names == ["x.pdb", "x_confidence.json", "x_confidence.png", "x.cif"]
    assert json.loads((tmp_path / "x_confidence.json").read_text())["ptm"] is None
    assert structure.confidence == pytest.approx(0.575)


def test_what_a_pdb_file_cannot_hold_is_mmcif_only(tmp_path: Path) -> None:
    long = made(chain_ids=("AAAA", "B"))
    assert why_not_pdb(long) == "a PDB file holds chain names of one letter, and there is 'AAAA'"
    with pytest.raises(ValueError, match="x cannot be written as PDB"):
        pdb_text(long)
    assert "x.pdb" not in [path.name for path in write_structure(long, tmp_path, plots=False)]
    assert read_structure(tmp_path / "x.cif").chain_ids == ("AAAA", "B")
    numbered = made(["MK"], residue_ids=("9999", "10000"))
    assert "four digits" in why_not_pdb(numbered)
    # 3,000 residues of all their atoms fit, 30,000 do not
    many = made(["A" * 3000])
    assert why_not_pdb(many) == ""
    many.protein.atom_mask[:] = 1
    assert why_not_pdb(many) == "a PDB file holds 99,999 atoms, and there are 111,000"


@pytest.mark.parametrize("place", [-999.999, 9_999.999, -999.9994])
def test_coordinates_that_fit_a_pdb_file(place: float, tmp_path: Path) -> None:
    structure = made()
    structure.protein.atom_positions[0, 1] = place
    assert why_not_pdb(structure) == ""
    (tmp_path / "x.pdb").write_text(pdb_text(structure))
    again = read_structure(tmp_path / "x.pdb").atom_positions
    assert np.abs(again - structure.protein.atom_positions).max() <= 1e-3


@pytest.mark.parametrize("place", [-1_000.0, -5_000.0, -999.9996, 9_999.9996, 12_345.0])
def test_coordinates_that_do_not_fit_a_pdb_file(place: float) -> None:
    """A sign takes a column: of eight, with three decimals, three are left before the point."""
    structure = made()
    structure.protein.atom_positions[0, 1, 0] = place
    assert why_not_pdb(structure) == (
        "a PDB file holds coordinates from -999.999 to 9,999.999 angstrom"
    )


def test_chains_without_names_get_free_ones() -> None:
    structure = made(["MK", "GS", "TA"], chain_ids=("", "A", "A"))
    assert structure.chain_names() == ["B", "A", "C"]


def test_one_chain_of_several(tmp_path: Path) -> None:
    joined = as_one_chain(made())
    write_structure(joined, tmp_path, plots=False)
    again = read_structure(tmp_path / "x.cif")
    assert again.chain_ids == ("A",)
    assert again.residue_ids == tuple(str(i) for i in range(1, 10))
    assert joined.notes[-1] == "2 chains were written as one"


def test_the_summary_is_sorted_by_confidence(tmp_path: Path) -> None:
    for name, chains in (("low", ["MKTA", "GSH"]), ("high", ["MKT"])):
        write_structure(made(chains, name=name), tmp_path, plots=False)
        assert is_complete(tmp_path, name)
    rows = [read_row(tmp_path, name) for name in ("low", "high")]
    write_summary(rows, tmp_path / "summary.csv")
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert lines[0] == "id,confidence,plddt,ptm,iptm,length,chains,recycles,notes"
    assert [line.split(",")[0] for line in lines[1:]] == ["high", "low"]
    assert lines[1].endswith("3,1,3,made for a test.")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        (".hidden", "hidden"),
        ("a b/c", "a_b_c"),
        ("..", "_"),
    ],
)
def test_ids_name_files_of_the_folder_alone(name: str, stem: str) -> None:
    assert file_stem(name) == stem


def test_ids_with_equal_files_are_named() -> None:
    assert name_clashes(["a/b", "a_b", "c"]) == ["'a/b' and 'a_b' would both be a_b.cif"]
    assert name_clashes(["Prot", "prot"]) == ["'Prot' and 'prot' would both be prot.cif"]
