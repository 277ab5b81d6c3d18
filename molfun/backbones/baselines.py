"""Baselines of energies: what they are in words, how labels move them, what speaks against labels.

An energy is ``scale * network + an energy for each element``; the second part is the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PER_EV = {
    "eV": 1.0,
    "kcal/mol": 23.060548,
    "kJ/mol": 96.485332,
    "hartree": 1 / 27.211386,
    "rydberg": 1 / 13.605693,
    "meV": 1000.0,
}
"""How many of a unit are one eV (CODATA 2018)."""
BOHR = 0.529177
"""Angstrom (CODATA 2018)."""
CLOSE = 0.05
FAR = 1.0
"""eV an atom beyond which labels are not of the energy that a baseline was fitted to."""
ALIKE = 0.7
"""Correlation of forces above which their size and sign can be compared."""
SEVERAL = 5.0


def per_ev(unit: str) -> float:
    """How many of a unit are one eV; 1 where that is not known."""
    known = {name.casefold(): factor for name, factor in PER_EV.items()}
    return known.get(unit.casefold(), 1.0)


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


def describe_baseline(backbone: Any, target: str) -> str:
    """One line: energy of each element and scale of the rest."""
    found = backbone.baseline_of(target)
    if found is None:
        return f"{target}: not fitted yet, the training set has no energies"
    energies, scale = found
    unit = backbone.targets[target]
    listed = ", ".join(f"{_symbol(n)} {e:.4f}" for n, e in energies.items())
    return f"{target}: {listed} {unit} an atom; scale of the rest {scale:.4g} {unit}"


# --- fit -----------------------------------------------------------------------------------------


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
    """Why the energies of single elements are no more than one of many ways to divide a sum."""
    elements, counts = count_elements(samples)
    if np.linalg.matrix_rank(counts) == len(elements):
        return None
    n = len(np.unique(counts, axis=0))
    return (
        f"{'a single formula' if n == 1 else f'{n} formulas'} of "
        f"{', '.join(map(_symbol, elements))}, whose shares cannot be told apart: energies of "
        f"other formulas will be off."
    )


# --- doubt ---------------------------------------------------------------------------------------


def doubts(backbone: Any, target: str, samples: Sequence[Any]) -> list[str]:
    """What speaks against labels being of the energy, and in the unit, of the target.

    Labels are compared with what the model predicts for them, for a new target with what it
    predicts for an older one.

    Parameters
    ----------
    backbone
        A model of atoms.
    target
        One of its energies.
    samples
        Structures; some dozen suffice.

    Returns
    -------
    list of str
        Texts for warnings; none if nothing does, or there is nothing to compare with.
    """
    known = [name for name in (target, *backbone.targets) if backbone.baseline_of(name) is not None]
    forces = [forces_of(sample) for sample in samples]
    if not known or not samples:
        return []
    energies, predicted = backbone.predicted(samples, known[0], forces=any(map(_is_there, forces)))
    # all in the unit of the target
    unit, other = backbone.targets[target], backbone.targets[known[0]]
    factor = per_ev(unit) / per_ev(other)
    pairs = [
        (label, energy * factor, len(sample.atoms))
        for sample, energy in zip(samples, energies, strict=True)
        if (label := energy_of(sample)) is not None
    ]
    both = [
        (label.ravel(), found.ravel() * factor)
        for label, found in zip(forces, predicted, strict=False)
        if label is not None
    ]
    found = [_doubt_energies(target, known[0], unit, pairs), _doubt_forces(unit, both)]
    return [text for text in found if text is not None]


def _doubt_energies(
    target: str, known: str, unit: str, pairs: Sequence[tuple[float, float, int]]
) -> str | None:
    if not pairs:
        return None
    labels, expected, sizes = np.array(pairs).T
    here = per_ev(unit)
    distance = float(np.median(np.abs(labels - expected) / sizes))
    text = (
        f"The labels of {target!r} lie {distance:.3g} {unit} an atom from what the model predicts "
        f"for {known!r}."
    )
    ratio = float(np.median(labels / np.where(expected == 0, np.nan, expected)))
    for name, factor in PER_EV.items():
        times = factor / here
        left = float(np.median(np.abs(labels / times - expected) / sizes))
        if abs(ratio / times - 1) < CLOSE and left < distance / SEVERAL:
            return (
                f"{text} They are {ratio:.4g} times as large, so they are probably in {name}: "
                f"divide them by {times:.6g}."
            )
    # another level of theory is what a new target is for
    if known != target or distance < FAR * here:
        return None
    return (
        f"{text} They are of another level of theory, another zero or another unit: "
        f"model.add_target('{target}/new', inherit={target!r}) gives them a baseline of their own "
        f"(--new-target {target}/new --inherit {target})."
    )


def _doubt_forces(unit: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str | None:
    if not pairs:
        return None
    labels, expected = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    sizes = float(np.linalg.norm(labels)), float(np.linalg.norm(expected))
    if min(sizes) == 0:
        return None
    likeness, ratio = float(labels @ expected) / (sizes[0] * sizes[1]), sizes[0] / sizes[1]
    if abs(likeness) < ALIKE:
        return None
    texts = []
    if likeness < 0:
        texts.append(
            "The forces point against those that the model predicts: they are probably gradients "
            "of the energy. Multiply them by -1."
        )
    if not 1 / SEVERAL < ratio < SEVERAL:
        here = per_ev(unit)
        units = {f"{name}/angstrom": factor / here for name, factor in PER_EV.items()}
        units["hartree/bohr"] = PER_EV["hartree"] / here * BOHR
        name = min(units, key=lambda name: abs(np.log(ratio / units[name])))
        guess = f" (they might be in {name})" if 0.8 < ratio / units[name] < 1.25 else ""
        texts.append(
            f"The forces are {ratio:.3g} times as large as those that the model predicts, in "
            f"{unit}/angstrom{guess}."
        )
    return " ".join(texts) or None


def _is_there(value: Any) -> bool:
    return value is not None


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return str(chemical_symbols[number])
