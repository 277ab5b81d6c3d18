"""Builders of small real models and deterministic samples; also used by child processes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from molfun.models.structure import MolfunStructureModel
from molfun.protein import ATOM_NAMES, RESIDUE_LETTERS, Protein
from molfun.sample import Sample, SampleBatch
from molfun.testing.samples import LENGTHS, in_batches
from molfun.testing.samples import series as build_series

__all__ = ["build_series"]
DEFAULTS: dict[str, Any] = {
    "config": "tiny",
    "head": "affinity",
    "device": "cpu",
    "backbone_config": {"fill_zero_init": 0.1},
}
_built: dict[str, MolfunStructureModel] = {}


def build_tiny_model(**settings: Any) -> MolfunStructureModel:
    """The real AlphaFold trunk with two blocks, on the CPU.

    OpenFold starts the last projection of every attention at zero, so the gradients of adapters
    would be exactly zero; `fill_zero_init` gives them something to do.
    """
    arguments = {**DEFAULTS, **settings}
    if "weights" in settings or arguments["config"] != "tiny":
        return MolfunStructureModel("openfold", **arguments)
    # drawing the weights takes most of the time: once for each set of arguments
    key = repr(sorted(arguments.items()))
    if key not in _built:
        _built[key] = MolfunStructureModel("openfold", **arguments)
    return copy.deepcopy(_built[key])


def build_samples(
    n: int = 6, *, lengths: Sequence[int] = LENGTHS, seed: int = 0, prefix: str = "s"
) -> list[Sample]:
    """`n` random sequences with labels around 6, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        letters = rng.choice(list(RESIDUE_LETTERS), lengths[i % len(lengths)])
        name = f"{prefix}{i}"
        protein = Protein.from_sequence("".join(letters), name=name)
        samples.append(Sample(id=name, protein=protein, target=float(6 + rng.normal())))
    return samples


def build_structure(sequence: str, *, seed: int = 5, resolution: float | None = 2.0) -> Protein:
    """A structure with ideal bonds: one that a model of random weights folds."""
    (folded,) = build_tiny_model(seed=seed, head=None).fold([sequence], recycles=0)
    protein = folded.protein
    mask = protein.atom_mask.copy()
    mask[3, ATOM_NAMES.index("CB") :] = 0  # a side chain that was not resolved
    positions = protein.atom_positions * mask[..., None]
    return replace(protein, atom_mask=mask, atom_positions=positions, resolution=resolution)


PET_TINY = {
    "d_pet": 16,
    "d_node": 24,
    "d_head": 16,
    "d_feedforward": 16,
    "num_heads": 2,
    "num_attention_layers": 1,
    "cutoff": 3.0,
}
"""Hyperparameters of a small PET with two layers."""


def build_atoms(
    n: int = 6, *, lengths: Sequence[int] = LENGTHS, seed: int = 0, prefix: str = "s"
) -> list[Sample]:
    """`n` clouds of H, C, N and O about 1.5 angstrom apart; the energy is a sum over pairs."""
    from ase import Atoms

    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        size = lengths[i % len(lengths)]
        grid = np.stack(np.meshgrid(*[range(4)] * 3), -1).reshape(-1, 3)[:size]
        atoms = Atoms(
            numbers=rng.choice([1, 6, 7, 8], size),
            positions=1.5 * grid + 0.2 * rng.normal(size=(size, 3)),
        )
        samples.append(Sample(id=f"{prefix}{i}", atoms=atoms, target=pair_energy(atoms)))
    return samples


def pair_energy(atoms: Any) -> dict[str, Any]:
    """Energy and forces of a smooth pair potential, with an energy of its own for each element."""
    between = atoms.positions[:, None] - atoms.positions[None]
    squared = (between**2).sum(-1)
    decay = np.exp(-squared / 2) * (1 - np.eye(len(atoms)))
    forces = 2 * (decay[..., None] * between).sum(1)
    return {
        "energy": float(decay.sum() - 2.0 * atoms.numbers.sum()),
        "forces": forces,
    }


def build_batches(n: int = 6, *, batch_size: int = 1, **settings: Any) -> list[SampleBatch]:
    """`build_samples` in batches; the last one may be smaller."""
    return in_batches(build_samples(n, **settings), batch_size)
