"""Chains of structure files that ids do not tell apart, models without MODEL, residues behind."""

from __future__ import annotations

from itertools import groupby

import gemmi
import pytest
from pdb_text import pdb_residue

from molfun.data.structures import read_structure
from molfun.errors import StructureError
from molfun.protein import CHAIN_GAP

FAR = 40
"""Slots (3.8 angstrom each) between chains."""


def chain(names, chain_id="A", first=1, slot=0, **options) -> list[str]:
    """Bonded residues from a slot on."""
    return [
        line
        for i, name in enumerate(names.split())
        for line in pdb_residue(name, chain_id, first + i, slot=slot + i, **options)
    ]


def with_segment(lines, segment) -> list[str]:
    return [f"{line[:72]:72}{segment:4}{line[76:]}" for line in lines]


def as_cif(lines, label=None, author=None, drop=(), empty="") -> str:
    """An mmCIF file of atom lines; `label` and `author` give the chain ids of a line."""
    rows: list[dict[str, object]] = []
    for i, line in enumerate(lines):
        own = line[21].strip() or "."
        name = line[12:16].strip()
        rows.append({
            "group_PDB": line[:6].strip(), "id": i + 1, "type_symbol": name[0],
            "label_atom_id": name, "label_alt_id": line[16].strip() or ".",
            "label_comp_id": line[17:20].strip(), "label_asym_id": label(i) if label else own,
            "label_seq_id": line[22:26].strip(), "pdbx_PDB_ins_code": line[26].strip() or "?",
            "Cartn_x": line[30:38].strip(), "Cartn_y": line[38:46].strip(),
            "Cartn_z": line[46:54].strip(), "occupancy": "1.0", "B_iso_or_equiv": "20",
            "auth_seq_id": line[22:26].strip(), "auth_asym_id": author(i) if author else own,
            "pdbx_PDB_model_num": "1",
        })  # fmt: skip
    kept = [tag for tag in rows[0] if tag not in drop]
    head = "".join(f"_atom_site.{tag}\n" for tag in kept)
    body = "".join(
        " ".join("?" if tag == empty else str(row[tag]) for tag in kept) + "\n" for row in rows
    )
    return f"data_x\nloop_\n{head}{body}#\n"


TWO = "told apart 2 chains"


@pytest.mark.parametrize(
    ("lines", "ids", "note"),
    [
        (
            [*chain("ALA GLY", " "), "TER", *chain("LYS MET", " ", slot=FAR), "TER"],
            ("", ""), f"{TWO} without ids by TER",
        ),
        (
            # numbers go on, as tleap writes them
            [*chain("ALA GLY", " "), "TER", *chain("LYS MET", " ", first=3, slot=FAR)],
            ("", ""), f"{TWO} without ids by TER",
        ),
        (
            [*chain("ALA GLY"), "TER", *chain("LYS MET", slot=FAR)],
            ("A", "A"), f"{TWO} of the one id A by TER",
        ),
        (
            [*chain("ALA GLY"), "TER", *chain("LYS MET", first=300, slot=FAR), "TER"],
            ("A", "A"), f"{TWO} of the one id A by TER",
        ),
        (
            [*chain("ALA GLY"), *chain("LYS MET", slot=FAR)],
            ("A", "A"), f"{TWO} of the one id A by numbers that start again",
        ),
        (
            [*chain("ALA GLY"), *chain("ALA GLY", slot=FAR)],
            None, f"{TWO} of the one id A by numbers that start again",
        ),
        (
            [*with_segment(chain("ALA GLY", " "), "PROA"),
             *with_segment(chain("LYS MET", " ", first=3, slot=FAR), "PROB")],
            ("PROA", "PROB"), "took segment ids for blank chain ids: PROA, PROB",
        ),
        (
            [*with_segment(chain("ALA GLY", "P"), "PROA"),
             *with_segment(chain("LYS MET", "P", first=3, slot=FAR), "PROB")],
            ("P", "P"), f"{TWO} of the one id P by another segment",
        ),
        (
            [*chain("ALA GLY"), "END", *chain("LYS MET", slot=FAR), "END"],
            ("A", "A"), f"{TWO} of the one id A by END",
        ),
        (
            [*chain("ALA GLY"), "TER", "END", *chain("LYS MET", "B", slot=FAR), "END"],
            ("A", "B"), "read 8 atoms after the first END",
        ),
        (
            # two halves of a dimer that are equal, but at two places
            [*chain("ALA GLY"), "END", *chain("ALA GLY", slot=FAR)],
            None, "read 8 atoms after the first END",
        ),
    ],
)  # fmt: skip
def test_two_chains(write, lines, ids, note):
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence in ("AGKM", "AGAG")
    assert protein.chain_index.tolist() == [0, 0, 1, 1]
    assert protein.residue_index.tolist() == [0, 1, 1 + CHAIN_GAP, 2 + CHAIN_GAP]
    assert protein.atom_mask.sum() == 16
    assert protein.chain_ids == (ids or ("A", "A"))
    assert note in protein.notes


@pytest.mark.parametrize(
    ("lines", "numbers"),
    [
        # TER between bonded residues; numbers that start again or wrap on one chain
        ([*chain("ALA GLY"), "TER", *chain("LYS MET", first=3, slot=2)], [0, 1, 2, 3]),
        ([*chain("ALA GLY"), *chain("LYS MET", slot=2)], [0, 1, 2, 3]),
        ([*chain("ALA GLY"), *chain("ALA GLY", slot=2)], [0, 1, 2, 3]),
        ([*chain("ALA GLY", first=9998), *chain("LYS MET", first=0, slot=2)], [0, 1, 2, 3]),
        ([*chain("ALA GLY", first=-1), *chain("LYS MET", first=1, slot=2)], [0, 1, 2, 3]),
        ([*chain("ALA GLY"), "TER", *chain("ALA GLY", slot=2)], [0, 1, 2, 3]),
        (
            [*chain("ALA GLY"), *chain("ALA GLY", slot=2), *chain("HOH", first=90, slot=90)],
            [0, 1, 2, 3],
        ),
        # segments that change within a chain, charges where segments stand
        (
            [*with_segment(chain("ALA GLY"), "S1"),
             *with_segment(chain("LYS MET", first=3, slot=2), "S2")],
            [0, 1, 2, 3],
        ),
        (
            [line for i, one in enumerate(chain("ALA GLY LYS MET", " "))
             for line in with_segment([one], f"0.{i:02}")],
            [0, 1, 2, 3],
        ),
        # a gap is no new chain
        ([*chain("ALA GLY"), *chain("LYS MET", first=9, slot=9)], [0, 1, 8, 9]),
        # parts of a chain with another chain between them
        (
            [*chain("ALA GLY"), *chain("DA", "B", slot=FAR, atoms=("N",)),
             *chain("LYS MET", first=3, slot=2)],
            [0, 1, 2, 3],
        ),
    ],
)  # fmt: skip
def test_one_chain(write, lines, numbers):
    protein = read_structure(write("a.pdb", lines))
    assert len(protein.chain_ids) == 1
    assert protein.residue_index.tolist() == numbers
    assert protein.atom_mask.sum() == 16
    assert not any("told apart" in note for note in protein.notes)


def test_four_copies_and_their_selection(write):
    lines = [
        line for i in range(4) for line in [*chain("ALA GLY SER", "AB"[i % 2], slot=i * FAR), "TER"]
    ]
    path = write("a.pdb", lines)
    protein = read_structure(path)
    assert protein.chain_ids == ("A", "B", "A", "B")
    assert read_structure(path, chains="B").chain_ids == ("B", "B")
    assert "joined chains A, B, A, B" in protein.notes


def test_waters_ions_and_ligands_behind_ter_are_no_chains(write):
    lines = [*chain("ALA GLY"), "TER", *chain("LYS MET", "B", slot=FAR), "TER"]
    for name, number in (("HOH", 101), ("GLU", 102), ("NA", 103), ("HOH", 1)):
        lines += pdb_residue(name, "A", number, record="HETATM", slot=2 * number)
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AGKM"
    assert protein.chain_ids == ("A", "B")
    assert any("GLU (1), NA (1)" in note for note in protein.notes)


def test_hydrogens_at_the_end_and_blocks_of_locations_are_no_chains(write):
    lines = chain("ALA GLY")
    hydrogens = [line.replace(" N  ", " H  ") for line in lines if " N  " in line]
    assert read_structure(write("a.pdb", lines + hydrogens)).sequence == "AG"
    blocks = [*chain("ALA SER GLY", altloc="A"), *chain("ALA SER GLY", altloc="B")]
    protein = read_structure(write("b.pdb", blocks))
    assert protein.sequence == "ASG"
    assert protein.chain_ids == ("A",)


def blank(line: str, segment: str = "") -> str:
    return f"{line[:21]} {line[22:72]:50}{segment:4}{line[76:]}"


WRITTEN = {
    "TER": lambda chains: "".join("".join(map(blank, c)) + "TER\n" for c in chains),
    "END": lambda chains: "".join("".join(line[:21] + "A" + line[22:] for line in c) + "END\n"
                                  for c in chains),
    "segments": lambda chains: "".join(blank(line, f"P{i}") for i, c in enumerate(chains)
                                       for line in c),
    "CR": lambda chains: "".join(map("".join, chains)).replace("\n", "\r"),
    "names": lambda chains: "".join(map("".join, chains)).replace("HIS", "HSD").replace(
        " CD1 ILE", " CD  ILE").replace("CYS", "CYX"),
}  # fmt: skip


@pytest.mark.parametrize("way", WRITTEN)
def test_real_complexes_written_in_other_ways_are_the_same(write, real_data, way):
    paths = sorted((real_data / "ppi_affinity" / "pdbs").glob("*.pdb"))[::8]
    assert paths
    for path in paths:
        lines = path.read_text().splitlines(keepends=True)
        atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
        chains = [list(group) for _, group in groupby(atoms, key=lambda line: line[21])]
        whole = read_structure(path)
        protein = read_structure(write("a.pdb", WRITTEN[way](chains)))
        assert protein.sequence == whole.sequence
        assert protein.residue_index.tolist() == whole.residue_index.tolist()
        assert (protein.atom_positions == whole.atom_positions).all()


# mmCIF


def test_mmcif_with_one_author_id_over_two_chains(write):
    lines = [*chain("ALA GLY"), *chain("LYS MET", first=3, slot=FAR)]
    text = as_cif(lines, label=lambda i: "AB"[i >= 8])
    protein = read_structure(write("a.cif", text))
    assert protein.chain_ids == ("A", "A")
    assert protein.residue_index.tolist() == [0, 1, 1 + CHAIN_GAP, 2 + CHAIN_GAP]
    assert f"{TWO} of the one id A by another segment" in protein.notes


def test_mmcif_with_another_chain_between_two_of_one_author_id(write):
    lines = [*chain("ALA GLY"), *chain("SER", "B", slot=FAR), *chain("HEM", slot=9, first=90)]
    lines += chain("LYS MET", first=3, slot=2 * FAR)
    labels = "A" * 8 + "B" * 4 + "C" * 4 + "D" * 8
    protein = read_structure(write("a.cif", as_cif(lines, label=lambda i: labels[i])))
    assert protein.sequence == "AGSKM"
    assert protein.chain_ids == ("A", "B", "A")


def test_mmcif_with_numbers_that_start_again(write):
    lines = [*chain("ALA GLY"), *chain("ALA GLY", slot=FAR)]
    protein = read_structure(write("a.cif", as_cif(lines, label=lambda i: ".")))
    assert protein.sequence == "AGAG"
    assert protein.chain_index.tolist() == [0, 0, 1, 1]
    assert protein.atom_mask.sum() == 16


def test_mmcif_ligands_with_a_label_of_their_own_are_no_chains(write):
    lines = [*chain("ALA GLY"), *chain("GLU", first=200, slot=FAR, record="HETATM")]
    protein = read_structure(write("a.cif", as_cif(lines, label=lambda i: "AB"[i >= 8])))
    assert protein.chain_ids == ("A",)


OPTIONAL = (
    "group_PDB", "id", "type_symbol", "label_alt_id", "pdbx_PDB_ins_code", "occupancy",
    "B_iso_or_equiv", "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num", "label_asym_id",
    "label_seq_id",
)  # fmt: skip


@pytest.mark.parametrize("drop", [*((tag,) for tag in OPTIONAL), OPTIONAL[:-2]])
def test_mmcif_without_optional_columns(write, drop):
    lines = [*chain("ALA GLY"), *chain("LYS MET", "B", slot=FAR)]
    whole = read_structure(write("a.cif", as_cif(lines)))
    part = read_structure(write("b.cif", as_cif(lines, drop=drop)))
    assert part.sequence == whole.sequence == "AGKM"
    assert part.chain_ids == whole.chain_ids == ("A", "B")
    assert (part.atom_positions == whole.atom_positions).all()


@pytest.mark.parametrize("empty", ["auth_seq_id", "auth_asym_id", "label_asym_id", "label_seq_id"])
def test_mmcif_with_a_column_that_holds_nothing(write, empty):
    lines = [*chain("ALA GLY"), *chain("LYS MET", "B", slot=FAR)]
    text = as_cif(lines, empty=empty).replace("label_atom_id", "auth_atom_id")
    protein = read_structure(write("a.cif", text.replace("label_comp_id", "auth_comp_id")))
    assert protein.sequence == "AGKM"
    assert protein.chain_ids == ("A", "B")


@pytest.mark.parametrize(
    ("drop", "named"),
    [
        (("Cartn_y",), "_atom_site.Cartn_y"),
        (("label_comp_id",), "_atom_site.label_comp_id"),
        (("label_atom_id", "Cartn_z"), "_atom_site.Cartn_z, _atom_site.label_atom_id"),
        (("label_seq_id", "auth_seq_id"), "_atom_site.label_seq_id"),
    ],
)
def test_mmcif_without_columns_that_are_needed(write, drop, named):
    path = write("a.cif", as_cif(chain("ALA GLY"), drop=drop))
    with pytest.raises(StructureError, match=f"lacks the columns {named}"):
        read_structure(path)


def test_mmcif_without_any_chain_id(write):
    lines = [*chain("ALA GLY"), *chain("LYS MET", slot=FAR)]
    text = as_cif(lines, drop=("label_asym_id", "auth_asym_id"))
    protein = read_structure(write("a.cif", text))
    assert protein.chain_ids == ("", "")
    assert protein.chain_index.tolist() == [0, 0, 1, 1]


def test_mmcif_with_an_author_id_of_no_letters(write):
    lines = [*chain("ALA GLY"), *chain("LYS MET", "B", slot=FAR)]
    text = as_cif(lines, author=lambda i: "''" if i < 8 else "B")
    protein = read_structure(write("a.cif", text))
    assert protein.sequence == "AGKM"
    assert protein.chain_ids == ("", "B")


def test_mmcif_of_one_atom_without_a_loop(write):
    pairs = as_cif(chain("ALA", atoms=("CA",))).split("\n")
    tags, values = [line for line in pairs if line.startswith("_")], pairs[-3].split()
    text = "data_x\n" + "".join(f"{t} {v}\n" for t, v in zip(tags, values, strict=True))
    assert read_structure(write("a.cif", text)).sequence == "A"


def test_mmcif_with_two_blocks(write):
    text = as_cif(chain("ALA GLY")) + as_cif(chain("SER SER")).replace("data_x", "data_y")
    protein = read_structure(write("a.cif", text))
    assert protein.sequence == "AG"
    assert protein.notes == ("read block x, the first of 2 with atoms; not y",)


# Models


def test_frames_between_end_records_are_models(write):
    path = write("a.pdb", [*chain("ALA GLY SER"), "END", *chain("ALA GLY SER"), "END"])
    protein = read_structure(path)
    assert protein.sequence == "AGS"
    assert protein.notes == (
        "took END for the end of a model: the same atoms follow at one place",
        "read model 1 of 2",
    )
    assert read_structure(path, model=2).sequence == "AGS"


@pytest.mark.parametrize("between", [[], ["TER"]])
def test_copies_at_one_place_are_refused(write, between):
    path = write("a.pdb", [*chain("ALA GLY SER"), *between, *chain("ALA GLY SER")])
    with pytest.raises(
        StructureError, match=r"several copies of chain A at one place\. If they are"
    ):
        read_structure(path)


@pytest.mark.parametrize("opening", [["MODEL        1"], ["MODEL        1", "MODEL        1"], []])
def test_models_with_odd_records(write, opening):
    lines = [*opening[:1], *chain("ALA GLY"), "ENDMDL"]
    lines += [*opening[1:], *chain("ALA GLY"), "ENDMDL", "END"]
    path = write("a.pdb", lines)
    assert read_structure(path).notes == ("read model 1 of 2",)
    assert read_structure(path, model=2).sequence == "AG"


def test_models_that_hold_other_chains_are_named(write):
    models = [chain("ALA GLY"), chain("ALA GLY"), chain("ALA GLY", "B", slot=FAR)]
    lines = [line for m in models for line in ("MODEL", *m, "ENDMDL")]
    note = "read model 1 of 3; other residues, which were not read, are in model 3"
    assert read_structure(write("a.pdb", lines)).notes == (note,)
    atoms = [line for model in models for line in model]
    text = as_cif(atoms).split("\n")
    for i, row in enumerate(r for r in range(len(text)) if text[r].startswith("ATOM")):
        text[row] = text[row][:-1] + str(i // 8 + 1)
    path = write("a.cif", "\n".join(text))
    assert read_structure(path).notes == (note,)
    assert read_structure(path, model=3).chain_ids == ("B",)


# Residues behind their chain


@pytest.mark.parametrize("cif", [False, True])
@pytest.mark.parametrize(
    ("names", "missing", "behind"),
    [
        ("ALA GLY SER LYS", (2,), "MSE"),
        ("ALA GLY SER LYS", (1, 2), "MSE SEP"),
        ("ALA GLY SER LYS", (0,), "MSE"),
    ],
)
def test_modified_residues_behind_the_chain_are_put_into_its_gap(
    write, names, missing, behind, cif
):
    lines = [
        line for i, name in enumerate(names.split()) if i not in missing
        for line in chain(name, first=i + 1, slot=i)
    ]  # fmt: skip
    lines += (
        [*chain("TRP TYR", "B", slot=FAR)] if cif else ["TER", *chain("TRP TYR", "B", slot=FAR)]
    )
    lines += [] if cif else ["TER"]
    for i, name in zip(missing, behind.split(), strict=True):
        lines += chain(name, first=i + 1, slot=i, record="HETATM")
    lines += chain("HEM", first=90, slot=2 * FAR, record="HETATM", atoms=("N",))
    path = write("a.cif", as_cif(lines)) if cif else write("a.pdb", lines)
    protein = read_structure(path)
    letters = [{"MSE": "M", "SEP": "S"}[name] for name in behind.split()]
    whole = list("AGSK")
    for i, letter in zip(missing, letters, strict=True):
        whole[i] = letter
    assert protein.sequence == "".join(whole) + "WY"
    assert protein.residue_index.tolist() == [0, 1, 2, 3, 203, 204]
    assert any("from after a chain to the place in it" in note for note in protein.notes)
    assert any("HEM (1)" in note for note in protein.notes)


def test_a_modified_residue_behind_several_chains_without_ids(write):
    lines = [*chain("ALA", " "), *chain("SER", " ", first=3, slot=2), "TER"]
    lines += [*chain("LYS TRP TYR", " ", slot=FAR), "TER"]
    lines += chain("MSE", " ", first=2, slot=1, record="HETATM")
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AMSKWY"
    assert protein.residue_index.tolist() == [0, 1, 2, 202, 203, 204]


def test_a_modified_residue_at_the_end_of_the_chain_belongs_to_it(write):
    lines = [*chain("ALA GLY"), "TER", *chain("SEP", first=3, slot=2, record="HETATM")]
    assert read_structure(write("a.pdb", lines)).sequence == "AGS"


def test_modified_residues_in_their_place(write):
    lines = [*chain("ALA"), *chain("MSE", first=2, slot=1, record="HETATM")]
    lines += chain("DAL GLY", first=3, slot=2)
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AMAG"
    assert not any("moved" in note for note in protein.notes)


def test_a_peptide_of_hetatm_records_is_a_chain(write):
    lines = [*chain("ALA GLY"), "TER", *chain("DAL DLE DPN", first=1, slot=FAR, record="HETATM")]
    protein = read_structure(write("a.pdb", lines))
    assert protein.sequence == "AGALF"
    assert protein.chain_index.tolist() == [0, 0, 1, 1, 1]


# How much has coordinates


def test_unresolved_residues_are_counted(write, tmp_path):
    sequence = "MET ALA GLY SER LYS HIS HIS HIS ACE NH2"
    lines = [f"SEQRES   1 A    8  {sequence}", *chain("ALA GLY", first=2), "TER"]
    lines += ["SEQRES   1 B    2  SER LYS", *chain("SER LYS", "B", slot=FAR)]
    path = write("a.pdb", lines)
    note = "read 2 of 8 residues of chain A: the others of its sequence have no coordinates"
    assert [n for n in read_structure(path).notes if n.startswith("read ")] == [note]
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "a.cif"))
    notes = read_structure(tmp_path / "a.cif").notes
    assert any(note.startswith("read 2 of ") and "chain A" in note for note in notes)


def test_a_chain_without_any_coordinates_is_told(write):
    lines = ["SEQRES   1 A    2  ALA GLY", "SEQRES   1 C    3  LYS LYS SER", *chain("ALA GLY")]
    path = write("a.pdb", lines)
    note = "read no residue of chain C: its 3 residues have no coordinates"
    assert read_structure(path).notes == (note,)
    assert read_structure(path, chains="A").notes == ()
    entities = "loop_\n_entity_poly.entity_id\n_entity_poly.type\n1 polypeptide(L)\n"
    entities += "2 polypeptide(L)\nloop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n"
    entities += "1 1 1 2 2 1 2 2 2 3\nloop_\n_struct_asym.id\n_struct_asym.entity_id\nA 1\nC 2\n"
    notes = read_structure(write("a.cif", as_cif(chain("ALA GLY")) + entities)).notes
    assert notes == (note.replace("chain C", "entity 2"),)


def test_the_sequence_of_an_entity_as_text(write):
    entity = "_entity_poly.entity_id 1\n_entity_poly.pdbx_seq_one_letter_code\n;MAG(MSE)\nKH\n;\n"
    text = as_cif(chain("ALA GLY"))
    rows = text.replace("pdbx_PDB_model_num\n", "label_entity_id\n")
    protein = read_structure(write("a.cif", rows + entity))
    assert any(note.startswith("read 2 of 6 residues of chain A") for note in protein.notes)
