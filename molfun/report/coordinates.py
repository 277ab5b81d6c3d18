"""Main chains of structures with a number per residue in place of the B-factor, for the 3D view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from molfun.data.structures import CIF_SUFFIXES
from molfun.protein import Protein

Mode = Literal["plddt", "attribution", "chain"]
OUTSIDE = -99.0
"""B-factor of residues that the model did not read."""
SCALE = 50.0
"""B-factor of the largest contribution; the column has room for six characters."""
PREDICTIONS = ("ALPHAFOLD", "ESMFOLD")
"""Programs that write pLDDT as B-factors of PDB files, by their titles."""
NEAR = 0.05
"""Distance in angstrom up to which two atoms are the same one; files have three decimals."""
CA = 1
"""Place of the alpha carbon among the 37 atoms of a residue."""


def read(path: Path) -> tuple[Any, bool]:
    """Return the first model of a file, and whether its B-factors are pLDDT.

    They are if a ModelCIF file lists the metric pLDDT, or a PDB file is titled as a prediction of
    AlphaFold or ESMFold.
    """
    import gemmi

    structure = gemmi.read_structure(str(path))
    is_cif = any(suffix in path.name.lower() for suffix in CIF_SUFFIXES)
    plddt = _lists_plddt(path) if is_cif else _is_titled(structure)
    structure.setup_entities()
    structure.remove_ligands_and_waters()
    structure.remove_alternative_conformations()
    del structure[1:]
    return structure, plddt


def _lists_plddt(path: Path) -> bool:
    import gemmi

    block = gemmi.cif.read(str(path))[0]
    tags = ("_ma_qa_metric.name", "_ma_qa_metric.type")
    found = [gemmi.cif.as_string(v) for tag in tags for v in block.find_values(tag)]
    return any("plddt" in text.lower() for text in found)


def _is_titled(structure: Any) -> bool:
    title = dict(structure.info).get("_struct.title", "").upper()
    return "PREDICTION" in title and any(name in title for name in PREDICTIONS)


def residues_of(structure: Any) -> list[Any]:
    """Return the residues of a structure in the order of the file."""
    return [residue for chain in structure[0] for residue in chain]


def places_in(structure: Any, protein: Protein | None) -> np.ndarray | None:
    """Return (residues,) the place of each residue of a file in what the model read; -1: not read.

    Alpha carbons are matched by their coordinates: numbers and names of chains and residues change
    on the way from a file to a model, coordinates do not. None where nothing matches.
    """
    if protein is None:
        return None
    from scipy.spatial import cKDTree

    known = np.flatnonzero(protein.atom_mask[:, CA])
    residues = residues_of(structure)
    atoms = [residue.find_atom("CA", "*") for residue in residues]
    own = np.array([i for i, atom in enumerate(atoms) if atom is not None], dtype=np.int64)
    if not known.size or not own.size:
        return None
    tree = cKDTree(protein.atom_positions[known, CA])
    distance, nearest = tree.query(np.array([atoms[i].pos.tolist() for i in own]))
    places = np.full(len(residues), -1)
    same = np.flatnonzero(distance < NEAR)
    places[own[same]] = known[np.asarray(nearest)[same]]
    return places if same.size else None


def coloured(
    structure: Any, places: np.ndarray | None, values: np.ndarray | None, *, plddt: bool
) -> tuple[str, Mode]:
    """Return the main chain as a PDB file whose B-factors say the colour, and what they are.

    Parameters
    ----------
    structure
        A ``gemmi.Structure`` of one model, which is changed.
    places
        Result of `places_in`; None shows every residue as read.
    values
        (length,) contribution of each residue that the model read; None where there are none.
    plddt
        True if B-factors of the file are pLDDT, which then are the colour.
    """
    import gemmi

    residues = residues_of(structure)
    mode: Mode = "chain"
    b = np.zeros(len(residues))
    if plddt:
        mode, b = "plddt", _confidence(residues)
    elif values is not None and places is not None and places.max() < len(values):
        mode, largest = "attribution", np.nanmax(np.abs(values), initial=0.0)
        b = np.nan_to_num(values)[places] * SCALE / (largest or 1.0)
    if places is not None:
        b = np.where(places < 0, OUTSIDE, b)
    for residue, number in zip(residues, b, strict=True):
        for atom in residue:
            atom.b_iso = float(number)
    kept = gemmi.Selection("//*//N,CA,C,O").copy_structure_selection(structure)
    kept.shorten_chain_names()  # the format has one letter for a chain
    return str(kept.make_minimal_pdb()), mode


def _confidence(residues: Sequence[Any]) -> np.ndarray:
    """Return pLDDT from 0 to 100; ESMFold wrote shares of 1."""
    b = np.array([max((atom.b_iso for atom in residue), default=0.0) for residue in residues])
    return 100 * b if b.size and b.max() <= 1 else b
