"""Faults of a structure that need no reference: clashes, and peptide bonds of wrong length."""

from __future__ import annotations

import numpy as np

from molfun.protein import ATOM_NAMES, Protein

RADII = {"C": 1.7, "N": 1.55, "O": 1.52, "S": 1.8}
"""Van der Waals radii in angstrom, as in AlphaFold's violation loss."""
OVERLAP = 1.5
"""Overlap of two radii in angstrom above which atoms clash (AlphaFold 2, supplement, 1.9.11)."""
PEPTIDE = (1.329, 1.341)
"""Length of the bond C-N in angstrom, and before proline (Engh and Huber)."""
DEVIATION = (0.014, 0.016)
"""Standard deviations of the same."""
TOLERANCE = 12.0
"""Standard deviations from which a bond is wrong, as in AlphaFold's violation loss."""
_N, _C, _SG = (ATOM_NAMES.index(name) for name in ("N", "C", "SG"))
_PROLINE = 14


def clashes(protein: Protein) -> int:
    """Count pairs of atoms of different residues that overlap by more than 1.5 angstrom.

    Bonded atoms do not count: peptide bonds between neighbours, and disulfide bridges.
    """
    from scipy.spatial import cKDTree

    rows, atoms = np.nonzero(protein.atom_mask > 0)
    if len(rows) < 2:
        return 0
    places = protein.atom_positions[rows, atoms]
    radii = np.array([RADII[ATOM_NAMES[atom][0]] for atom in atoms])
    pairs = cKDTree(places).query_pairs(2 * max(RADII.values()) - OVERLAP, output_type="ndarray")
    one, other = pairs.T
    gap = np.linalg.norm(places[one] - places[other], axis=-1)
    close = gap < radii[one] + radii[other] - OVERLAP
    different = rows[one] != rows[other]
    return int((close & different & ~_bonded(protein, rows, atoms, one, other)).sum())


def _bonded(
    protein: Protein, rows: np.ndarray, atoms: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """Return for each pair whether it is a peptide bond or a disulfide bridge."""
    swapped = rows[one] > rows[other]
    first, second = np.where(swapped, other, one), np.where(swapped, one, other)
    index, chain = protein.residue_index, protein.chain_index
    neighbours = (index[rows[second]] - index[rows[first]] == 1) & (
        chain[rows[first]] == chain[rows[second]]
    )
    peptide = neighbours & (atoms[first] == _C) & (atoms[second] == _N)
    return np.asarray(peptide | ((atoms[first] == _SG) & (atoms[second] == _SG)))


def wrong_bonds(protein: Protein) -> int:
    """Count peptide bonds whose length is 12 standard deviations or more from the usual one."""
    index, chain, mask = protein.residue_index, protein.chain_index, protein.atom_mask
    joined = (np.diff(index) == 1) & (np.diff(chain) == 0)
    joined &= (mask[:-1, _C] > 0) & (mask[1:, _N] > 0)
    length = np.linalg.norm(
        protein.atom_positions[1:, _N] - protein.atom_positions[:-1, _C], axis=-1
    )
    proline = (protein.aatype[1:] == _PROLINE).astype(int)
    off = np.abs(length - np.array(PEPTIDE)[proline]) > TOLERANCE * np.array(DEVIATION)[proline]
    return int((off & joined).sum())
