"""All scores of a prediction against a reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from molfun.errors import DataError
from molfun.protein import CA, RESIDUE_LETTERS_WITH_X, Protein
from molfun.structures.scoring import geometry
from molfun.structures.scoring.interfaces import Interface, interfaces
from molfun.structures.scoring.local import lddt
from molfun.structures.scoring.pairing import FEWEST, Pairing, ca_pairs, has_ca, paired
from molfun.structures.scoring.superposition import GDT_HA, GDT_TS, gdt, superposed, tm_score
from molfun.text import counted


@dataclass(frozen=True, kw_only=True)
class StructureScores:
    """Scores of a predicted structure.

    Parameters
    ----------
    values
        Scores by name: ``lddt_ca``, ``lddt``, ``tm_score``, ``gdt_ts``, ``gdt_ha`` (0 to 1),
        ``rmsd`` (angstrom, CA), ``dockq`` (mean over the interfaces of the reference, where it has
        any), ``clashes``, ``wrong_bonds``, ``residues`` (of the reference) and ``paired``.
    interfaces
        Scores of each interface of the reference, also of chains that the prediction lacks.
    residues
        One row per residue of the reference.
    notes
        What could not be compared, one sentence each.

    Examples
    --------
    >>> reference = Protein.from_sequence("MKVGS", name="known")
    >>> reference.atom_positions[:, 1, 0] = 3.8 * np.arange(5)  # CA atoms of a strand
    >>> reference.atom_mask[:, 1] = 1
    >>> found = score(reference.take(np.arange(4)), reference)
    >>> found.values["paired"], found.values["residues"], found.values["gdt_ts"]
    (4, 5, 0.8)
    >>> found.notes
    ['the prediction lacks 1 residue of the reference']
    >>> found.residues[1]["residue"], float(found.residues[1]["lddt_ca"])
    ('2', 0.75)
    """

    values: dict[str, float]
    interfaces: list[Interface]
    residues: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def score(predicted: Protein, reference: Protein) -> StructureScores:
    """Compare a predicted structure with a reference.

    Residues are paired by sequence. All scores are over the residues of the reference: those that
    the prediction lacks count as wrong: in DockQ their contacts are missed, and interfaces of a
    chain that it lacks have 0. The RMSDs alone need the atoms of both.

    Parameters
    ----------
    predicted, reference
        Structures with coordinates.

    Raises
    ------
    DataError
        If no chain of the two is the same, or fewer than three residues can be compared.
    MissingDependencyError
        If biotite is not installed.

    Examples
    --------
    Compare a written fold with a file of the archive::

        found = score(read_structure("folded/1a4w.cif"), read_structure("pdbs/1a4w.pdb"))
        print(found.values["lddt_ca"], found.values["tm_score"])
    """
    pairing = paired(predicted, reference)
    mobile, fixed = ca_pairs(pairing, predicted, reference)
    if len(mobile) < FEWEST:
        raise DataError(
            f"{predicted.name} and {reference.name} have {counted(len(mobile), 'CA atom')} in "
            f"common; a superposition needs {FEWEST}."
        )
    length = int((reference.atom_mask[:, CA] > 0).sum())
    of_ca, per_residue = lddt(pairing, predicted, reference, ca_only=True)
    of_all, per_residue_all = lddt(pairing, predicted, reference, ca_only=False)
    moved = superposed(mobile, fixed)
    found = interfaces(pairing, predicted, reference)
    values = {
        "lddt_ca": of_ca,
        "lddt": of_all,
        "tm_score": tm_score(mobile, fixed, length),
        "gdt_ts": gdt(mobile, fixed, length, GDT_TS),
        "gdt_ha": gdt(mobile, fixed, length, GDT_HA),
        # files hold three decimals, so what is beyond six is rounding
        "rmsd": round(float(np.sqrt(((moved - fixed) ** 2).sum(-1).mean())), 6),
        **({"dockq": float(np.mean([one.dockq for one in found]))} if found else {}),
        "clashes": geometry.clashes(predicted),
        "wrong_bonds": geometry.wrong_bonds(predicted),
        "residues": length,
        "paired": len(mobile),
    }
    distance = np.full(len(reference), np.nan)
    both = has_ca(pairing, predicted, reference)
    distance[pairing.reference[both]] = np.linalg.norm(moved - fixed, axis=-1)
    rows = _residues(pairing, predicted, reference, per_residue, per_residue_all, distance)
    notes = list(_notes(pairing, predicted, reference))
    return StructureScores(values=values, interfaces=found, residues=list(rows), notes=notes)


def _residues(
    pairing: Pairing,
    predicted: Protein,
    reference: Protein,
    lddt_ca: np.ndarray,
    lddt_all: np.ndarray,
    distance: np.ndarray,
) -> Iterator[dict[str, Any]]:
    partner = dict(zip(pairing.reference.tolist(), pairing.predicted.tolist(), strict=True))
    ids = reference.residue_ids or tuple(str(i + 1) for i in reference.residue_index)
    for row in range(len(reference)):
        own = partner.get(row)
        yield {
            "chain": reference.chain_ids[reference.chain_index[row]],
            "residue": ids[row],
            "type": RESIDUE_LETTERS_WITH_X[reference.aatype[row]],
            "lddt_ca": lddt_ca[row],
            "lddt": lddt_all[row],
            "ca_distance": distance[row],
            "plddt": float("nan") if own is None else float(predicted.b_factors[own, CA]),
        }


def _notes(pairing: Pairing, predicted: Protein, reference: Protein) -> Iterator[str]:
    names = set(range(len(reference.chain_ids))) - set(pairing.chains)
    if names:
        missing = ", ".join(reference.chain_ids[i] for i in sorted(names))
        yield f"the prediction has no chain for {missing} of the reference"
    others = set(range(len(predicted.chain_ids))) - set(pairing.chains.values())
    if others:
        extra = ", ".join(predicted.chain_ids[i] for i in sorted(others))
        yield f"the reference has no chain for {extra} of the prediction"
    absent = sum(reference.chain_index == r for r in pairing.chains)
    lacking = int(np.sum(absent)) - len(pairing.reference)
    if lacking:
        yield f"the prediction lacks {counted(lacking, 'residue')} of the reference"
    if pairing.different:
        yield f"{counted(pairing.different, 'pair')} of residues differ in type"
