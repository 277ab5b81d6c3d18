"""Letters of structures: Foldseek's 3Di alphabet."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from molfun._lazy import require
from molfun.errors import ConfigError, DataError
from molfun.protein import ATOM_NAMES, Protein
from molfun.sample import Sample

STRUCTURE_LETTERS = "pynwrqhgdlvtmfsaeikc"
"""The 20 letters of Foldseek's 3Di alphabet, in the order of SaProt's vocabulary."""
UNKNOWN = "#"


def letters_of(sample: Sample, *, plddt_below: float | None = None) -> str | None:
    """Return the structure letters that a sample comes with, or those of its structure.

    Parameters
    ----------
    sample
        With `structure_letters`, or with a protein that has coordinates.
    plddt_below
        pLDDT below which the letters of a structure are unknown.
    """
    if sample.structure_letters is not None:
        return sample.structure_letters
    protein = sample.protein
    if protein is None or not protein.atom_mask.any():
        return None
    return structure_letters(protein, plddt_below=plddt_below)


def check_plddt(below: float | None) -> None:
    """Refuse a threshold that is no pLDDT.

    Raises
    ------
    ConfigError
        If it is not from 0 to 100.
    """
    if below is not None and not 0 <= below <= 100:
        raise ConfigError(f"plddt_below must be from 0 to 100, got {below}.")


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


def structure_letters(protein: Protein, *, plddt_below: float | None = None) -> str:
    """Return the 3Di letter of each residue of a structure, chain by chain.

    Parameters
    ----------
    protein
        Structure with coordinates. A residue without N, CA or C has the letter ``#``.
    plddt_below
        pLDDT below which a residue has the letter ``#``; None takes all.

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
    if plddt_below is not None:
        atoms = protein.atom_mask.sum(1)
        plddt = (protein.b_factors * protein.atom_mask).sum(1) / np.maximum(atoms, 1)
        letters[plddt < plddt_below] = UNKNOWN
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
