"""Bytes, line ends, columns and names of structure files, and structures without coordinates."""

from __future__ import annotations

import codecs
import gzip

import numpy as np
import pytest
from pdb_text import pdb_atom, pdb_chain, pdb_residue

from molfun.data.structure_names import RESIDUES, standard_name
from molfun.data.structures import read_structure
from molfun.errors import StructureError, UnsafeFileError
from molfun.protein import ATOM_NAMES

LINES = pdb_chain("ALA CYS ASP")
TEXT = "\n".join(["REMARK one", *LINES, "TER", "END", ""])


def as_cif(lines) -> str:
    rows = (
        f"{line[:6]} {i} {line[76:78]} {line[12:16]} . {line[17:20]} A 1 {line[22:26]} "
        f"{line[30:54]} 1 20 {line[22:26]} A"
        for i, line in enumerate(lines)
    )
    tags = (
        "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id",
        "label_asym_id", "label_entity_id", "label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z",
        "occupancy", "B_iso_or_equiv", "auth_seq_id", "auth_asym_id",
    )  # fmt: skip
    head = "".join(f"_atom_site.{tag}\n" for tag in tags)
    return f"data_x\nloop_\n{head}" + "\n".join(rows) + "\n"


def refused(path, error=StructureError) -> str:
    with pytest.raises(error) as caught:
        read_structure(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Bytes


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cif", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.replace("\n", "\r\n", 6).replace("\n", "\r", 9).encode(),
        lambda text: text.replace("\n", "\r\r\n").encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
        lambda text: text.encode() + b"\x1a",
        lambda text: text.rstrip().encode(),
        lambda text: text.replace("one", "caf\xe9 \u212b").encode(),
        lambda text: text.replace("one", "caf\xe9").encode("latin-1"),
    ],
)
def test_bytes_that_change_nothing(write, change, cif, packed):
    raw = change("# one\n" + as_cif(LINES) if cif else TEXT)
    name = ("a.cif" if cif else "a.pdb") + (".gz" if packed else "")
    protein = read_structure(write(name, gzip.compress(raw) if packed else raw))
    assert protein.sequence == "ACD"
    assert protein.atom_mask.sum() == 12
    assert protein.atom_positions[0, 0, 0] == np.float32(3.8)
    assert protein.notes == ()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (TEXT.encode("utf-16-le"), "is binary (or UTF-16 without a mark)"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1], "begins as UTF-16 and is not: byte"),
        (TEXT.encode() + b"\0" * 9, "is binary"),
        (codecs.BOM_UTF8, "is empty"),
        (TEXT.replace("CYS A", "CYS \xbf").encode("latin-1"),
         "has byte 0xbf that is not ASCII in line 6, column 22"),
        (TEXT.replace("  CA ", " \xa0CA ").encode(),
         "has byte 0xc2 that is not ASCII in line 3, column 13"),
        (TEXT.replace("ATOM      1  N ", "ATOM\t1\tN "), "has a tab in line 2, column 5"),
        (TEXT.replace("CYS A", "CYS \x07"), "has byte 0x07 that is no text in line 6, column 22"),
    ],
)  # fmt: skip
def test_bytes_that_are_named(write, raw, reason):
    assert reason in refused(write("a.pdb", raw))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("quote", ["", "'"])
def test_a_chain_id_of_mmcif_that_is_not_ascii(write, quote, encoding):
    text = as_cif(LINES).replace(" A\n", f" {quote}\xc4{quote}\n")
    text = refused(write("a.cif", text.encode(encoding)))
    assert "that is not ASCII in " in text
    assert "byte 0xc" in text


# Lines


@pytest.mark.parametrize("tail", ["", "\n", "\nTER", "\nTER\nEND", "\nEND\n"])
def test_a_last_line_that_is_shorter_but_whole(write, tail):
    lines = [line + "1-" if " O  " in line else line for line in pdb_chain("ALA CYS ASP")]
    lines += [pdb_atom("CB", "ASP", number=3, xyz=(12.6, 2.3, 0))]
    protein = read_structure(write("a.pdb", "\n".join(lines) + tail))
    assert protein.atom_mask.sum() == 13


@pytest.mark.parametrize("left", ["A", "AT", "ATO", "H", "HETA", "HETAT"])
def test_a_file_that_ends_inside_the_name_of_a_record(write, left):
    assert "is truncated: it ends inside a line" in refused(
        write("a.pdb", "\n".join([*LINES, left]))
    )


def test_a_file_that_ends_inside_the_element_of_an_atom(write):
    text = "\n".join(LINES)
    assert "it ends inside a line" in refused(write("a.pdb", text[:-1]))


def test_lines_with_blanks_before_the_record(write):
    lines = [*LINES[:4], *(" " + line for line in LINES[4:])]
    assert "has blanks before the record of line 5 ('ATOM " in refused(write("a.pdb", lines))
    assert read_structure(write("b.pdb", ["  ATOM records follow", *LINES])).sequence == "ACD"


def test_small_letters(write):
    text = [line.lower().replace(" a ", " A ") for line in LINES]
    protein = read_structure(write("a.pdb", text))
    assert protein.sequence == "ACD"
    assert protein.atom_mask.sum() == 12


def test_tables_behind_the_atoms_are_no_atoms(write):
    table = ["#BEGIN_POSE_ENERGIES_TABLE a.pdb", "label fa_atr fa_rep", "ALA:NtermProteinFull_1 -1"]
    protein = read_structure(write("a.pdb", [*LINES, "TER", *table, "CONECT    1    2"]))
    assert protein.sequence == "ACD"
    assert protein.notes == ()


@pytest.mark.parametrize("serial", ["A0000", "*****", "99999", "   -1", "     "])
def test_serials(write, serial):
    lines = [f"ATOM  {serial}{line[11:]}" for line in LINES]
    assert read_structure(write("a.pdb", lines)).sequence == "ACD"


def test_numbers_of_python_only(write):
    lines = [LINES[0][:30] + "   1_1.0" + LINES[0][38:], *LINES[1:]]
    assert "has 1 atom without numbers for coordinates" in refused(write("a.pdb", lines))


# Names


@pytest.mark.parametrize("cif", [False, True])
@pytest.mark.parametrize(("name", "parent"), sorted(RESIDUES.items()))
def test_names_of_force_fields(write, name, parent, cif):
    middle = [
        f"{line[:17]}{name:<4}{line[21:]}" for line in pdb_residue("ALA", number=2)
    ]  # fmt: skip
    lines = [*pdb_residue("GLY", number=1), *middle, *pdb_residue("SER", number=3)]
    text = as_cif([line.replace(name, "XXX") for line in lines]).replace("XXX", name)
    protein = read_structure(write("a.cif", text) if cif else write("a.pdb", lines))
    letter = read_structure(write("b.pdb", pdb_chain(f"{parent} GLY"))).sequence[0]
    assert protein.sequence == f"G{letter}S"
    assert protein.chain_ids == ("A",)
    assert protein.notes == (f"read 1 non-standard residue as: {name} to {letter} (1)",)


def test_terminal_names_only_and_long_chain_ids(write):
    ends = [
        line[:17] + end + line[17:20] + line[21:]
        for line, end in zip(pdb_chain("HIE VAL"), "NNNNCCCC", strict=True)
    ]
    assert read_structure(write("a.pdb", ends)).sequence == "HV"
    # HIS in chain AB, not HISA in chain B
    lines = [line[:20] + "AB" + line[22:] for line in pdb_chain("HIS GLY CYS")]
    protein = read_structure(write("b.pdb", lines))
    assert protein.sequence == "HGC"
    assert protein.chain_ids == ("AB",)


def test_atom_names_of_force_fields(write):
    lines = pdb_chain("GLY ALA")
    slot = {"CB": (12.6, 2.3, 0), "CG1": (12.6, 3, 0), "CD": (12.6, 4, 0), "CD1": (0, 0, 0)}
    lines += pdb_residue("ILE", number=3, atoms=("N", "CA", "C"))
    for name in ("CB", "CG1", "CD"):
        lines += [pdb_atom(name, "ILE", number=3, xyz=slot[name])]
    lines += [pdb_atom("OT1", "ILE", number=3, xyz=(14, 1, 0))]
    lines += [pdb_atom("OT2", "ILE", number=3, xyz=(14, 2, 0))]
    protein = read_structure(write("a.pdb", lines))
    for name, y in (("CD1", 4), ("O", 1), ("OXT", 2)):
        assert protein.atom_positions[2, ATOM_NAMES.index(name), 1] == y
    assert protein.notes == (
        "read 3 atom names as: CD of ILE to CD1 (1), OT1 of ILE to O (1), OT2 of ILE to OXT (1)",
    )


def test_homoserine_is_no_histidine(write):
    lines = [*pdb_residue("GLY", number=1), *pdb_residue("HSE", number=2)]
    lines += [pdb_atom("OD", "HSE", number=2, xyz=(9, 9, 9)), *pdb_residue("SER", number=3)]
    assert read_structure(write("a.pdb", lines)).sequence == "GXS"


def test_names_of_water(write):
    lines = [*LINES, "TER"]
    for i, name in enumerate(("TIP3", "SOL ", "WAT ", "HOH ", "tip3")):
        line = pdb_atom("O", "HOH", "W", i + 1, xyz=(90, i, 0))
        lines += [line[:17] + name + line[21:]]
    assert read_structure(write("a.pdb", lines)).notes == ()
    assert standard_name("HEM") == "HEM"


def test_nucleotides_of_force_fields_are_named_as_such(write):
    lines = [*LINES, "TER"]
    for i, name in enumerate(("DA5", "DG ", "RU3")):
        lines += [pdb_atom("C", name.strip(), "B", i + 1, xyz=(90, 9 * i, 0))]
    notes = read_structure(write("a.pdb", lines)).notes
    assert notes == ("left out 3 nucleic-acid residues of chain B",)


def test_stars_for_occupancy_and_b_factor_are_told(write):
    lines = [line[:60] + "******" + line[66:] for line in LINES]
    notes = read_structure(write("a.pdb", lines)).notes
    assert notes == ("read occupancy or B-factor of 12 atoms as 0: stars, no number",)


# Structures without coordinates


def test_all_atoms_at_one_place(write):
    lines = [line[:30] + "   0.000" * 3 + line[54:] for line in LINES]
    assert "has all 12 atoms at one place (0, 0, 0)" in refused(write("a.pdb", lines))
    lines = [line[:30] + "   1.500" * 3 + line[54:] for line in LINES]
    assert "has all 12 atoms at one place (1.5, 1.5, 1.5)" in refused(write("a.pdb", lines))


def test_some_atoms_at_the_origin_are_told(write):
    lines = [line[:30] + "   0.000" * 3 + line[54:] for line in LINES[8:]]
    notes = read_structure(write("a.pdb", [*LINES[:8], *lines])).notes
    assert "found 4 atoms at (0, 0, 0), as for places that are not known" in notes


def test_no_main_chain(write):
    lines = [line for line in LINES if " CA " not in line]
    assert "has no CA atom in 3 residues" in refused(write("a.pdb", lines))
    notes = read_structure(write("b.pdb", [LINES[1], *lines])).notes
    assert "found 2 residues without CA" in notes


def test_only_alpha_carbons_are_told(write):
    notes = read_structure(write("a.pdb", [line for line in LINES if " CA " in line])).notes
    assert notes == ("found CA atoms only: enough for sequence and numbering, not for side chains",)


# Limits


@pytest.mark.parametrize("cif", [False, True])
def test_the_number_of_atoms_has_a_limit(write, monkeypatch, cif):
    path = write("a.cif", as_cif(LINES * 9)) if cif else write("a.pdb", LINES * 9)
    monkeypatch.setenv("MOLFUN_MAX_STRUCTURE_ATOMS", "50")
    assert "MOLFUN_MAX_STRUCTURE_ATOMS=" in refused(path, UnsafeFileError)
    monkeypatch.setenv("MOLFUN_MAX_STRUCTURE_ATOMS", "1k")
    assert "several copies of chain A at one place" in refused(path)
