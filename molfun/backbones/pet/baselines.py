"""Baselines of energies: the labels they are fitted to, and their description.

An energy is ``scale * network + sum of element energies``; that sum is the baseline. It takes most
of a total energy (thousands of eV), so that the network only has to learn the binding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST_SCALE = 1e-6
"""Smallest scale that is used: a smaller remainder is rounding of energies and forces."""


def energy_of(sample: Any) -> float | None:
    """Return the energy in the label of a structure; None if it is missing or not finite."""
    found = _finite(sample, "energy")
    return None if found is None else float(found)


def forces_of(sample: Any) -> np.ndarray | None:
    """Return the forces in the label of a structure; None if those of any atom are missing."""
    return _finite(sample, "forces")


def stress_of(sample: Any) -> np.ndarray | None:
    """Return the stress in the label of a structure; None if it, or the volume, is missing."""
    return _finite(sample, "stress") if sample.atoms.pbc.all() else None


def _finite(sample: Any, kind: str) -> np.ndarray | None:
    label = sample.target if isinstance(sample.target, Mapping) else {"energy": sample.target}
    values = label.get(kind)
    return None if values is None or not np.isfinite(values).all() else np.asarray(values, float)


def describe_baseline(backbone: Any, target: str) -> str:
    """Return one line with the energy of each element and the scale of the remainder."""
    found = backbone.baseline_of(target)
    if found is None:
        return f"{target}: not fitted yet, no energies were found in the training set"
    energies, scale = found
    unit = backbone.targets[target]
    listed = ", ".join(f"{symbol_of(n)} {e:.4f}" for n, e in energies.items())
    return f"{target}: {listed} {unit} per atom; scale of the rest {scale:.4g} {unit}"


def count_elements(samples: Sequence[Any]) -> tuple[list[int], np.ndarray]:
    """Return the atomic numbers that occur, and their counts: (structures, elements)."""
    elements = sorted({int(n) for sample in samples for n in sample.atoms.numbers})
    counts = [[int((s.atoms.numbers == n).sum()) for n in elements] for s in samples]
    return elements, np.array(counts, np.float64)


def shifts_by_element(samples: Sequence[Any], differences: np.ndarray) -> dict[int, float]:
    """Return the energy per element that explains the differences, by least squares."""
    # With fewer formulas than elements there are many solutions; `lstsq` returns the smallest, so
    # that no element gets a large energy that another has to cancel.
    elements, counts = count_elements(samples)
    found = np.linalg.lstsq(counts, differences, rcond=None)[0]
    return dict(zip(elements, found.tolist(), strict=True))


def indistinct(samples: Sequence[Any]) -> str | None:
    """Return the reason why labels do not determine the element energies; None if they do."""
    elements, counts = count_elements(samples)
    # rows of counts span the space of elements only if their formulas differ enough
    if np.linalg.matrix_rank(counts) == len(elements):
        return None
    n = len(np.unique(counts, axis=0))
    return (
        f"{'a single formula' if n == 1 else f'{n} formulas'} of "
        f"{', '.join(map(symbol_of, elements))}, whose shares cannot be told apart: energies of "
        f"other formulas will be off."
    )


def symbol_of(number: int) -> str:
    """Return the symbol of an element."""
    from ase.data import chemical_symbols

    return str(chemical_symbols[number])
