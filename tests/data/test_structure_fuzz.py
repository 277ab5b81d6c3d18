"""Damaged structure files give a protein or an error of ours, nothing else."""

from __future__ import annotations

import contextlib
import gzip

import gemmi
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pdb_text import pdb_chain

from molfun.data.structures import read_structure
from molfun.errors import MolfunError

LINES = [
    "SEQRES   1 A    4  MET ALA GLY SER",
    *("MODEL        1", *pdb_chain("ALA GLY HSD SER DA HOH"), "TER"),
    *(*pdb_chain("LYS MET TRP"), "TER", *pdb_chain("ALA CYX", " ", first=9)),
    *(*(line.replace("ATOM  ", "HETATM") for line in pdb_chain("MSE", first=4)), "ENDMDL"),
    *("MODEL        2", *pdb_chain("ALA GLY"), "ENDMDL", "END", *pdb_chain("TRP", "B"), "END"),
]
PIECES = (
    "", " ", "\n", "\r", "\t", "\0", "*", "?", ".", "-", "#", ";", "\n;", "'", '"', "$", "[", "9",
    "A", "zzzz", "A000", "nan", "inf", "1e99", "1_0", "(5)", "-9999", "9" * 25, "\ufeff", "\xe9",
    "ATOM  ", "HETATM", "TER\n", "END\n", "MODEL\n", "ENDMDL\n", "loop_", "\nloop_\n", "data_",
    "\ndata_y\n", "save_", "global_", "stop_", "_atom_site.", "\n_atom_site.id 1\n", "'a b'",
    "\n;text\n;\n",
)  # fmt: skip
EDIT = st.tuples(
    st.sampled_from(["replace", "insert", "cut", "drop line", "copy line", "move line", "shuffle"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from(PIECES),
)


def edited(text: str, how: str, at: int, other: int, piece: str) -> str:
    """One damage to a text."""
    if how in ("replace", "insert", "cut"):
        at %= len(text) + 1
        skipped = {"replace": len(piece), "insert": 0, "cut": other % 90}[how]
        return text[:at] + ("" if how == "cut" else piece) + text[at + skipped :]
    lines = text.split("\n")
    at, other = at % len(lines), other % len(lines)
    if how == "drop line":
        del lines[at]
    elif how == "copy line":
        lines.insert(other, lines[at])
    elif how == "move line":
        lines.insert(other, lines.pop(at))
    else:
        words = lines[at].split(" ")
        lines[at] = " ".join(words[other % len(words) :] + words[: other % len(words)])
    return "\n".join(lines)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, list[str]]:
    """Texts of each kind that are read without an error, or nearly so."""
    folder = tmp_path_factory.mktemp("originals")
    pdb = "\n".join(LINES) + "\n"
    (folder / "a.pdb").write_text("\n".join(LINES[1 : LINES.index("ENDMDL")]))
    structure = gemmi.read_structure(str(folder / "a.pdb"))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(folder / "a.cif"))
    cif = (folder / "a.cif").read_text()
    table = cif[cif.index("loop_\n_atom_site.") :]
    return {"pdb": [pdb], "cif": [cif, "data_x\n" + table, "data_x\n" + table * 2]}


def read_or_refuse(path) -> None:
    with contextlib.suppress(MolfunError):
        protein = read_structure(path)
        assert len(protein) > 0
        assert len(protein.chain_ids) == protein.chain_index[-1] + 1
        assert np.isfinite(protein.atom_positions).all()
        assert (np.diff(protein.residue_index) >= 1).all()
        assert all("\n" not in note for note in protein.notes)


SETTINGS = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
    "phases": (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
}


@settings(max_examples=300, **SETTINGS)
@given(edits=st.lists(EDIT, max_size=12), cut=st.none() | st.integers(0, 3000))
def test_damaged_pdb(write, originals, edits, cut):
    text = originals["pdb"][0]
    for edit in edits:
        text = edited(text, *edit)
    read_or_refuse(write("a.pdb", text[:cut]))


@settings(max_examples=900, **SETTINGS)
@given(
    which=st.integers(0, 2),
    edits=st.lists(EDIT, max_size=12),
    cut=st.none() | st.integers(0, 9000),
)
def test_damaged_mmcif(write, originals, which, edits, cut):
    text = originals["cif"][which]
    for edit in edits:
        text = edited(text, *edit)
    read_or_refuse(write("a.cif", text[:cut]))


TAGS = st.sampled_from([
    "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id",
    "label_asym_id", "label_entity_id", "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y",
    "Cartn_z", "occupancy", "B_iso_or_equiv", "auth_seq_id", "auth_comp_id", "auth_asym_id",
    "auth_atom_id", "pdbx_PDB_model_num", "CARTN_X", "",
])  # fmt: skip
VALUES = st.sampled_from(
    ["ATOM", "HETATM", "ALA", "GLY", "HSD", "MSE", "HOH", "CA", "N", "C", "O", "A", "B", "?", ".",
     "1", "2", "-3", "1.5", "1e9", "1.2(3)", "'A'", '"N"', "''", "99999999999", "1A"]
)  # fmt: skip


@settings(max_examples=500, **SETTINGS)
@given(
    tags=st.lists(TAGS, max_size=22, unique=True),
    values=st.lists(VALUES, min_size=1, max_size=66),
    needed=st.booleans(),
    loop=st.booleans(),
)
def test_any_table_of_atoms(write, tags, values, needed, loop):
    if needed:
        wanted = ["Cartn_x", "Cartn_y", "Cartn_z", "label_atom_id", "label_comp_id", "label_seq_id"]
        tags = [*wanted, *(tag for tag in tags if tag not in wanted)]
    if loop:
        rows = values * len(tags)  # a whole number of rows
        text = "loop_\n" + "".join(f"_atom_site.{tag}\n" for tag in tags) + " ".join(rows)
    else:
        text = "".join(f"_atom_site.{t} {v}\n" for t, v in zip(tags, values, strict=False))
    read_or_refuse(write("a.cif", f"data_x\n{text}\n"))


@settings(max_examples=150, **SETTINGS)
@given(
    raw=st.binary(max_size=400),
    name=st.sampled_from(["a.pdb", "a.cif", "a.pdb.gz", "a.cif.gz"]),
    mark=st.sampled_from(
        [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"data_x\n"]
    ),
    packed=st.booleans(),
)
def test_any_bytes(write, raw, name, mark, packed):
    raw = mark + raw
    read_or_refuse(write(name, gzip.compress(raw) if packed else raw))
