"""Structures as labels: which coordinates a model can learn from."""

from __future__ import annotations

import numpy as np

from molfun._shapes import Bool
from molfun.protein import ATOM_NAMES, UNKNOWN_RESIDUE, Protein
from molfun.text import counted

_FRAME = [ATOM_NAMES.index(name) for name in ("N", "CA", "C")]
FEWEST_FRAMES = 2
"""A frame alone has nothing to be placed against."""


def has_frame(protein: Protein) -> Bool[np.ndarray, "length"]:
    """Return which residues have N, CA and C, of which AlphaFold makes a frame (algorithm 21)."""
    return np.asarray((protein.atom_mask[:, _FRAME] > 0).all(axis=1))


def label_fault(protein: Protein) -> str:
    """Say why the coordinates of a protein are no label; an empty text if they are one.

    Examples
    --------
    >>> label_fault(Protein.from_sequence("ACD"))
    'has no coordinates to learn from. Leave it out.'
    """
    n = counted(len(protein), "residue")
    if not (protein.atom_mask > 0).any():
        return "has no coordinates to learn from. Leave it out."
    if len(protein) < FEWEST_FRAMES:
        return f"has {n}, and a structure to learn from needs two or more. Leave it out."
    if (protein.aatype == UNKNOWN_RESIDUE).all():
        return (
            f"has {n}, all of unknown type (X), for which no atoms are predicted. Leave it out, or "
            f"name its residues."
        )
    found = int(has_frame(protein).sum())
    if found < FEWEST_FRAMES:
        only_ca = bool((protein.atom_mask > 0).sum(axis=1).max() < 2)
        what = "CA atoms only" if only_ca else f"N, CA and C in {found} of {n}"
        return (
            f"has {what}: the loss is over frames of N, CA and C, so there is nothing to learn "
            f"from. Give a structure with its main chain."
        )
    return ""


def structure_label(protein: Protein | None) -> Protein | None:
    """Return a protein as the label of its sample; None where it has no coordinates."""
    if protein is None or not (protein.atom_mask > 0).any():
        return None
    return protein


def sequence_fault(written: str, chains: tuple[str, ...]) -> str:
    """Say where a written sequence and the chains of a structure disagree; empty if they agree.

    The written sequence may hold residues that have no coordinates; X agrees with any residue.

    Parameters
    ----------
    written
        One-letter sequence; of several chains ``:`` stands between them, or nothing.
    chains
        Sequence of each chain of the structure.

    Examples
    --------
    >>> sequence_fault("MKVA", ("KVA",)), sequence_fault("MKV:GG", ("MKV", "GG"))
    ('', '')
    >>> sequence_fault("MKVA", ("MKLA",))
    'has VA at residue 3, and the structure LA'
    """
    parts = [part.strip().upper() for part in written.split(":")]
    found = [chain.upper() for chain in chains]
    if len(parts) == 1:
        found = ["".join(found)]
    if len(parts) != len(found):
        return f"has {counted(len(parts), 'chain')}, and the structure {len(found)}"
    pairs = zip(parts, found, strict=True)
    return next((text for part, chain in pairs if (text := _differ(part, chain))), "")


def _differ(written: str, observed: str) -> str:
    """Say where two sequences part, if the observed residues are not among the written ones."""
    left = iter(written)
    # residues in order, each after the one before it: those without coordinates are skipped
    if all(any(_agree(one, letter) for one in left) for letter in observed):
        return ""
    same = next(
        (i for i, (a, b) in enumerate(zip(written, observed, strict=False)) if not _agree(a, b)),
        min(len(written), len(observed)),
    )
    ours, theirs = (text[same : same + 6] or "its end" for text in (written, observed))
    return f"has {ours} at residue {same + 1}, and the structure {theirs}"


def _agree(left: str, right: str) -> bool:
    return left == right or "X" in (left, right)
