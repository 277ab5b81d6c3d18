"""Scores of a predicted structure whose residues are those of the reference, one by one.

Metrics of a training run need no pairing of residues, and no other package than numpy and scipy.
"""

from __future__ import annotations

import math

import numpy as np

from molfun._shapes import Bool, Float64
from molfun.protein import ATOM_NAMES, CA, UNKNOWN_RESIDUE, Protein
from molfun.structures.scoring.geometry import clashes
from molfun.structures.scoring.superposition import GDT_TS, gdt, rmsd, tm_score

NAMES = ("lddt_ca", "tm_score", "gdt_ts", "rmsd", "fape", "clashes")
"""Names of the scores."""
FEWEST = 3
"""Fewest CA atoms of a superposition."""
INCLUSION = 15.0
"""Radius of the lDDT in angstrom (Mariani et al. 2013)."""
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""Deviations of distances that the lDDT counts, in angstrom."""
CLAMP = 10.0
"""Deviation in angstrom above which FAPE no longer grows, and its unit (AlphaFold 2, 1.9.2)."""
_FRAME = [ATOM_NAMES.index(name) for name in ("N", "CA", "C")]


def scores_in_place(predicted: Protein, reference: Protein) -> dict[str, float]:
    """Return the scores of `NAMES`; NaN with fewer than three residues that are `scored`.

    They are NaN as well if the prediction lacks the CA atom of one of these.

    Parameters
    ----------
    predicted, reference
        Structures of the same residues in the same order. Residues that are not `scored` count
        nowhere but in the clashes.

    Returns
    -------
    dict
        lDDT-CA, TM-score and GDT-TS from 0 to 1, RMSD of the CA atoms after superposition in
        angstrom, FAPE of the backbone in units of 10 angstrom, and pairs of atoms that clash.
    """
    known = scored(reference)
    found = dict.fromkeys(NAMES, math.nan)
    if known.sum() < FEWEST or not (predicted.atom_mask[known, CA] > 0).all():
        return found
    mobile, fixed = (p.atom_positions[known, CA].astype(float) for p in (predicted, reference))
    return {
        "lddt_ca": float(lddt_ca(mobile, fixed).mean()),
        "tm_score": tm_score(mobile, fixed, len(fixed)),
        "gdt_ts": gdt(mobile, fixed, len(fixed), GDT_TS),
        "rmsd": rmsd(mobile, fixed),
        "fape": backbone_fape(predicted, reference),
        "clashes": float(clashes(predicted)),
    }


def measured(reference: Protein) -> tuple[str, ...]:
    """Return the scores of `NAMES` that the coordinates of a reference define.

    Examples
    --------
    >>> measured(Protein.from_sequence("ACD"))  # without coordinates
    ()
    """
    known = scored(reference)
    if known.sum() < FEWEST:
        return ()
    framed = known & (reference.atom_mask[:, _FRAME] > 0).all(-1)
    return tuple(name for name in NAMES if name != "fape" or framed.any())


def scored(reference: Protein) -> Bool[np.ndarray, "length"]:
    """Return which residues have a CA atom and a known type: no atom is predicted for others (X).

    Examples
    --------
    >>> scored(Protein.from_sequence("AX")).tolist()  # without coordinates
    [False, False]
    """
    known = (reference.atom_mask[:, CA] > 0) & (reference.aatype != UNKNOWN_RESIDUE)
    return np.asarray(known)


def lddt_ca(
    mobile: Float64[np.ndarray, "n 3"], fixed: Float64[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "n"]:
    """Return the lDDT of each CA atom, as AlphaFold defines it for pLDDT.

    A residue without a neighbour within 15 angstrom has 1, as in openfold's ``lddt_ca``.

    Parameters
    ----------
    mobile, fixed
        CA atoms of prediction and reference, in angstrom.

    References
    ----------
    Mariani et al. 2013, Bioinformatics 29, 2722.
    """
    from scipy.spatial.distance import cdist

    true, given = cdist(fixed, fixed), cdist(mobile, mobile)
    near = (true < INCLUSION) & ~np.eye(len(fixed), dtype=bool)
    error = np.abs(true - given)
    kept = np.mean([error < threshold for threshold in THRESHOLDS], axis=0)
    count = near.sum(-1)
    return np.where(count > 0, (kept * near).sum(-1) / np.maximum(count, 1), 1.0)


def backbone_fape(predicted: Protein, reference: Protein) -> float:
    """Return the frame-aligned point error of CA atoms in backbone frames, clamped.

    Frames and atoms are those of the structures as they are written. AlphaFold's loss takes the
    frames of its structure module, from which atoms are built with ideal bonds; the two agree to
    the rounding of coordinates. NaN where no residue that is `scored` has N, CA and C.

    References
    ----------
    Jumper et al. 2021, supplement, algorithm 28.
    """
    known = scored(reference) & (reference.atom_mask[:, _FRAME] > 0).all(-1)
    if not known.any():
        return math.nan
    local = [_local(p.atom_positions[known].astype(float)) for p in (predicted, reference)]
    error = np.sqrt(((local[0] - local[1]) ** 2).sum(-1))
    return float(np.minimum(error, CLAMP).mean() / CLAMP)


def _local(positions: Float64[np.ndarray, "n 37 3"]) -> Float64[np.ndarray, "n n 3"]:
    """Return the CA atoms in the frame of each residue: (frames, atoms, 3)."""
    n, ca, c = (positions[:, atom] for atom in _FRAME)
    # Gram-Schmidt from the bonds of CA, C first (AlphaFold 2, supplement, algorithm 21)
    first = _unit(c - ca)
    second = n - ca
    second = _unit(second - (second * first).sum(-1, keepdims=True) * first)
    axes = np.stack([first, second, np.cross(first, second)], axis=-1)
    return np.asarray(np.einsum("fax,fxy->fay", ca[None] - ca[:, None], axes))


def _unit(vectors: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    # atoms on one another have no direction; zero vectors then give errors within the clamp
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-8))
