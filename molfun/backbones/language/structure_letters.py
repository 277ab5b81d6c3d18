"""Letters of structures: Foldseek's 3Di alphabet."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from molfun._lazy import require
from molfun.errors import ConfigError, DataError
from molfun.protein import ATOM_NAMES, BFactors, Protein
from molfun.sample import Sample

STRUCTURE_LETTERS = "pynwrqhgdlvtmfsaeikc"
"""The 20 letters of Foldseek's 3Di alphabet, in the order of SaProt's vocabulary."""
UNKNOWN = "#"
UNSURE = 70.0
"""pLDDT below which the authors of SaProt leave the letters of predictions out."""
_OTHERS: dict[BFactors, str] = {
    "measured": "of an experiment",
    "other": "predicted without pLDDT as B-factors",
    "unknown": "whose file does not say",
}
Below = float | Literal["auto"] | None
"""pLDDT below which residues have the letter `UNKNOWN`. None takes all letters; ``"auto"`` is
`UNSURE` for predictions (`Protein.b_factors_are`) and None for other structures."""


def letters_of(sample: Sample, *, plddt_below: Below = None) -> str | None:
    """Return the structure letters that a sample comes with, or those of its structure.

    Parameters
    ----------
    sample
        With `structure_letters`, or with a protein that has coordinates.
    plddt_below
        pLDDT below which the letters of a structure are unknown, as `threshold_of` takes it.
    """
    if sample.structure_letters is not None:
        return sample.structure_letters
    protein = sample.protein
    if protein is None or not protein.atom_mask.any():
        return None
    return structure_letters(protein, plddt_below=plddt_below)


def check_plddt(below: Below) -> None:
    """Refuse a threshold that is no pLDDT.

    Raises
    ------
    ConfigError
        If it is neither from 0 to 100 nor ``"auto"``.
    """
    if below is None or below == "auto":
        return
    if isinstance(below, str) or not 0 <= below <= 100:
        raise ConfigError(f"plddt_below must be from 0 to 100, or 'auto', got {below!r}.")


def threshold_of(protein: Protein, below: Below) -> float | None:
    """Return the pLDDT below which letters are unknown; None where all are taken.

    Examples
    --------
    >>> threshold_of(Protein.from_sequence("AC"), "auto") is None
    True
    """
    if below == "auto":
        return UNSURE if protein.b_factors_are == "plddt" else None
    return below


def said_of_auto(counts: Mapping[BFactors, int]) -> str:
    """Say in one line what ``"auto"`` decides for structures, counted by what their B-factors are.

    Examples
    --------
    >>> print(said_of_auto({"plddt": 2}))
    plddt_below='auto': 2 of 2 structures are predictions with pLDDT, and get no letter below 70.
    """
    n, masked = sum(counts.values()), counts.get("plddt", 0)
    be, get = ("is a prediction", "gets") if masked == 1 else ("are predictions", "get")
    said = (
        f"plddt_below='auto': {masked} of {n} structures {be} with pLDDT, and {get} no letter "
        f"below {UNSURE:.0f}"
    )
    if n == masked:
        return f"{said}."
    keep = "keeps" if n - masked == 1 else "keep"
    rest = ", ".join(f"{counts[kind]} {text}" for kind, text in _OTHERS.items() if counts.get(kind))
    return f"{said}; {n - masked} {keep} all letters ({rest})."


def check_letters(letters: str, sample: Sample, n: int) -> None:
    """Refuse structure letters of another length or alphabet.

    Raises
    ------
    DataError
        Naming the sample.
    """
    if len(letters) != n:
        raise DataError(
            f"{sample.shown} has {len(letters)} structure letters for {n} residues: give one "
            f"letter per residue."
        )
    odd = next(
        (i for i, a in enumerate(letters) if a.lower() not in STRUCTURE_LETTERS + UNKNOWN), None
    )
    if odd is not None:
        raise DataError(
            f"{sample.shown}: {letters[odd]!r} at position {odd + 1} is no structure letter; "
            f"allowed are {STRUCTURE_LETTERS} and {UNKNOWN} for unknown."
        )


def structure_letters(protein: Protein, *, plddt_below: Below = None) -> str:
    """Return the 3Di letter of each residue of a structure, chain by chain.

    Parameters
    ----------
    protein
        Structure with coordinates. A residue without N, CA or C has the letter ``#``.
    plddt_below
        pLDDT below which a residue has the letter ``#``, as `threshold_of` takes it.

    References
    ----------
    van Kempen et al. 2024, "Fast and accurate protein structure search with Foldseek", Nature
    Biotechnology 42; computed by ``mini3di``.
    """
    chains = []
    for chain in np.unique(protein.chain_index):
        places = np.flatnonzero(protein.chain_index == chain)
        chains.append((places, _of_chain(protein, places)))
    letters = np.full(len(protein), UNKNOWN)
    for places, found in chains:
        letters[places] = found
    threshold = threshold_of(protein, plddt_below)
    if threshold is not None:
        letters[protein.plddt() < threshold] = UNKNOWN
    return "".join(letters)


def _of_chain(protein: Protein, places: np.ndarray) -> np.ndarray:
    coordinates = {}
    for name in ("CA", "CB", "N", "C"):
        atom = ATOM_NAMES.index(name)
        present = protein.atom_mask[places, atom] > 0
        rows = protein.atom_positions[places, atom].astype(np.float64)
        coordinates[name] = np.where(present[:, None], rows, np.nan)
    known = ~np.isnan([coordinates[name][:, 0] for name in ("CA", "N", "C")]).any(0)
    letters = np.full(len(places), UNKNOWN)
    # residues without a frame are left out, as Foldseek does; a letter needs both neighbours
    if known.sum() >= 3:
        encoder = _encoder()
        states = encoder.encode_atoms(*(coordinates[n][known] for n in ("CA", "CB", "N", "C")))
        letters[known] = list(encoder.build_sequence(states).lower())
    return letters


@functools.cache
def _encoder() -> Any:
    return require("mini3di", "pip install 'molfun[esm]'").Encoder()
