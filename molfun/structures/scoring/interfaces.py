"""DockQ: how well a predicted complex reproduces each interface of the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from molfun.protein import ATOM_NAMES, Protein
from molfun.structures.scoring.pairing import FEWEST, Pairing
from molfun.structures.scoring.superposition import superposed

CONTACT = 5.0
"""Distance in angstrom of heavy atoms of two residues in contact (CAPRI)."""
INTERFACE = 10.0
"""Distance of heavy atoms of two residues of an interface (CAPRI)."""
BACKBONE = tuple(ATOM_NAMES.index(name) for name in ("N", "CA", "C", "O"))


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Scores of one interface of the reference.

    Parameters
    ----------
    chains
        Names of both chains in the reference.
    dockq
        DockQ, 0 to 1; an RMSD that is not known adds nothing to it.
    fnat
        Share of the contacts of the reference that the prediction has. Contacts of residues that
        it lacks are missed.
    irmsd, lrmsd
        RMSD in angstrom of the backbone of the interface, and of the shorter chain after
        superposition of the longer one. Both are over the atoms that the prediction has, and NaN
        where these are too few, as for a chain that it lacks.
    contacts
        Residue contacts of the reference.

    Examples
    --------
    >>> from molfun.structures import score
    >>> reference = Protein.from_chains(["MKV", "GSH"])
    >>> rows = [[[3.8 * i, 4.0 * chain, 0] for i in range(3)] for chain in (0, 1)]
    >>> reference.atom_positions[:, 1] = np.concatenate(rows)  # CA atoms of two strands
    >>> reference.atom_mask[:, 1] = 1
    >>> found = score(reference, reference).interfaces[0]
    >>> found.chains, found.contacts, found.fnat, round(found.dockq, 3)
    (('A', 'B'), 3, 1.0, 1.0)
    """

    chains: tuple[str, str]
    dockq: float
    fnat: float
    irmsd: float
    lrmsd: float
    contacts: int


def interfaces(pairing: Pairing, predicted: Protein, reference: Protein) -> list[Interface]:
    """Return the scores of each pair of chains that touch in the reference.

    What the prediction lacks counts as wrong: contacts of missing residues are missed, and the
    interfaces of a missing chain have a DockQ of 0. Where nothing is missing, the scores are those
    of the authors' program.

    References
    ----------
    Basu and Wallner 2016, "DockQ: a quality measure for protein-protein docking models".
    """
    found = []
    for one, other in combinations(range(len(reference.chain_ids)), 2):
        score = _interface(pairing, predicted, reference, one, other)
        if score is not None:
            found.append(score)
    return found


@dataclass(frozen=True)
class _Side:
    """Residues of one chain: places in the reference, and in the prediction (-1: it lacks it)."""

    reference: np.ndarray
    predicted: np.ndarray

    def only(self, chosen: np.ndarray) -> _Side:
        """Return some of the residues, without those that the prediction lacks."""
        kept = chosen & (self.predicted >= 0)
        return _Side(self.reference[kept], self.predicted[kept])


def _interface(
    pairing: Pairing, predicted: Protein, reference: Protein, one: int, other: int
) -> Interface | None:
    sides = [_side(pairing, reference, chain) for chain in (one, other)]
    native = _touching(reference, sides[0].reference, sides[1].reference, CONTACT)
    if not native.any():
        return None
    there = [side.only(np.ones(len(side.reference), bool)) for side in sides]
    model = np.zeros_like(native)
    model[np.ix_(*(side.predicted >= 0 for side in sides))] = _touching(
        predicted, there[0].predicted, there[1].predicted, CONTACT
    )
    near = _touching(reference, sides[0].reference, sides[1].reference, INTERFACE)
    at_interface = [
        side.only(np.asarray(near.any(axis))) for side, axis in zip(sides, (1, 0), strict=True)
    ]
    fnat = float((native & model).sum() / native.sum())
    irmsd = _interface_rmsd(predicted, reference, at_interface)
    lrmsd = _ligand_rmsd(predicted, reference, there)
    return Interface(
        chains=(reference.chain_ids[one], reference.chain_ids[other]),
        dockq=(fnat + _closeness(irmsd, 1.5) + _closeness(lrmsd, 8.5)) / 3,
        fnat=fnat,
        irmsd=irmsd,
        lrmsd=lrmsd,
        contacts=int(native.sum()),
    )


def _closeness(deviation: float, scale: float) -> float:
    """Return an RMSD as a score from 0 to 1; 0 where it is not known."""
    return 0.0 if math.isnan(deviation) else 1 / (1 + (deviation / scale) ** 2)


def _side(pairing: Pairing, reference: Protein, chain: int) -> _Side:
    partner = np.full(len(reference), -1)
    partner[pairing.reference] = pairing.predicted
    rows = np.flatnonzero(reference.chain_index == chain)
    return _Side(rows, partner[rows])


def _touching(protein: Protein, one: np.ndarray, other: np.ndarray, reach: float) -> np.ndarray:
    """Return (one, other): whether any two heavy atoms of two residues are within `reach`."""
    from scipy.spatial import cKDTree

    owners, trees = [], []
    for rows in (one, other):
        place, atom = np.nonzero(protein.atom_mask[rows] > 0)
        owners.append(place)
        trees.append(cKDTree(protein.atom_positions[rows[place], atom]))
    close = np.zeros((len(one), len(other)), bool)
    for first, seconds in enumerate(trees[0].query_ball_tree(trees[1], reach)):
        close[owners[0][first], owners[1][seconds]] = True
    return close


def _interface_rmsd(predicted: Protein, reference: Protein, sides: list[_Side]) -> float:
    pairs = [_backbone(predicted, reference, side) for side in sides]
    if not all(len(mobile) for mobile, _ in pairs):
        return math.nan
    mobile, fixed = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    return _deviation(superposed(mobile, fixed), fixed) if len(mobile) >= FEWEST else math.nan


def _ligand_rmsd(predicted: Protein, reference: Protein, sides: list[_Side]) -> float:
    # the longer chain is the receptor; of equal ones the first
    receptor, ligand = sorted(sides, key=lambda side: -len(side.reference))
    fitted = _backbone(predicted, reference, receptor)
    moved = _backbone(predicted, reference, ligand)
    if len(fitted[0]) < FEWEST or len(moved[0]) == 0:
        return math.nan
    mobile = np.concatenate([fitted[0], moved[0]])
    fixed = np.concatenate([fitted[1], moved[1]])
    placed = superposed(mobile, fixed, fit=np.arange(len(fitted[0])))
    return _deviation(placed[len(fitted[0]) :], moved[1])


def _backbone(predicted: Protein, reference: Protein, side: _Side) -> tuple[np.ndarray, np.ndarray]:
    """Return the backbone atoms that both structures have, prediction first."""
    columns = list(BACKBONE)
    both = (predicted.atom_mask[side.predicted][:, columns] > 0) & (
        reference.atom_mask[side.reference][:, columns] > 0
    )
    mobile = predicted.atom_positions[side.predicted][:, columns][both]
    fixed = reference.atom_positions[side.reference][:, columns][both]
    return mobile.astype(np.float64), fixed.astype(np.float64)


def _deviation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(((one - other) ** 2).sum(-1).mean()))


def interface_rows(found: list[Interface]) -> Iterator[dict[str, object]]:
    """Yield interfaces as rows of a table."""
    for one in found:
        yield {
            "chains": "-".join(one.chains),
            "dockq": one.dockq,
            "fnat": one.fnat,
            "irmsd": one.irmsd,
            "lrmsd": one.lrmsd,
            "contacts": one.contacts,
        }
