"""Labels of atoms compared with what a model predicts: other units, signs, levels of theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from molfun.backbones.pet.baselines import energy_of, forces_of, stress_of

PER_EV = {
    "eV": 1.0,
    "kcal/mol": 23.060548,
    "kJ/mol": 96.485332,
    "hartree": 1 / 27.211386,
    "rydberg": 1 / 13.605693,
    "meV": 1000.0,
}
"""Number of each unit in one eV (CODATA 2018)."""
BOHR = 0.529177
"""Angstrom (CODATA 2018)."""
CLOSE = 0.05
FAR = 1.0
"""eV per atom beyond which labels are not of the energy that a baseline was fitted to."""
NEARLY_ALL = 0.9
NEAR = 1.25
ALIKE = 0.7
"""Correlation of forces above which their size and sign can be compared."""
SEVERAL = 5.0
PRESSURES = {"GPa": 160.21766, "kbar": 1602.1766, "bar": 1602176.6}
"""Number of each unit of pressure in one eV/angstrom^3 (CODATA 2018)."""
FEW = 4
"""Structures below which their stress is not compared."""


def doubts(backbone: Any, run: Any, target: str, samples: Sequence[Any]) -> list[str]:
    """Return reasons to doubt that labels are of the energy and the unit of the target.

    Labels are compared with what the model predicts for them, for a new target with what it
    predicts for an older one.

    Parameters
    ----------
    backbone
        A model of atoms.
    run
        Gives what it outputs for samples, see `molfun.backbones.base.Run`.
    target
        One of its energies.
    samples
        Structures; some dozen suffice.

    Returns
    -------
    list of str
        Texts for warnings; none if nothing does, or there is nothing to compare with.
    """
    known = _compared_with(backbone, target)
    if known is None or not samples:
        return []
    forces = [forces_of(sample) for sample in samples]
    stresses = [stress_of(sample) for sample in samples]
    energies, predicted, predicted_stress = backbone.predicted(
        samples,
        run,
        known,
        forces=any(f is not None for f in forces),
        stress=any(s is not None for s in stresses),
    )
    n_unusable = int((~np.isfinite(energies)).sum())
    if n_unusable:
        return [f"The model predicts NaN for {n_unusable} of the first {len(samples)} structures."]
    # all in the unit of the target
    unit = backbone.targets[target]
    here = backbone.per_ev(unit)
    factor = here / backbone.per_ev(backbone.targets[known])
    pairs = _labelled_energies(samples, energies * factor)
    compared = _compare_forces(_labelled(forces, predicted, factor))
    volumes = [s.atoms.cell.volume for s, t in zip(samples, stresses, strict=True) if t is not None]
    texts = [
        _doubt_energies(target, known, unit, here, pairs, compared),
        _doubt_forces(unit, here, compared),
        _doubt_stress(unit, here, _labelled(stresses, predicted_stress, factor), volumes),
    ]
    return list(filter(None, texts))


def _compared_with(backbone: Any, target: str) -> str | None:
    """The energy whose predictions labels are compared with: the target, or an older one."""
    names = (target, *backbone.targets)
    return next((name for name in names if backbone.baseline_of(name) is not None), None)


def _labelled_energies(
    samples: Sequence[Any], predicted: np.ndarray
) -> list[tuple[float, float, int, str]]:
    """Label, prediction, number of atoms and reduced formula of each structure with a label."""
    return [
        (label, float(energy), len(sample.atoms), str(sample.atoms.symbols.formula.reduce()[0]))
        for sample, energy in zip(samples, predicted, strict=True)
        if (label := energy_of(sample)) is not None
    ]


def _labelled(
    labels: Sequence[np.ndarray | None], predicted: Sequence[np.ndarray], factor: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and predictions of the structures that have a label, flat and in one unit."""
    # nothing was predicted where no structure has a label
    pairs = zip(labels, predicted, strict=False)
    return [(label.ravel(), found.ravel() * factor) for label, found in pairs if label is not None]


def _doubt_energies(
    target: str,
    known: str,
    unit: str,
    here: float,
    pairs: Sequence[tuple[float, float, int, str]],
    compared: tuple[float, float] | None,
) -> str | None:
    if not pairs:
        return None
    *columns, formulas = zip(*pairs, strict=True)
    labels, expected, sizes = map(np.array, columns)
    distance = float(np.median(np.abs(labels - expected) / sizes))
    text = (
        f"The labels of {target!r} lie {distance:.3g} {unit} an atom from what the model predicts "
        f"for {known!r}."
    )
    ratios = labels / np.where(expected == 0, np.nan, expected)
    for name, factor in PER_EV.items():
        times = factor / here
        if abs(times - 1) < CLOSE or not _alike(ratios, times, compared):
            continue
        if known != target and len(set(formulas)) == 1 and compared is None:
            continue  # on one formula, any shift of its elements is some factor
        return (
            f"{text} They are {np.nanmedian(ratios):.4g} times as large, so they are probably in "
            f"{name}: divide them by {times:.6g}."
        )
    # another level of theory is what a new target is for
    if known != target or distance < FAR * here:
        return None
    return (
        f"{text} They are of another level of theory, another zero or another unit: "
        f"model.add_target('{target}/new', inherit={target!r}) gives them a baseline of their own "
        f"(--new-target {target}/new --inherit {target})."
    )


def _alike(ratios: np.ndarray, times: float, compared: tuple[float, float] | None) -> bool:
    """Return whether nearly all energies, and forces if given, differ by this factor."""
    if np.mean(np.abs(ratios / times - 1) < CLOSE) < NEARLY_ALL:
        return False
    if compared is None or abs(compared[0]) < ALIKE:
        return True
    # by angstrom, or by bohr
    return any(1 / NEAR < compared[1] / times / length < NEAR for length in (1.0, BOHR))


def _compare_forces(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float] | None:
    """Correlation of labels with predictions, and how many times as large they are."""
    if not pairs:
        return None
    labels, expected = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    sizes = float(np.linalg.norm(labels)), float(np.linalg.norm(expected))
    if min(sizes) == 0 or not np.isfinite(sizes).all():
        return None
    return float(labels @ expected) / (sizes[0] * sizes[1]), sizes[0] / sizes[1]


def _doubt_forces(unit: str, here: float, compared: tuple[float, float] | None) -> str | None:
    if compared is None or abs(compared[0]) < ALIKE:
        return None
    likeness, ratio = compared
    texts = []
    if likeness < 0:
        texts.append(
            "The forces point against those that the model predicts: they are probably gradients "
            "of the energy. Multiply them by -1."
        )
    if not 1 / SEVERAL < ratio < SEVERAL:
        units = {f"{name}/angstrom": factor / here for name, factor in PER_EV.items()}
        units["hartree/bohr"] = PER_EV["hartree"] / here * BOHR
        name = min(units, key=lambda name: abs(np.log(ratio / units[name])))
        near = 1 / NEAR < ratio / units[name] < NEAR
        guess = f" (they might be in {name})" if near else ""
        texts.append(
            f"The forces are {ratio:.3g} times as large as those that the model predicts, in "
            f"{unit}/angstrom{guess}."
        )
    return " ".join(texts) or None


def _doubt_stress(
    unit: str,
    here: float,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    volumes: Sequence[float],
) -> str | None:
    """Say why labels may not be stress, from how they vary with predictions."""
    if len(pairs) < FEW:
        return None
    labels, expected = (np.array(column) for column in zip(*pairs, strict=True))
    if _match(labels / np.array(volumes)[:, None], expected) == "against":
        return (
            f"The stress is of the other sign than what the model predicts, and times the volume "
            f"as large: these are probably virials ({unit}). Name them with virial_key "
            f"(--virial-key)."
        )
    times = {"": 1.0, **{name: factor / here for name, factor in PRESSURES.items()}}
    for name, factor in times.items():
        match = _match(labels / factor, expected)
        if match == "against":
            what = f" in {name}" if name else ""
            return (
                f"The stress is of the other sign than what the model predicts: it is probably a "
                f"pressure{what}. Stress is positive under tension, in {unit}/angstrom^3."
            )
        if match == "alike":
            return _other_pressure(name, factor, unit) if name else None
    return None


def _other_pressure(name: str, factor: float, unit: str) -> str:
    return (
        f"The stress is {factor:.4g} times as large as what the model predicts: it is probably in "
        f"{name}. Divide it by that, for {unit}/angstrom^3."
    )


def _match(labels: np.ndarray, expected: np.ndarray) -> str | None:
    """Compare sign (``"alike"`` or ``"against"``) and size of labels with predictions."""
    compared = _compare_forces(
        [
            (row, other)
            for row, other in zip(labels - labels.mean(0), expected - expected.mean(0), strict=True)
        ]
    )
    if compared is None or abs(compared[0]) < ALIKE or not 0.5 < compared[1] < 2:
        return None
    return "alike" if compared[0] > 0 else "against"
