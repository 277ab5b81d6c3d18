"""Write a predicted structure as a PDB file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gemmi
import numpy as np

from molfun.protein import ATOM_NAMES, RESIDUE_LETTERS_WITH_X
from molfun.structures.folded import FoldedStructure

MAX_ATOMS = 99_999
"""Serial numbers of a PDB file have five digits."""
MAX_NUMBER = 9_999
"""Residue numbers have four."""
MIN_COORDINATE, MAX_COORDINATE = -999.999, 9_999.999
"""Coordinates have eight columns with three decimals, of which a sign takes one."""


def why_not_pdb(structure: FoldedStructure) -> str:
    """Say why a PDB file cannot hold a structure; an empty text if it can."""
    protein = structure.protein
    long = [name for name in structure.chain_names() if len(name) > 1]
    if long:
        return f"a PDB file holds chain names of one letter, and there is {long[0]!r}"
    atoms = int(protein.atom_mask.sum())
    if atoms > MAX_ATOMS:
        return f"a PDB file holds {MAX_ATOMS:,} atoms, and there are {atoms:,}"
    numbers = [number for number, _ in structure.residue_ids()]
    if max(numbers) > MAX_NUMBER or min(numbers) < -999:
        return "a PDB file holds residue numbers of four digits"
    # as they are written: what is rounded to three decimals may need a column more
    places = np.round(protein.atom_positions.astype(np.float64), 3)
    if places.min() < MIN_COORDINATE or places.max() > MAX_COORDINATE:
        return "a PDB file holds coordinates from -999.999 to 9,999.999 angstrom"
    return ""


def pdb_text(structure: FoldedStructure) -> str:
    """Return a structure as PDB text, pLDDT as B-factors, with what must be known as remarks.

    Raises
    ------
    ValueError
        If a PDB file cannot hold it; ask `why_not_pdb` first.
    """
    if why := why_not_pdb(structure):
        raise ValueError(f"{structure.id} cannot be written as PDB: {why}.")
    made = gemmi.Structure()
    made.name = structure.id
    model = gemmi.Model(1)
    for chain in _chains(structure):
        model.add_chain(chain)
    made.add_model(model)
    made.setup_entities()
    body: str = made.make_pdb_string(gemmi.PdbWriteOptions(cryst1_record=False))
    return "".join(f"{line}\n" for line in _remarks(structure)) + body


def _chains(structure: FoldedStructure) -> Iterator[Any]:
    protein = structure.protein
    ids = structure.residue_ids()
    for index, name in enumerate(structure.chain_names()):
        chain = gemmi.Chain(name)
        for row in np.flatnonzero(protein.chain_index == index).tolist():
            number, insertion = ids[row]
            residue = gemmi.Residue()
            letter = RESIDUE_LETTERS_WITH_X[protein.aatype[row]]
            residue.name = gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA)
            residue.seqid = gemmi.SeqId(number, insertion or " ")
            residue.entity_type = gemmi.EntityType.Polymer
            for atom in _atoms(structure, row):
                residue.add_atom(atom)
            chain.add_residue(residue)
        yield chain


def _atoms(structure: FoldedStructure, row: int) -> Iterator[Any]:
    protein = structure.protein
    for column in np.flatnonzero(protein.atom_mask[row] > 0).tolist():
        atom = gemmi.Atom()
        atom.name = ATOM_NAMES[column]
        atom.element = gemmi.Element(ATOM_NAMES[column][0])
        atom.pos = gemmi.Position(*protein.atom_positions[row, column].tolist())
        atom.occ = 1.0
        atom.b_iso = float(structure.plddt[row])
        yield atom


def _remarks(structure: FoldedStructure) -> Iterator[str]:
    """Yield remark 3 (methods) in lines of at most 80 characters."""
    import textwrap

    maker = structure.maker
    seed = "OF THE SAMPLE" if structure.seed is None else structure.seed
    texts = [
        f"PREDICTED BY {maker.model}; B-FACTORS ARE PLDDT.",
        f"WEIGHTS: {maker.weights} {maker.weights_sha256}".rstrip(),
        *([f"TRAINED: {maker.trained}"] if maker.trained else []),
        f"RECYCLING PASSES: {structure.recycles}; SEED: {seed}",
        *structure.notes,
    ]
    for text in texts:
        ascii_text = text.encode("ascii", "replace").decode()
        yield from (f"REMARK   3 {line}" for line in textwrap.wrap(ascii_text, 68))
