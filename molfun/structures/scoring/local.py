"""lDDT of each residue, by biotite."""

from __future__ import annotations

from typing import Any

import numpy as np

from molfun._lazy import require
from molfun.protein import ATOM_NAMES, CA, RESIDUE_LETTERS_WITH_X, Protein
from molfun.structures.scoring.pairing import Pairing

INSTALL = "pip install 'molfun[score]'"


def lddt(
    pairing: Pairing, predicted: Protein, reference: Protein, *, ca_only: bool
) -> tuple[float, np.ndarray]:
    """Return the lDDT of the structure and of each residue of the reference, 0 to 1.

    Distances of atoms within 15 angstrom in the reference are compared, to 0.5, 1, 2 and 4
    angstrom. Atoms that the prediction lacks count as not preserved. Atoms of symmetric side chains
    are compared under the names that the files give them.

    Parameters
    ----------
    pairing, predicted, reference
        The residues, and the structures.
    ca_only
        Whether the CA atoms alone are compared, else all heavy atoms.

    Returns
    -------
    float, numpy.ndarray
        Value of all residues, and (length of the reference,) values; NaN for a residue without
        atoms, or without any other in its reach.

    References
    ----------
    Mariani et al. 2013; ``biotite.structure.lddt``.
    """
    require("biotite", INSTALL)
    from biotite.structure import lddt as biotite_lddt

    columns = np.array([CA]) if ca_only else np.arange(len(ATOM_NAMES))
    rows, atoms = np.nonzero(reference.atom_mask[:, columns] > 0)
    if len(rows) == 0:
        return float("nan"), np.full(len(reference), np.nan)
    atoms = columns[atoms]
    places = _predicted_places(pairing, predicted, reference, rows, atoms)
    array = _atom_array(reference, rows, atoms)
    subject = array.copy()
    # biotite counts a distance to NaN as not preserved
    subject.coord = places
    per_atom = biotite_lddt(array, subject, aggregation="atom")
    counts = _contacts(array)
    known = counts > 0
    per_residue = np.full(len(reference), np.nan)
    for row in np.unique(rows):
        here = (rows == row) & known
        if here.any():
            per_residue[row] = np.average(per_atom[here], weights=counts[here])
    whole = float(np.average(per_atom[known], weights=counts[known])) if known.any() else np.nan
    return whole, per_residue


def _predicted_places(
    pairing: Pairing, predicted: Protein, reference: Protein, rows: np.ndarray, atoms: np.ndarray
) -> np.ndarray:
    """Return the place of each atom of the reference in the prediction; NaN where it is absent."""
    partner = np.full(len(reference), -1, np.int64)
    partner[pairing.reference] = pairing.predicted
    own = partner[rows]
    there = (own >= 0) & (predicted.atom_mask[own, atoms] > 0)
    # another residue type has other side chains under the same names
    same = predicted.aatype[own] == reference.aatype[rows]
    there &= same | (atoms < 5)
    places = np.full((len(rows), 3), np.nan, np.float32)
    places[there] = predicted.atom_positions[own[there], atoms[there]]
    return places


def _atom_array(protein: Protein, rows: np.ndarray, atoms: np.ndarray) -> Any:
    from biotite.structure import AtomArray

    array = AtomArray(len(rows))
    array.coord = protein.atom_positions[rows, atoms]
    array.chain_id = protein.chain_index[rows].astype(str)
    array.res_id = rows + 1
    array.res_name = np.array([_three(protein.aatype[row]) for row in rows])
    array.atom_name = np.array([ATOM_NAMES[atom] for atom in atoms])
    array.element = np.array([ATOM_NAMES[atom][0] for atom in atoms])
    return array


def _three(aatype: int) -> str:
    import gemmi

    name: str = gemmi.expand_one_letter(RESIDUE_LETTERS_WITH_X[aatype], gemmi.ResidueKind.AA)
    return name


def _contacts(array: Any) -> np.ndarray:
    """Return the number of atoms of other residues within 15 angstrom of each atom."""
    from scipy.spatial import cKDTree

    tree = cKDTree(array.coord)
    counts = np.zeros(len(array), np.int64)
    pairs = tree.query_pairs(15.0, output_type="ndarray")
    other = array.res_id[pairs[:, 0]] != array.res_id[pairs[:, 1]]
    np.add.at(counts, pairs[other].ravel(), 1)
    return counts
