"""Structures: what counts as protein, how it is numbered, and what is refused."""

from __future__ import annotations

import gzip

import gemmi
import numpy as np
import pytest
from pdb_text import BACKBONE, STEP, pdb_atom, pdb_chain, pdb_residue

from molfun.data.structures import find_structure, read_structure
from molfun.errors import ConfigError, DataError, StructureError, UnsafeFileError
from molfun.protein import ATOM_NAMES, CHAIN_GAP, Protein


def refused(path, error=StructureError, **options) -> str:
    with pytest.raises(error) as caught:
        read_structure(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_equal(left: Protein, right: Protein) -> None:
    assert left.sequence == right.sequence
    for name in ("atom_positions", "atom_mask", "b_factors", "residue_index", "chain_index"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), atol=1e-3)
    assert left.chain_ids == right.chain_ids


def as_cif(pdb_path, path):
    structure = gemmi.read_structure(str(pdb_path))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(path))
    return path


# What counts


def test_plain_chain(write):
    protein = read_structure(write("1abc.pdb", pdb_chain("ALA GLY MET")))
    assert protein.name == "1abc"
    assert protein.sequence == "AGM" == protein.full_sequence
    assert protein.chain_ids == ("A",)
    assert protein.residue_index.tolist() == [0, 1, 2]
    assert protein.atom_mask.sum() == 12
    assert protein.atom_positions.dtype == protein.atom_mask.dtype == np.float32
    assert protein.aatype.dtype == protein.residue_index.dtype == np.int64
    np.testing.assert_allclose(protein.atom_positions[0, 1], [STEP + 1.2, 0.8, 0], atol=1e-6)
    assert protein.b_factors[0, 0] == 20
    assert protein.notes == ()


def test_waters_ligands_caps_and_free_amino_acids_are_left_out(write):
    lines = pdb_chain("ACE ALA GLY NH2")
    lines += ["TER", pdb_atom("O", "HOH", number=101, record="HETATM", xyz=(50, 0, 0))]
    lines += [pdb_atom("FE", "HEM", number=102, record="HETATM", xyz=(60, 0, 0), element="FE")]
    lines += pdb_residue("GLU", number=103, slot=30, record="HETATM")
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AG"
    assert any("HEM (1)" in note for note in protein.notes)


def test_modified_residues_count_as_their_parents(write):
    lines = pdb_residue("ALA", number=1)
    lines += pdb_residue("MSE", number=2, record="HETATM")
    lines += [pdb_atom("SE", "MSE", number=2, record="HETATM", xyz=(9, 4, 0), element="SE")]
    lines += pdb_residue("SEP", number=3, record="HETATM")
    lines += pdb_residue("UNK", number=4)
    lines += pdb_residue("ZZ9", number=5, record="HETATM")
    lines += pdb_residue("SEC", number=6) + pdb_residue("GLY", number=7)
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AMSXXXG"
    assert protein.residue_index.tolist() == list(range(7))
    sd = ATOM_NAMES.index("SD")
    assert protein.atom_mask[1, sd] == 1
    np.testing.assert_allclose(protein.atom_positions[1, sd], [9, 4, 0])
    assert protein.notes == (
        "read 5 non-standard residues as: "
        "MSE to M (1), SEC to X (1), SEP to S (1), UNK to X (1), ZZ9 to X (1)",
    )


def test_nucleic_chain_is_left_out_and_told(write):
    lines = pdb_chain("ALA GLY SER")
    for i in range(3):
        lines += [pdb_atom("P", "DA", "B", i + 1, xyz=(30 + 6 * i, 0, 0))]
        lines += [pdb_atom("C1'", "DA", "B", i + 1, xyz=(32 + 6 * i, 0, 0))]
    protein = read_structure(write("a.pdb", lines))
    assert protein.chain_ids == ("A",)
    assert "left out 3 nucleic-acid residues of chain B" in protein.notes


def test_alternate_locations_highest_occupancy_first_of_equals(write):
    n, _, c, o = pdb_residue("ALA", number=1)
    lines = [n]
    lines += [pdb_atom("CA", xyz=(5.0, 0.8, 0), altloc="A", occupancy=0.3)]
    lines += [pdb_atom("CA", xyz=(5.1, 0.8, 0), altloc="B", occupancy=0.7)]
    lines += [c, o]
    lines += [pdb_atom("CB", xyz=(5, 2, 1), altloc="A", occupancy=0.5)]
    lines += [pdb_atom("CB", xyz=(5, 2, 2), altloc="B", occupancy=0.5)]
    protein = read_structure(write("a.pdb", lines + pdb_residue("GLY", number=2)))
    assert protein.sequence == "AG"
    assert protein.atom_positions[0, ATOM_NAMES.index("CA"), 0] == np.float32(5.1)
    assert protein.atom_positions[0, ATOM_NAMES.index("CB"), 2] == 1
    assert "chose the most occupied of several locations for 2 atoms" in protein.notes


def test_point_mutation_keeps_the_likelier_residue(write):
    lines = pdb_residue("ALA", number=1)
    lines += pdb_residue("SER", number=2, altloc="A", occupancy=0.4)
    lines += pdb_residue("THR", number=2, altloc="B", occupancy=0.6)
    protein = read_structure(write("a.pdb", lines + pdb_residue("GLY", number=3)))
    assert protein.sequence == "ATG"
    assert "chose the most occupied of several residue types at 1 place" in protein.notes


def test_repeated_atoms_are_told(write):
    lines = [*pdb_chain("ALA GLY"), pdb_atom("N", "GLY", number=2, xyz=(7, 7, 7))]
    protein = read_structure(write("a.pdb", lines))
    assert protein.atom_positions[1, 0, 0] != 7
    assert "ignored 1 atom with the name of an earlier one" in protein.notes


def test_residue_without_heavy_atoms_is_skipped_and_told(write):
    lines = pdb_residue("ALA", number=1)
    lines += [pdb_atom("H", "GLY", number=2, xyz=(8, 0, 0), element="H")]
    lines += pdb_residue("SER", number=3)
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AS"
    assert "skipped 1 residue without any of the 37 heavy atoms" in protein.notes


# Numbering


def test_insertion_codes_are_residues_of_their_own(write):
    lines = []
    for slot, icode in enumerate(" AB"):
        lines += pdb_residue("GLY", number=1, slot=slot, icode=icode)
    protein = read_structure(write("a.pdb", lines + pdb_residue("ALA", number=2, slot=3)))
    assert protein.sequence == "GGGA"
    assert protein.residue_index.tolist() == [0, 1, 2, 3]


def test_gap_keeps_the_number_of_missing_residues(write):
    lines = pdb_residue("ALA", number=5) + pdb_residue("GLY", number=6)
    lines += pdb_residue("SER", number=10) + pdb_residue("THR", number=11)
    protein = read_structure(write("a.pdb", lines))
    assert protein.residue_index.tolist() == [0, 1, 5, 6]
    assert protein.notes == ("found 1 chain break",)


def test_bonded_residues_follow_each_other_whatever_their_numbers(write):
    lines = pdb_residue("ALA", number=5, slot=0) + pdb_residue("GLY", number=900, slot=1)
    assert read_structure(write("a.pdb", lines)).residue_index.tolist() == [0, 1]


def test_break_with_falling_numbers_counts_one(write):
    lines = pdb_residue("ALA", number=50, slot=0) + pdb_residue("GLY", number=3, slot=9)
    assert read_structure(write("a.pdb", lines)).residue_index.tolist() == [0, 1]


def test_chains_are_joined_in_file_order_and_told(write):
    lines = [*pdb_chain("ALA GLY", "B"), "TER", *pdb_chain("SER THR", "A", first=20)]
    path = write("a.pdb", lines)
    protein = read_structure(path)
    assert protein.sequence == "AGST"
    assert protein.chain_ids == ("B", "A")
    assert protein.chain_index.tolist() == [0, 0, 1, 1]
    assert protein.residue_index.tolist() == [0, 1, 1 + CHAIN_GAP, 2 + CHAIN_GAP]
    assert protein.notes == ("joined chains B, A",)
    assert read_structure(path, chains="A").sequence == "ST"
    assert read_structure(path, chains=["A", "B"]).sequence == "AGST"
    assert read_structure(path, chains=["A"]).residue_index.tolist() == [0, 1]


def test_missing_chain_lists_what_there_is(write):
    text = refused(write("a.pdb", pdb_chain("ALA GLY", "B")), chains=["B", "X"])
    assert "has no chain X; found B (2 amino acid)" in text


def test_alpha_carbons_only(write):
    lines = [line for i in (1, 2, 3, 7) for line in pdb_residue("ALA", number=i, atoms=("CA",))]
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AAAA"
    assert protein.residue_index.tolist() == [0, 1, 2, 6]


def test_missing_backbone_atoms(write):
    lines = pdb_residue("ALA", number=1, atoms=("N", "CA"))
    lines += pdb_residue("ALA", number=2, atoms=("CB",)) + pdb_residue("ALA", number=3)
    protein = read_structure(write("a.pdb", lines))
    assert protein.residue_index.tolist() == [0, 1, 2]
    assert protein.atom_mask.sum(axis=1).tolist() == [2, 1, 4]


@pytest.mark.parametrize("n", [1, 2, 5000])
def test_lengths(write, n):
    residues = [pdb_residue("ALA", number=i + 1, slot=i % 2000) for i in range(n)]
    protein = read_structure(write("a.pdb", [line for atoms in residues for line in atoms]))
    assert len(protein) == n
    assert protein.residue_index.tolist() == list(range(n))


def test_first_of_several_models_is_read_and_told(write):
    lines = []
    for number, residues in enumerate(("ALA GLY", "SER SER"), start=1):
        lines += [f"MODEL     {number:>4}", *pdb_chain(residues), "ENDMDL"]
    path = write("a.pdb", lines)
    protein = read_structure(path)
    assert protein.sequence == "AG"
    assert protein.notes == (
        "read model 1 of 2; other residues, which were not read, are in model 2",
    )
    assert read_structure(path, model=2).sequence == "SS"
    assert "has no model 3; it has 2" in refused(path, model=3)
    with pytest.raises(ConfigError, match="model counts from 1, got 0"):
        read_structure(path, model=0)


@pytest.mark.parametrize("serial", ["*****", "A0000", 99999])
def test_atom_serial_overflow(write, serial):
    lines = pdb_residue("ALA", number=1, serial=serial) + pdb_residue("GLY", number=2)
    assert read_structure(write("a.pdb", lines)).sequence == "AG"


# mmCIF


def test_mmcif_equals_pdb(write, tmp_path):
    lines = [*pdb_chain("ALA GLY SER", "B"), "TER"]
    lines += pdb_residue("MSE", "A", 10, record="HETATM") + pdb_residue("LEU", "A", 15)
    lines += pdb_residue("LEU", "A", 15, icode="A", slot=16)
    path = write("a.pdb", lines)
    assert_equal(read_structure(path), read_structure(as_cif(path, tmp_path / "a.cif")))


def test_two_letter_chain_names_are_the_authors(write, tmp_path):
    structure = gemmi.read_structure(str(write("a.pdb", pdb_chain("ALA GLY SER"))))
    structure.rename_chain("A", "AAa")
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "a.cif"))
    protein = read_structure(tmp_path / "a.cif", chains=["AAa"])
    assert protein.chain_ids == ("AAa",)


def test_mmcif_of_the_pdb_equals_its_pdb_form(real_data, tmp_path):
    paths = sorted((real_data / "openfold" / "mmcifs").glob("*.cif"))
    assert paths
    for path in paths:
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        (tmp_path / f"{path.stem}.pdb").write_text(structure.make_pdb_string())
        assert_equal(read_structure(path), read_structure(tmp_path / f"{path.stem}.pdb"))


def test_real_mmcif_notes(real_data):
    folder = real_data / "openfold" / "mmcifs"
    assert len(read_structure(folder / "1aki.cif")) == 129
    notes = read_structure(folder / "2q2k.cif").notes
    assert "left out 18 nucleic-acid residues of chain F" in notes
    assert "joined chains A, B" in notes
    assert any("MSE to M (3)" in note for note in read_structure(folder / "4zey.cif").notes)


def test_arrays_equal_those_of_openfold(real_data):
    reference = pytest.importorskip("openfold.np.protein", reason="openfold is not installed")
    paths = sorted((real_data / "ppi_affinity" / "pdbs").glob("*.pdb"))[:8]
    paths += sorted((real_data / "openfold" / "alignments_6KWC").glob("*.pdb"))
    assert len(paths) == 9
    for path in paths:
        ours, theirs = read_structure(path), reference.from_pdb_string(path.read_text())
        np.testing.assert_array_equal(ours.aatype, theirs.aatype)
        np.testing.assert_array_equal(ours.atom_mask, theirs.atom_mask)
        np.testing.assert_allclose(ours.atom_positions, theirs.atom_positions, atol=1e-5)
        np.testing.assert_allclose(ours.b_factors, theirs.b_factors, atol=1e-5)


# Files that are refused

WATER = [pdb_atom("O", "HOH", number=i, record="HETATM") for i in range(1, 4)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdb", "", "is empty"),
        ("a.cif", "\n \n", "is empty"),
        ("a.pdb", "REMARK nothing\nEND\n", "holds no protein; found no atoms"),
        ("a.pdb", WATER, "holds no protein; found A (3 water)"),
        ("a.pdb", b"\x7fELF\x00\x01\x02", "is binary"),
        ("a.cif", b"\x7fELF\x00\x01\x02", "is binary"),
        ("a.pdb", "<!DOCTYPE html><html>Not found</html>", "is a web page"),
        ("a.pdb", "data_1ABC\n_entry.id 1ABC\n", "holds mmCIF under a PDB name"),
        ("a.cif", pdb_chain("ALA GLY"), "holds PDB records under an mmCIF name"),
        ("a.cif", "hello", "is damaged or not mmCIF"),
        ("a.cif", "data_1ABC\n_entry.id 1ABC\n", "holds no atoms (no _atom_site table)"),
        ("a.cif", "data_x\nloop_\n_atom_site.id\n_atom_site.a\n1 2 3\n", "Wrong number of values"),
        ("a.txt", pdb_chain("ALA GLY"), "has none of the suffixes .pdb, .ent, .cif, .mmcif"),
        ("a.pdb.gz", b"not gzip", "is not gzip or damaged"),
    ],
)
def test_no_protein(write, name, content, reason):
    assert reason in refused(write(name, content))


def test_absent_file_and_folder(tmp_path):
    assert "does not exist" in refused(tmp_path / "a.pdb")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("kept", [20, 35, 53])
def test_truncated_pdb_line(write, kept):
    lines = pdb_chain("ALA GLY")
    text = "\n".join([*lines[:-1], lines[-1][:kept]])
    assert "is truncated: line 8 ends before the coordinates" in refused(write("a.pdb", text))


def test_pdb_line_may_end_after_the_coordinates(write):
    lines = pdb_chain("ALA GLY")
    protein = read_structure(write("a.pdb", [*lines[:-1], lines[-1][:54]]))
    assert protein.atom_mask.sum() == 8


@pytest.mark.parametrize("kept", [55, 60, 65])
def test_a_file_that_ends_inside_a_line(tmp_path, kept):
    lines = [line.ljust(66) + "           C" for line in pdb_chain("ALA GLY")]
    path = tmp_path / "cut.pdb"
    path.write_text("\n".join([*lines[:-1], lines[-1][:kept]]))
    assert "is truncated: it ends inside a line ('ATOM " in refused(path)
    path.write_text("\n".join(lines))  # without an end of line, but whole
    assert len(read_structure(path)) == 2


def test_truncated_mmcif(write, tmp_path):
    path = as_cif(write("a.pdb", pdb_chain("ALA GLY SER THR")), tmp_path / "whole.cif")
    text = path.read_text()
    start = text.index("ATOM")
    cut = text.index("SER", start)
    assert "Wrong number of values in loop _atom_site" in refused(write("b.cif", text[:cut]))


@pytest.mark.parametrize("packed_share", [0.2, 0.5, 0.9])
def test_truncated_gzip(write, packed_share):
    packed = gzip.compress("\n".join(pdb_chain("ALA GLY SER THR")).encode())
    path = write("a.pdb.gz", packed[: int(len(packed) * packed_share)])
    assert "is truncated gzip" in refused(path)


@pytest.mark.parametrize("value", ["     nan", "********", "        ", "     inf"])
def test_coordinates_that_are_not_numbers(write, value):
    lines = pdb_chain("ALA GLY")
    for i in (5, 6):
        lines[i] = lines[i][:30] + value * 3 + lines[i][54:]
    text = refused(write("a.pdb", lines))
    assert "has 2 atoms without numbers for coordinates; the first is CA GLY A 2 (line 6: " in text


@pytest.mark.parametrize("value", ["?", ".", "nan", "1e60"])
def test_mmcif_coordinates_that_are_not_numbers(write, tmp_path, value):
    document = gemmi.cif.read(str(as_cif(write("a.pdb", pdb_chain("ALA GLY")), tmp_path / "a.cif")))
    column = document[0].find_values("_atom_site.Cartn_x")
    column[5] = value
    document.write_file(str(tmp_path / "b.cif"))
    text = refused(tmp_path / "b.cif")
    assert "has 1 atom without numbers for coordinates; the first is CA GLY A 2" in text


def test_mmcif_residue_without_a_number(write, tmp_path):
    document = gemmi.cif.read(str(as_cif(write("a.pdb", pdb_chain("ALA GLY")), tmp_path / "a.cif")))
    column = document[0].find_values("_atom_site.auth_seq_id")
    for i in range(4, 8):
        column[i] = "?"
    document.write_file(str(tmp_path / "b.cif"))
    text = refused(tmp_path / "b.cif")
    assert "has 1 residue without a residue number; the first is GLY of chain A" in text


@pytest.mark.parametrize("suffix", [".pdb", ".ent", ".cif", ".mmcif"])
def test_packed_equals_plain(write, tmp_path, suffix):
    pdb = write("a.pdb", pdb_chain("ALA GLY SER"))
    plain = tmp_path / f"b{suffix}"
    as_cif(pdb, plain) if "cif" in suffix else plain.write_bytes(pdb.read_bytes())
    packed = write(f"c{suffix}.gz", gzip.compress(plain.read_bytes()))
    assert_equal(read_structure(plain), read_structure(packed))
    assert read_structure(packed).name == "c"


def test_gzip_bomb_is_refused_before_it_is_parsed(write, monkeypatch):
    monkeypatch.setattr("molfun.data.structures.read_cif", None)
    path = write("a.cif.gz", gzip.compress(b"\n" * 2**26))
    text = refused(path, UnsafeFileError)
    assert "unpacked bytes per packed byte are more than the 100 allowed. It was made to" in text


@pytest.mark.parametrize("name", ["a.pdb", "a.pdb.gz"])
def test_oversized_file_is_refused_until_the_limit_is_raised(write, monkeypatch, name):
    raw = "\n".join(pdb_chain("ALA GLY")).encode()
    path = write(name, gzip.compress(raw) if name.endswith("gz") else raw)
    monkeypatch.setenv("MOLFUN_MAX_STRUCTURE_BYTES", "100")
    text = refused(path, UnsafeFileError)
    assert "allowed. Keep only the chains you need. If you trust the file" in text
    assert "raise the limit: MOLFUN_MAX_STRUCTURE_BYTES=" in text
    monkeypatch.setenv("MOLFUN_MAX_STRUCTURE_BYTES", "10k")
    assert len(read_structure(path)) == 2


def test_ten_million_empty_lines_are_harmless(write):
    assert "is empty" in refused(write("a.pdb", b"\n" * 10**7))


# Finding files


@pytest.mark.parametrize(
    ("present", "wanted", "found"),
    [
        (["1a4w.cif"], "1a4w", "1a4w.cif"),
        (["1a4w.pdb", "1a4w.cif"], "1a4w", "1a4w.cif"),
        (["1A4W.cif", "1a4w.pdb"], "1a4w", "1a4w.pdb"),
        (["1A4W.PDB"], "1a4w", "1A4W.PDB"),
        (["1a4w.ent.gz"], "1A4W", "1a4w.ent.gz"),
        (["1a4w.mmcif"], "1a4w", "1a4w.mmcif"),
        (["1a4w.txt", "pdb1a4w.ent"], "1a4w", None),
        (["x.cif"], "../x", None),
    ],
)
def test_find_structure(tmp_path, present, wanted, found):
    for name in present:
        (tmp_path / name).touch()
    path = find_structure(tmp_path, wanted)
    assert path == (None if found is None else tmp_path / found)


def test_find_structure_refuses_links_out_of_the_folder(tmp_path):
    folder = tmp_path / "pdbs"
    folder.mkdir()
    (tmp_path / "secret.cif").touch()
    (folder / "real.cif").touch()
    (folder / "1a4w.cif").symlink_to(tmp_path / "secret.cif")
    (folder / "inner.cif").symlink_to("real.cif")
    with pytest.raises(UnsafeFileError, match=r"outside the folder\. Copy the file"):
        find_structure(folder, "1a4w")
    assert find_structure(folder, "inner") == folder / "inner.cif"
    (tmp_path / "link").symlink_to(folder)
    assert find_structure(tmp_path / "link", "real") is not None


def test_find_structure_needs_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"does not exist\. Give the folder"):
        find_structure(tmp_path / "absent", "1a4w")


def test_backbone_names_are_in_order():
    assert [ATOM_NAMES.index(name) for name in BACKBONE] == [0, 1, 2, 4]
