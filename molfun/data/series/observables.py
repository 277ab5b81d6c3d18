"""Compute single observables of a molecule from the positions of its atoms."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from molfun._lazy import require
from molfun._shapes import Bool, Int64
from molfun.errors import DataError

logger = logging.getLogger(__name__)

CONTACT_CUTOFF = 4.5
"""Heavy atoms closer than this many angstrom in the first frame are a native contact.

This and the next three numbers are those of Best, Hummer and Eaton 2013 (PNAS 110, 17874).
"""
CONTACT_GAP = 3
"""Residues of a contact are further apart in the sequence than this."""
CONTACT_STEEPNESS, CONTACT_STRETCH = 5.0, 1.8
"""Their beta (1/angstrom) and lambda, for simulations with all atoms."""
PEPTIDE_BOND = 2.0
"""Residues whose C and N are closer than this many angstrom in the first frame are bonded."""
GAMMA = ("CG", "CG1", "OG", "OG1", "SG")
"""Fourth atom of chi1; each amino acid that has the angle has one of these (IUPAC-IUB 1970)."""
INSTALL = "pip install 'molfun[md]'"

Compute = Callable[[np.ndarray, Any], np.ndarray]


@dataclass(frozen=True)
class Part:
    """Features of one observable: names, which of them exist, and the function of positions."""

    names: list[str]
    of: Compute
    known: Bool[np.ndarray, "features"]


def _part(names: Sequence[str], of: Compute) -> Part:
    return Part(list(names), of, np.ones(len(names), bool))


@dataclass
class System:
    """A molecule at the first frame that is read."""

    universe: Any
    selection: str
    shown: str

    def __post_init__(self) -> None:
        self.atoms = self.select("protein", self.selection)
        self.positions = self.universe.trajectory.ts.positions.copy()
        self._selected = np.zeros(len(self.positions), bool)
        self._selected[self.atoms.indices] = True

    def select(self, name: str, text: str) -> Any:
        """Return the atoms of a selection."""
        atoms = self.universe.select_atoms(text)
        if len(atoms) == 0:
            raise DataError(f"{self.shown}: the selection {name}={text!r} matches no atom.")
        return atoms

    @property
    def residues(self) -> list[Any]:
        """Residues of the protein in order."""
        return list(self.atoms.residues)

    @property
    def labels(self) -> list[str]:
        """A name for each residue: its number, with the chain where there are several."""
        several = len(set(self.atoms.residues.segids)) > 1
        labels = [
            f"{residue.segid if several else ''}{residue.resid}{getattr(residue, 'icode', '')}"
            for residue in self.residues
        ]
        if len(set(labels)) == len(labels):
            return labels
        # files without chains number them all from 1
        return [str(residue.resindex + 1) for residue in self.residues]

    def named(self, residue: Any) -> dict[str, int]:
        """Index of each selected atom of a residue by its name; of alternatives, the first."""
        found: dict[str, int] = {}
        for name, index in zip(residue.atoms.names, residue.atoms.indices, strict=True):
            if self._selected[index]:
                found.setdefault(str(name), int(index))
        return found

    def bonded(self, one: int | None, other: int | None) -> bool:
        """Return whether two atoms are as close as a peptide bond."""
        if one is None or other is None:
            return False
        return float(np.linalg.norm(self.positions[one] - self.positions[other])) < PEPTIDE_BOND

    def refuse(self, name: str, needed: str) -> DataError:
        """Return the error for a system without the atoms of an observable."""
        return DataError(
            f"{self.shown}: {name} needs {needed} in {self.selection!r}. Leave it out of observe, "
            f"or give another selection as protein."
        )


def _radius_of_gyration(system: System) -> list[Part]:
    masses = np.asarray(getattr(system.atoms, "masses", np.zeros(1)), np.float64)
    if not (masses > 0).all():
        raise system.refuse("rg", "the masses of all atoms")
    weights, indices = masses / masses.sum(), system.atoms.indices

    def compute(positions: np.ndarray, _box: Any) -> np.ndarray:
        own = positions[indices].astype(np.float64)
        centred = own - weights @ own
        return np.array([math.sqrt(float(weights @ (centred**2).sum(axis=1)))])

    return [_part(["rg"], compute)]


def _end_to_end(system: System) -> list[Part]:
    ends: dict[str, list[int]] = {}
    for residue in system.residues:
        carbon = system.named(residue).get("CA")
        if carbon is not None:
            ends.setdefault(str(residue.segid), []).append(carbon)
    chains = {name: (found[0], found[-1]) for name, found in ends.items() if len(found) > 1}
    if not chains:
        raise system.refuse("end_to_end", "two atoms CA of one chain")
    first, last = np.array(list(chains.values())).T

    def compute(positions: np.ndarray, _box: Any) -> np.ndarray:
        return np.asarray(np.linalg.norm(positions[last] - positions[first], axis=1))

    single = len(ends) == 1
    return [_part(["end_to_end" if single else f"end_to_end_{n}" for n in chains], compute)]


def _phi(system: System) -> list[Part]:
    atoms = [system.named(residue) for residue in system.residues]
    quads = []
    for before, own in zip([{}, *atoms], atoms, strict=False):
        linked = system.bonded(before.get("C"), own.get("N"))
        quads.append([before.get("C") if linked else None, *map(own.get, ("N", "CA", "C"))])
    return _angles(system, "phi", quads)


def _psi(system: System) -> list[Part]:
    atoms = [system.named(residue) for residue in system.residues]
    quads = []
    for own, after in zip(atoms, [*atoms[1:], {}], strict=True):
        linked = system.bonded(own.get("C"), after.get("N"))
        quads.append([*map(own.get, ("N", "CA", "C")), after.get("N") if linked else None])
    return _angles(system, "psi", quads)


def _chi1(system: System) -> list[Part]:
    quads = []
    for residue in system.residues:
        own = system.named(residue)
        gamma = next((own[name] for name in GAMMA if name in own), None)
        quads.append([*map(own.get, ("N", "CA", "CB")), gamma])
    return _angles(system, "chi1", quads)


def _angles(system: System, name: str, quads: Sequence[Sequence[int | None]]) -> list[Part]:
    """Return sine and cosine of dihedrals, NaN where an atom is None."""
    distances = require("MDAnalysis.lib.distances", INSTALL)
    labels = system.labels
    known = np.array([None not in quad for quad in quads])
    if not known.any():
        raise system.refuse(name, "residues with the four atoms of the angle")
    atoms: Int64[np.ndarray, "4 angles"] = np.array(
        [quad for quad in quads if None not in quad], np.int64
    ).T

    def compute(positions: np.ndarray, _box: Any) -> np.ndarray:
        values = np.full((len(quads), 2), np.nan)
        angles = distances.calc_dihedrals(*(positions[column] for column in atoms))
        values[known] = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        return values.reshape(-1)

    names = [f"{name}_{label}_{form}" for label in labels for form in ("sin", "cos")]
    return [Part(names, compute, np.repeat(known, 2))]


def _native_contacts(system: System) -> list[Part]:
    distances = require("MDAnalysis.lib.distances", INSTALL)
    heavy = system.atoms.select_atoms("not (name H* or name [123]H*)")
    pairs, native = distances.self_capped_distance(
        system.positions[heavy.indices], max_cutoff=CONTACT_CUTOFF
    )
    apart = np.abs(np.diff(heavy.resindices[pairs], axis=1)[:, 0]) > CONTACT_GAP
    other_chain = np.diff(heavy.segindices[pairs], axis=1)[:, 0] != 0
    kept = apart | other_chain
    left, right = heavy.indices[pairs[kept]].T
    reference = CONTACT_STRETCH * native[kept]
    if not kept.any():
        logger.warning("%s has no native contact in its first frame; masked.", system.shown)

    def compute(positions: np.ndarray, _box: Any) -> np.ndarray:
        if len(reference) == 0:
            return np.array([np.nan])
        now = np.linalg.norm(positions[left] - positions[right], axis=1)
        # beyond 60 the contact is 0 to every digit, and a larger exponent would overflow
        steps = np.minimum(CONTACT_STEEPNESS * (now - reference), 60.0)
        return np.array([np.mean(1 / (1 + np.exp(steps)))])

    return [Part(["native_contacts"], compute, np.array([len(reference) > 0]))]


def _rmsd(system: System) -> list[Part]:
    rms = require("MDAnalysis.analysis.rms", INSTALL)
    chain = system.atoms.select_atoms("name N CA C O")
    if len(chain) < 3:
        raise system.refuse("rmsd", "at least three atoms N, CA, C or O")
    reference = system.positions[chain.indices].astype(np.float64)

    def compute(positions: np.ndarray, _box: Any) -> np.ndarray:
        own = positions[chain.indices].astype(np.float64)
        return np.array([rms.rmsd(own, reference, center=True, superposition=True)])

    return [_part(["rmsd"], compute)]


def selection_distances(system: System, select: Mapping[str, str]) -> list[Part]:
    """Return distances between the centres of all pairs of named selections."""
    distances = require("MDAnalysis.lib.distances", INSTALL)
    chosen = {name: system.select(name, text).indices for name, text in select.items()}
    pairs = list(itertools.combinations(chosen, 2))
    if not pairs:
        return []
    order = {name: place for place, name in enumerate(chosen)}
    left, right = np.array([[order[a], order[b]] for a, b in pairs]).T

    def compute(positions: np.ndarray, box: Any) -> np.ndarray:
        centres = np.stack([positions[indices].mean(axis=0) for indices in chosen.values()])
        centres = centres.astype(np.float32)
        return np.asarray(distances.calc_bonds(centres[left], centres[right], box=box))

    return [_part([f"distance_{a}_{b}" for a, b in pairs], compute)]


MAKERS: dict[str, Callable[[System], list[Part]]] = {
    "rg": _radius_of_gyration,
    "end_to_end": _end_to_end,
    "phi": _phi,
    "psi": _psi,
    "chi1": _chi1,
    "native_contacts": _native_contacts,
    "rmsd": _rmsd,
}
