"""Small structures for tests of scores: chains, complexes, and copies of them that are moved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from molfun.protein import Protein
from molfun.structures import pdb_text
from molfun.structures.folded import FoldedStructure

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGT"
# backbone of a residue in its own frame, angstrom
LOCAL = np.array([[-0.5, 1.36, 0.0], [0, 0, 0], [1.5, 0, 0], [-0.5, -0.8, -1.2], [2.2, 0.9, 0.3]])


def chain(sequence: str, *, at: tuple[float, float, float] = (0, 0, 0), seed: int = 0) -> Protein:
    """Return a protein whose trace is a helix-like walk of 3.8 angstrom."""
    protein = Protein.from_sequence(sequence, name=f"made_{seed}")
    n = len(protein)
    rng = np.random.default_rng(seed)
    turn = np.arange(n) * 1.75
    trace = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(n)], -1)
    trace += np.cumsum(rng.normal(0, 0.6, (n, 3)), axis=0) + np.array(at)
    positions = np.zeros((n, 37, 3), np.float32)
    mask = np.zeros((n, 37), np.float32)
    positions[:, : len(LOCAL)] = trace[:, None] + LOCAL
    mask[:, : len(LOCAL)] = 1
    return dataclasses.replace(protein, atom_positions=positions, atom_mask=mask)


def joined(*chains: Protein, names: tuple[str, ...] = ("A", "B", "C")) -> Protein:
    whole = Protein.from_chains([c.sequence for c in chains], name="complex")
    return dataclasses.replace(
        whole,
        atom_positions=np.concatenate([c.atom_positions for c in chains]),
        atom_mask=np.concatenate([c.atom_mask for c in chains]),
        chain_ids=names[: len(chains)],
    )


def moved(protein: Protein, noise: float, *, seed: int = 1, rows: slice = slice(None)) -> Protein:
    """Return a rotated and shifted copy, with noise on the atoms of some residues."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    positions = protein.atom_positions.astype(np.float64)
    positions[rows] += rng.normal(0, noise, positions[rows].shape)
    positions = (positions @ turn.T + np.array([5.0, -3, 8])) * protein.atom_mask[..., None]
    return dataclasses.replace(protein, atom_positions=positions.astype(np.float32), name="moved")


def written(protein: Protein, path: Path) -> Path:
    structure = FoldedStructure(
        id=path.stem, protein=protein, plddt=np.full(len(protein), 50, np.float32), recycles=0
    )
    path.write_text(pdb_text(structure))
    return path
