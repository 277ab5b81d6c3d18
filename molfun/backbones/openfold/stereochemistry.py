"""Bonds and angles of amino acids for the violation loss, where openfold comes without its table.

The package of the index lacks ``stereo_chemical_props.txt``, which its own set-up downloads, and
``find_structural_violations`` then raises FileNotFoundError. The lengths here are those of
openfold's rigid groups, from which its structure module builds all atoms: a predicted structure
differs from them only where a torsion opens the ring of proline. The loss allows 12 standard
deviations; those here are typical of Engh and Huber 2001 (International Tables F, 18.3).
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
from typing import Any

import numpy as np

BOND_DEVIATION = 0.02
"""Standard deviation of a bond in angstrom."""
ANGLE_DEVIATION = np.radians(2.0)
"""Standard deviation of an angle in radians."""
LONGEST_BOND = 1.95
"""Longest bond in angstrom; the next longer distances, across an angle, start at 2.1."""
PROLINE_RING = (("N", "CD", 1.474), ("CA", "CD", 2.46), ("N", "CG", 2.37))
"""Lengths across the ring of proline (Engh and Huber), which no rigid group holds."""


def add_missing_table() -> None:
    """Give openfold a table of bonds if it came without one."""
    from openfold.np import residue_constants

    table = importlib.resources.files("openfold.resources") / "stereo_chemical_props.txt"
    if not table.is_file():
        residue_constants.load_stereo_chemical_props = ideal_bonds


@functools.cache
def ideal_bonds() -> tuple[dict[str, list[Any]], dict[str, list[Any]], dict[str, list[Any]]]:
    """Return bonds, distances across angles, and no angles, by residue, as openfold's own reader.

    Examples
    --------
    >>> bonds, across, _ = ideal_bonds()
    >>> [(b.atom1_name, b.atom2_name, round(b.length, 2)) for b in bonds["GLY"]]
    [('N', 'CA', 1.45), ('CA', 'C', 1.52), ('C', 'O', 1.23)]
    >>> len(bonds["TRP"]), len(across["ALA"])
    (15, 4)
    """
    from openfold.np.residue_constants import resnames

    found = {name: _of_residue(name) for name in resnames if name != "UNK"}
    bonds = {name: own[0] for name, own in found.items()} | {"UNK": []}
    across = {name: own[1] for name, own in found.items()} | {"UNK": []}
    return bonds, across, {name: [] for name in bonds}


def _of_residue(name: str) -> tuple[list[Any], list[Any]]:
    from openfold.np.residue_constants import Bond

    length = _distances(name)
    bonded = {pair for pair, value in length.items() if value < LONGEST_BOND}
    # with all torsions at 180 degrees, the ring of tryptophan lies on the oxygen of its backbone
    bonded -= {("O", "CE3"), ("CE3", "O")}
    near = _neighbours(bonded)
    across = [pair for pair in length if pair not in bonded and near[pair[0]] & near[pair[1]]]
    return (
        [Bond(*pair, length[pair], BOND_DEVIATION) for pair in length if pair in bonded],
        [Bond(*pair, length[pair], _deviation_across(length[pair])) for pair in across],
    )


def _neighbours(bonded: set[tuple[str, str]]) -> dict[str, set[str]]:
    near: dict[str, set[str]] = {}
    for one, other in bonded:
        near.setdefault(one, set()).add(other)
        near.setdefault(other, set()).add(one)
    return near


def _distances(name: str) -> dict[tuple[str, str], float]:
    """Return the distance of every two atoms of a residue, in angstrom."""
    places = _ideal_positions(name)
    found = {
        (one, other): float(np.linalg.norm(places[one] - places[other]))
        for one, other in itertools.combinations(places, 2)
    }
    ring = PROLINE_RING if name == "PRO" else ()
    return found | {(one, other): value for one, other, value in ring}


def _deviation_across(length: float) -> float:
    """Return the deviation of a distance across an angle between two bonds of 1.5 angstrom."""
    bond = 1.5
    sine = np.sqrt(max(0.0, 1 - (1 - length**2 / (2 * bond**2)) ** 2))
    return float(np.hypot(bond**2 * sine / length * ANGLE_DEVIATION, BOND_DEVIATION))


def _ideal_positions(name: str) -> dict[str, np.ndarray]:
    """Return the atoms of a residue with its side chain stretched, in the frame of its backbone."""
    from openfold.np import residue_constants as constants

    row = constants.restype_order[constants.restype_3to1[name]]
    frames = np.array(constants.restype_rigid_group_default_frame[row], np.float64)
    # torsions of 180 degrees, so that no atom comes near another to which it is not bonded
    frames[4:] = frames[4:] @ np.diag([1.0, -1.0, -1.0, 1.0])
    # the frames of chi 2 to chi 4 are given in that of the chi before
    for group in range(5, 8):
        frames[group] = frames[group - 1] @ frames[group]
    return {
        atom: (frames[group] @ np.array([*place, 1.0]))[:3]
        for atom, group, place in constants.rigid_group_atom_positions[name]
    }
