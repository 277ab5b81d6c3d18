"""Structures as rows of numbers, one per residue, in which labels and predictions travel.

A label of a crop has more rows than its sample: those of chains that are copies of a chain of the
sample, so that each chain can take the coordinates of any of its copies.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from molfun._shapes import Float64
from molfun.protein import Protein
from molfun.structures.scoring.identical import copies, kept_rows

TYPE, NUMBER, CHAIN, QUALITY, KIND, PLACE, KEPT = range(7)
"""Columns: residue type, number, chain, pLDDT (in labels the resolution), kind of the chain and
place in it, and 1 for a residue of the sample."""
ATOMS = slice(7, 7 + 37 * 3)
"""Columns of the coordinates of 37 atoms in angstrom, NaN where there are none."""
WIDTH = ATOMS.stop


def rows_of(target: Protein) -> Float64[np.ndarray, "rows 118"]:
    """Return the residues of a structure, and those of copies of its chains before a crop."""
    whole = target if target.whole is None else target.whole
    kind, place = copies(whole.aatype, whole.residue_index, whole.chain_index)
    kept = np.zeros(len(whole), bool)
    kept[kept_rows(target)] = True
    shown = np.unique(kind[kept])
    several = [k for k in shown if len(np.unique(whole.chain_index[kind == k])) > 1]
    chosen = np.flatnonzero(kept | np.isin(kind, several))
    rows = np.full((len(chosen), WIDTH), math.nan)
    rows[:, TYPE], rows[:, NUMBER] = whole.aatype[chosen], whole.residue_index[chosen]
    rows[:, CHAIN], rows[:, KEPT] = whole.chain_index[chosen], kept[chosen]
    rows[:, KIND], rows[:, PLACE] = kind[chosen], place[chosen]
    known = (whole.atom_mask[chosen] > 0)[..., None]
    places = np.where(known, whole.atom_positions[chosen].astype(np.float64), math.nan)
    rows[:, ATOMS] = places.reshape(len(chosen), -1)
    return rows


def own_rows(rows: np.ndarray) -> Float64[np.ndarray, "residues 118"]:
    """Return the rows of a label for the residues of the sample."""
    return rows[rows[:, KEPT] == 1]


def known_structure(label: np.ndarray) -> Protein:
    """Return the structure of a label."""
    rows = label[np.isfinite(label[:, TYPE])]
    whole = _structure(rows)
    return replace(whole.take(np.flatnonzero(rows[:, KEPT] == 1)), whole=whole)


def predicted_structure(prediction: np.ndarray, known: Protein) -> Protein:
    """Return the structure of a prediction, with the residues and chains of the known one."""
    # joined predictions are longer where another sample is the longest
    positions, mask = _atoms(prediction[: len(known)])
    return replace(known, atom_positions=positions, atom_mask=mask, whole=None)


def _structure(rows: np.ndarray) -> Protein:
    positions, mask = _atoms(rows)
    return Protein(
        name="structure",
        aatype=rows[:, TYPE].astype(np.int64),
        atom_positions=positions,
        atom_mask=mask,
        b_factors=np.zeros((len(rows), 37), np.float32),
        residue_index=rows[:, NUMBER].astype(np.int64),
        chain_index=rows[:, CHAIN].astype(np.int64),
    )


def _atoms(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = rows[:, ATOMS].reshape(-1, 37, 3)
    mask = np.isfinite(places).all(-1)
    positions = np.where(mask[..., None], places, 0.0).astype(np.float32)
    return positions, mask.astype(np.float32)
