"""Baselines of energies: the labels they are fitted to, and their description.

An energy is ``scale * network + an energy for each element``; the second part is the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST_SCALE = 1e-6
"""Smallest scale: what is below is rounding of energies and forces."""


def energy_of(sample: Any) -> float | None:
    """The energy in the label of a structure; None where there is none that is finite."""
    label = sample.target
    energy = label.get("energy") if isinstance(label, Mapping) else label
    return None if energy is None or not np.isfinite(energy) else float(energy)


def forces_of(sample: Any) -> np.ndarray | None:
    """The forces in the label of a structure; None where there are none, or not of all atoms."""
    label = sample.target
    forces = label.get("forces") if isinstance(label, Mapping) else None
    if forces is None or not np.isfinite(forces).all():
        return None
    return np.asarray(forces, np.float64)


def stress_of(sample: Any) -> np.ndarray | None:
    """The stress in the label of a structure; None where there is none, or no volume."""
    label = sample.target
    stress = label.get("stress") if isinstance(label, Mapping) else None
    if stress is None or not np.isfinite(stress).all() or not sample.atoms.pbc.all():
        return None
    return np.asarray(stress, np.float64)


def describe_baseline(backbone: Any, target: str) -> str:
    """One line: energy of each element and scale of the rest."""
    found = backbone.baseline_of(target)
    if found is None:
        return f"{target}: not fitted yet, no energies were found in the training set"
    energies, scale = found
    unit = backbone.targets[target]
    listed = ", ".join(f"{symbol_of(n)} {e:.4f}" for n, e in energies.items())
    return f"{target}: {listed} {unit} an atom; scale of the rest {scale:.4g} {unit}"


def count_elements(samples: Sequence[Any]) -> tuple[list[int], np.ndarray]:
    """Atomic numbers that occur, and how often in each structure: (structures, elements)."""
    elements = sorted({int(n) for sample in samples for n in sample.atoms.numbers})
    counts = [[int((s.atoms.numbers == n).sum()) for n in elements] for s in samples]
    return elements, np.array(counts, np.float64)


def shifts_by_element(samples: Sequence[Any], differences: np.ndarray) -> dict[int, float]:
    """The smallest energy for each element that makes up for differences, by least squares."""
    elements, counts = count_elements(samples)
    found = np.linalg.lstsq(counts, differences, rcond=None)[0]
    return dict(zip(elements, found.tolist(), strict=True))


def indistinct(samples: Sequence[Any]) -> str | None:
    """Say why labels do not determine the energy of each element; None if they do."""
    elements, counts = count_elements(samples)
    if np.linalg.matrix_rank(counts) == len(elements):
        return None
    n = len(np.unique(counts, axis=0))
    return (
        f"{'a single formula' if n == 1 else f'{n} formulas'} of "
        f"{', '.join(map(symbol_of, elements))}, whose shares cannot be told apart: energies of "
        f"other formulas will be off."
    )


def symbol_of(number: int) -> str:
    """Symbol of an element."""
    from ase.data import chemical_symbols

    return str(chemical_symbols[number])
