"""Baselines of energies in words, and what speaks against labels being of theirs."""

from __future__ import annotations

from collections.abc import Mapping
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
CLOSE = 0.02
FAR = 1.0
"""eV an atom beyond which labels are not of the energy that a baseline was fitted to."""


def energy_of(sample: Any) -> float | None:
    """The energy in the label of a structure; None where there is none that is finite."""
    label = sample.target
    energy = label.get("energy") if isinstance(label, Mapping) else label
    return None if energy is None or not np.isfinite(energy) else float(energy)


def describe_baseline(backbone: Any, target: str) -> str:
    """One line: energy of each element and scale of the rest."""
    found = backbone.baseline_of(target)
    if found is None:
        return f"{target}: not fitted yet"
    from ase.data import chemical_symbols

    energies, scale = found
    unit = backbone.targets[target]
    listed = ", ".join(f"{chemical_symbols[n]} {e:.4f}" for n, e in energies.items())
    return f"{target}: {listed} {unit} an atom; scale of the rest {scale:.4g} {unit}"


def doubts(backbone: Any, target: str, samples: list[Any]) -> str | None:
    """What speaks against labels being of the energy, and in the unit, of the target.

    Parameters
    ----------
    backbone
        A model of atoms.
    target
        One of its energies, with a baseline.
    samples
        Labelled structures; some hundred suffice.

    Returns
    -------
    str or None
        A text for a warning; None if nothing does, or there is nothing to compare with.
    """
    known = [name for name in (target, *backbone.targets) if backbone.baseline_of(name) is not None]
    if not known:
        return None
    # a new target has no baseline yet; those of the others tell the unit at least
    energies, _ = backbone.baseline_of(known[0])
    pairs = [
        (energy, sum(energies[int(n)] for n in sample.atoms.numbers), len(sample.atoms))
        for sample in samples
        if (energy := energy_of(sample)) is not None
    ]
    if not pairs:
        return None
    labels, expected, sizes = np.array(pairs).T
    here = PER_EV.get(backbone.targets[target], 1.0)
    there = PER_EV.get(backbone.targets[known[0]], 1.0)
    # all of it in the unit of the target
    expected = expected * (here / there)
    distance = float(np.median(np.abs(labels - expected) / sizes))
    if distance < FAR * here:
        return None
    text = f"The labels of {target!r} lie {distance:.3g} {backbone.targets[target]} an atom from "
    text += f"the baseline of {known[0]!r}."
    if np.all(np.abs(expected) > 0):
        ratio = float(np.median(labels / expected))
        for unit, factor in PER_EV.items():
            if abs(ratio * here / factor - 1) < CLOSE:
                return (
                    f"{text} They are {ratio:.4g} times as large, so they are probably in {unit}: "
                    f"divide them by {factor / here:.6g}."
                )
    if known[0] != target:
        return None  # another level of theory is what a new target is for
    return (
        f"{text} They are of another level of theory, another zero or another unit: "
        f"model.add_target('{target}/new', inherit={target!r}) gives them a baseline of their own "
        f"(--new-target {target}/new --inherit {target})."
    )
