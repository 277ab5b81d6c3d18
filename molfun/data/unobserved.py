"""Residues of a sequence that an experiment did not see: named by a file, without coordinates.

A model of structures reads the whole sequence, as openfold's training pipeline does; what has no
coordinates counts in no loss. They stand in ``_pdbx_poly_seq_scheme`` of mmCIF, and in remark 465
of the PDB format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import gemmi
import numpy as np

from molfun.data.structure_names import residue_name
from molfun.protein import CHAIN_GAP, RESIDUE_LETTERS, UNKNOWN_RESIDUE, Note, Protein
from molfun.text import counted

_SCHEME = (
    "_pdbx_poly_seq_scheme.pdb_strand_id",
    "_pdbx_poly_seq_scheme.pdb_seq_num",
    "_pdbx_poly_seq_scheme.pdb_ins_code",
    "_pdbx_poly_seq_scheme.mon_id",
    "_pdbx_poly_seq_scheme.auth_mon_id",
)
_REMARK = re.compile(r"^REMARK 465 .{3} ([ \w]{3}) (\S) ([ \d-]{5})(.?)\s*$", re.MULTILINE)
_NUMBER = re.compile(r"(-?\d+)(.?)")


@dataclass(frozen=True)
class Unobserved:
    """A residue without coordinates.

    Parameters
    ----------
    chain
        Chain id of the author.
    number, insertion
        Number and insertion code of the author.
    name
        Name of three letters.
    """

    chain: str
    number: int
    insertion: str
    name: str


def unobserved_of_cif(block: Any) -> tuple[Unobserved, ...]:
    """Return the residues of polymers that a block of mmCIF (`gemmi.cif.Block`) names alone."""
    rows = block.find(list(_SCHEME))
    found = (_of_scheme(*map(gemmi.cif.as_string, row)) for row in rows if row[4] in ("?", "."))
    return tuple(one for one in found if one is not None)


def _of_scheme(
    chain: str, number: str, insertion: str, name: str, _author: str
) -> Unobserved | None:
    try:
        return Unobserved(chain, int(number), "" if insertion in (".", "?") else insertion, name)
    except ValueError:
        return None


def unobserved_of_pdb(header: str) -> tuple[Unobserved, ...]:
    r"""Return the residues of remark 465.

    Examples
    --------
    >>> unobserved_of_pdb("REMARK 465     GLY A    -1 \nREMARK 465     MET A    52A\n")[1]
    Unobserved(chain='A', number=52, insertion='A', name='MET')
    """
    return tuple(
        Unobserved(chain, int(number), insertion.strip(), name.strip())
        for name, chain, number, insertion in _REMARK.findall(header)
        if number.strip().lstrip("-").isdigit()
    )


def with_unobserved(protein: Protein, unobserved: Sequence[Unobserved]) -> Protein:
    """Return a protein with the amino acids that have no coordinates, where their numbers fit.

    A chain whose numbers do not rise is left as it is, and so are residues of chains without any
    coordinates. A note says how many were added.

    Examples
    --------
    >>> protein = Protein.from_sequence("AC", name="x")
    >>> protein = replace(protein, residue_ids=("4", "6"), residue_index=np.array([0, 2]))
    >>> whole = with_unobserved(protein, [Unobserved("A", 5, "", "GLY")])
    >>> whole.sequence, whole.residue_ids, whole.residue_index.tolist()
    ('AGC', ('4', '5', '6'), [0, 1, 2])
    """
    if not (unobserved and protein.residue_ids):
        return protein
    merged = [
        entry
        for chain, name in enumerate(protein.chain_ids)
        for entry in _chain(protein, chain, [one for one in unobserved if one.chain == name])
    ]
    added = len(merged) - len(protein)
    return _made(protein, merged, added) if added else protein


@dataclass
class _Entry:
    """Residue of the merged protein: a row of the protein read, or one without coordinates."""

    chain: int
    key: tuple[int, str]
    row: int = -1
    name: str = ""


def _chain(protein: Protein, chain: int, unobserved: Sequence[Unobserved]) -> list[_Entry]:
    """Return the residues of a chain in order, those without coordinates in their places."""
    rows = np.flatnonzero(protein.chain_index == chain)
    own = [_Entry(chain, _key(protein.residue_ids[row]), row=int(row)) for row in rows]
    keys = [entry.key for entry in own]
    # two chains of one id, or numbers that start again: nobody knows where a residue belongs
    unique = protein.chain_ids.count(protein.chain_ids[chain]) == 1
    if not unique or any(a >= b for a, b in pairwise(keys)):
        return own
    taken = set(keys)
    others = []
    for one in unobserved:
        info = gemmi.find_tabulated_residue(residue_name(one.name, []))
        key = (one.number, one.insertion)
        if key not in taken and info.is_amino_acid():
            taken.add(key)
            others.append(_Entry(chain, key, name=info.one_letter_code.upper()))
    return sorted([*own, *others], key=lambda entry: entry.key)


def _key(residue_id: str) -> tuple[int, str]:
    found = _NUMBER.fullmatch(residue_id)
    return (int(found[1]), found[2]) if found else (0, residue_id)


def _made(protein: Protein, merged: list[_Entry], added: int) -> Protein:
    rows = np.array([entry.row for entry in merged])
    there = rows >= 0

    def spread(values: np.ndarray) -> np.ndarray:
        made = np.zeros((len(rows), *values.shape[1:]), values.dtype)
        made[there] = values[rows[there]]
        return made

    aatype = spread(protein.aatype)
    aatype[~there] = [_aatype(entry.name) for entry in merged if entry.row < 0]
    sentence = f"added {counted(added, 'residue')} of the sequence without coordinates"
    return replace(
        protein,
        aatype=aatype,
        atom_positions=spread(protein.atom_positions),
        atom_mask=spread(protein.atom_mask),
        b_factors=spread(protein.b_factors),
        residue_index=np.array(list(_numbers(protein, merged)), np.int64),
        chain_index=np.array([entry.chain for entry in merged], np.int64),
        residue_ids=tuple(f"{number}{code}" for number, code in (e.key for e in merged)),
        full_sequence="",
        positions=np.zeros(0, np.int64),
        notes=(*protein.notes, Note(sentence, "residues without coordinates added")),
    )


def _aatype(letter: str) -> int:
    return RESIDUE_LETTERS.index(letter) if letter in RESIDUE_LETTERS else UNKNOWN_RESIDUE


def _numbers(protein: Protein, merged: Sequence[_Entry]) -> Iterator[int]:
    """Yield residue indices: those of the residues read keep their distances where there is room.

    A residue without coordinates is as far from the one before it as their numbers say.
    """
    index, last_read, at_last = -CHAIN_GAP, -1, 0
    for before, entry in zip([None, *merged], merged, strict=False):
        if before is None or before.chain != entry.chain:
            index, last_read = index + CHAIN_GAP, -1
        elif entry.row < 0 or last_read < 0:
            index += max(1, entry.key[0] - before.key[0])
        else:
            row = int(protein.residue_index[entry.row] - protein.residue_index[last_read])
            index = max(index + 1, at_last + row)
        if entry.row >= 0:
            last_read, at_last = entry.row, index
        yield index
