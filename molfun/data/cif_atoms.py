"""Atoms of mmCIF files: columns that programs leave out, models, and chains that share an id."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from molfun.data.experiment import experiment_of_cif
from molfun.data.pdb_records import model_note
from molfun.data.structure_chains import TRACED, Part, Records, Residue, split_chains
from molfun.data.structure_names import standard_name
from molfun.data.structure_text import CUT, MAX_ATOMS, refuse_foreign
from molfun.errors import MolfunError, StructureError
from molfun.protein import Note
from molfun.text import few, first_line

_VALUES_PER_ATOM = 30
"""Most columns of an _atom_site table; the PDB's own has 21."""
_SPACE = np.zeros(256, bool)
_SPACE[[9, 10, 13, 32]] = True
MAX_ID = 99
"""Longest chain id that is kept as it is while gemmi reads."""
_PLACES = ("Cartn_x", "Cartn_y", "Cartn_z")
_TWINS = (
    ("label_seq_id", "auth_seq_id"),
    ("label_asym_id", "auth_asym_id"),
    ("label_comp_id", "auth_comp_id"),
    ("label_atom_id", "auth_atom_id"),
)
"""Columns that say the same; gemmi takes the second where both are there."""
_IDENTITY = ("auth_asym_id", "label_asym_id", "auth_seq_id", "pdbx_pdb_ins_code", "auth_comp_id")
"""Columns in which all rows of one residue agree."""
_DEFAULTS = {
    "id": ".",
    "label_alt_id": ".",
    "label_asym_id": ".",
    "auth_asym_id": ".",
    "occupancy": "1",
    "B_iso_or_equiv": "0",
}
"""Value of a column that a program leaves out."""


def read_cif(path: Path, text: str, model: int) -> Records:
    """Read model `model`, counted from 1, of the first block with atoms of an mmCIF file.

    Raises
    ------
    StructureError
        If the file is damaged, lacks a column without which atoms have no place, or has no such
        model.
    UnsafeFileError
        If it holds more values than `MAX_ATOMS` atoms need.
    """
    _check_size(path, text)
    try:
        return _read(path, gemmi.cif.read_string(text), model)
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, MolfunError):
            raise
        if not text.isascii():
            _refuse_foreign_rows(path, text)
        raise StructureError(
            f"{path} is damaged or not mmCIF: {first_line(error)}. Download it again."
        ) from error


def _refuse_foreign_rows(path: Path, text: str) -> None:
    """Name the first byte that is not ASCII among the atoms: outside of quotes it is no value."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith(("ATOM", "HETATM")) and not line.isascii():
            refuse_foreign(path, f"line {number}", line)


def _check_size(path: Path, text: str) -> None:
    """Refuse more values than fit before gemmi makes an object of each."""
    if len(text) <= MAX_ATOMS.value:
        return
    words = 0
    for start in range(0, len(text), 2**24):
        chunk = np.frombuffer(text[start : start + 2**24].encode("latin-1"), np.uint8)
        words += int(np.count_nonzero(np.diff(_SPACE[chunk].view(np.int8)) > 0)) + 1
    MAX_ATOMS.check(words // _VALUES_PER_ATOM, path, advice=CUT)


def _read(path: Path, document: Any, model: int) -> Records:
    blocks = [b for b in document if len(b.find_mmcif_category("_atom_site."))]
    if not blocks:
        raise StructureError(
            f"{path} holds no atoms (no _atom_site table). Download the coordinates."
        )
    block = blocks[0]
    notes: list[Note] = []
    if len(blocks) > 1:
        rest = few([b.name for b in blocks[1:]])
        sentence = f"read block {block.name}, the first of {len(blocks)} with atoms; not {rest}"
        notes.append(Note(sentence, "one block of several"))
    table = _Table(path, block)
    rows, note = table.model_rows(model)
    notes += note
    split = split_chains(path, list(table.residues(rows)), longest_id=MAX_ID)
    lengths, absent = _lengths(block, table, split.parts)
    table.write(split.parts)
    return Records(
        structure=gemmi.make_structure_from_block(block),
        parts=split.parts,
        notes=notes + split.notes,
        lengths=lengths,
        absent=absent,
        experiment=experiment_of_cif(block),
    )


class _Table:
    """The _atom_site table of a block, completed where a program left columns out."""

    def __init__(self, path: Path, block: Any) -> None:
        block.find_mmcif_category("_atom_site.").ensure_loop()
        self.path, self._block = path, block
        self._loop = block.find_mmcif_category("_atom_site.").loop
        self._tags = {tag.split(".", 1)[1].lower(): tag for tag in self._loop.tags}
        self._columns: dict[str, list[str]] = {}
        self._complete()

    def column(self, tag: str) -> list[str]:
        """Return the values of a column as written; ``.`` in every row if it is missing."""
        if tag not in self._tags:
            return ["."] * self._loop.length()
        if tag not in self._columns:
            # most values repeat: one text for all of them saves memory
            known: dict[str, str] = {}
            values = self._block.find_values(self._tags[tag])
            self._columns[tag] = [known.setdefault(value, value) for value in values]
        return self._columns[tag]

    def _set(self, tag: str, values: Sequence[str]) -> None:
        if tag not in self._tags:
            self._add(tag, ".")
        column = self._block.find_values(self._tags[tag])
        for row, value in enumerate(values):
            column[row] = value
        self._columns.pop(tag, None)

    def _add(self, tag: str, value: str) -> None:
        self._tags[tag.lower()] = f"_atom_site.{tag}"
        self._loop.add_columns([f"_atom_site.{tag}"], value)

    def _complete(self) -> None:
        """Fill columns that are not there, or hold nothing."""
        for label, author in _TWINS:
            if label in self._tags and all(v in ("?", ".") for v in self.column(author)):
                self._set(author, self.column(label))
        self._refuse_absent()
        for tag, value in _DEFAULTS.items():
            if tag.lower() not in self._tags:
                self._add(tag, value)
        if "type_symbol" not in self._tags:
            names = self.column("auth_atom_id")
            self._set("type_symbol", [name.strip("\"'0123456789")[:1] or "X" for name in names])

    def _refuse_absent(self) -> None:
        """Refuse a table without columns that nothing else can fill."""
        absent = [tag for tag in _PLACES if tag.lower() not in self._tags]
        absent += [t for t, twin in _TWINS if twin not in self._tags and twin not in _DEFAULTS]
        if absent:
            tags = ", ".join(f"_atom_site.{tag}" for tag in absent)
            raise StructureError(f"{self.path} lacks the columns {tags}. Export them with it.")

    def model_rows(self, model: int) -> tuple[list[int], list[Note]]:
        """Return the rows of a model, counted from 1, and what there is to say about the others."""
        rows: dict[str, list[int]] = {}
        for row, number in enumerate(self.column("pdbx_pdb_model_num")):
            rows.setdefault(number, []).append(row)
        if model > len(rows):
            raise StructureError(f"{self.path} has no model {model}; it has {len(rows)}.")
        models = list(rows.values())
        if len(models) < 2:
            return models[0], []
        held = [self._identities(rows) for rows in models]
        others = [str(i) for i, names in enumerate(held, start=1) if names != held[model - 1]]
        return models[model - 1], [model_note(model, len(models), others)]

    def _identities(self, rows: Sequence[int]) -> set[tuple[str, ...]]:
        columns = [self.column(f"auth_{what}_id") for what in ("asym", "seq", "comp")]
        return {tuple(column[row] for column in columns) for row in rows}

    def residues(self, rows: Sequence[int]) -> Iterator[Residue]:
        """Return runs of rows that follow each other and are of one residue."""
        identity = [self.column(tag) for tag in _IDENTITY]
        places = [self._block.find_values(self._tags[tag.lower()]) for tag in _PLACES]
        groups, names = self.column("group_pdb"), self.column("auth_atom_id")
        alternates = self.column("label_alt_id")
        for key, own in groupby(rows, lambda row: [column[row] for column in identity]):
            atoms = list(own)
            residue = self._residue(key, hetero=groups[atoms[0]].upper() == "HETATM")
            residue.places += atoms
            residue.alternate = any(alternates[row] not in (".", "?", "") for row in atoms)
            for row in atoms:
                name = gemmi.cif.as_string(names[row])
                if name not in residue.atoms:
                    residue.atoms[name] = _point(places, row) if name in TRACED else None
            yield residue

    def _residue(self, key: Sequence[str], *, hetero: bool) -> Residue:
        chain, segment, number, insertion, name = map(gemmi.cif.as_string, key)
        if not (chain + number + insertion + name).isascii():
            refuse_foreign(self.path, f"the atoms of residue {name} {number}", chain + name)
        order = int(number) if number.lstrip("-").isdecimal() and len(number) < 9 else None
        return Residue(chain, segment, number + insertion, standard_name(name), hetero, order=order)

    def write(self, parts: Sequence[Part]) -> None:
        """Put the rows of the parts, ordered and named by code, in place of all."""
        order = [row for part in parts for row in _rows(part)]
        own = all(part.code == part.chain for part in parts)
        if own and order == list(range(self._loop.length())):
            return
        codes = [gemmi.cif.quote(part.code) for part in parts for _ in _rows(part)]
        if order == list(range(self._loop.length())):
            self._set("auth_asym_id", codes)
        else:
            self._rewrite(order, codes)

    def _rewrite(self, order: Sequence[int], codes: list[str]) -> None:
        """Leave the rows of `order`, with other names of their chains."""
        tags, values = self._loop.tags, self._loop.values
        columns = [values[i :: len(tags)] for i in range(len(tags))]
        columns = [[column[row] for row in order] for column in columns]
        columns[tags.index(self._tags["auth_asym_id"])] = codes
        self._loop.set_all_values(columns)


def _rows(part: Part) -> list[int]:
    return [row for residue in part.residues for row in residue.places]


def _point(columns: Sequence[Any], row: int) -> tuple[float, float, float]:
    """Return coordinates, NaN where there is no number; digits in brackets are errors."""
    x, y, z = (gemmi.cif.as_number(column[row]) for column in columns)
    return x, y, z


def _lengths(
    block: Any, table: _Table, parts: Sequence[Part]
) -> tuple[dict[str, int], dict[str, int]]:
    """Count amino acids in the sequence of each chain, and of the entities without atoms."""
    counts = _entity_lengths(block)
    if not counts:
        return {}, {}
    asym = {row[0]: row[1] for row in block.find("_struct_asym.", ["id", "entity_id"])}
    entities = table.column("label_entity_id")
    if set(entities) <= {"?", "."}:
        entities = [asym.get(name, "") for name in table.column("label_asym_id")]
    found = {}
    for part in parts:
        first = next((residue for residue in part.residues if residue.is_amino_acid), None)
        if first is not None and part.number == 0:
            found[part.code] = counts.get(entities[first.places[0]], 0)
    return found, _absent_entities(block, set(entities), counts)


def _absent_entities(block: Any, present: set[str], counts: dict[str, int]) -> dict[str, int]:
    rows = block.find("_entity_poly.", ["entity_id", "type"])
    peptides = {row[0] for row in rows if "peptide" in row[1].lower()}
    return {f"entity {e}": counts.get(e, 0) for e in sorted(peptides - present)}


def _entity_lengths(block: Any) -> dict[str, int]:
    """Count residues in the sequence of each polymer."""
    numbers: dict[str, set[str]] = {}
    for row in block.find("_entity_poly_seq.", ["entity_id", "num"]):
        numbers.setdefault(row[0], set()).add(row[1])
    if numbers:
        return {entity: len(found) for entity, found in numbers.items()}
    rows = block.find("_entity_poly.", ["entity_id", "pdbx_seq_one_letter_code"])
    texts = {row[0]: gemmi.cif.as_string(row[1]) for row in rows}
    # a modified residue is written in brackets: (MSE)
    return {e: len(re.sub(r"\s", "", re.sub(r"\([^()]*\)", "X", t))) for e, t in texts.items()}
