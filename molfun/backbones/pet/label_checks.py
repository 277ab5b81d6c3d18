"""Compare labels of structures with predictions, to find other units, signs or levels of theory.

A pretrained model already predicts energies and forces of the right size. Labels in kcal/mol, or
gradients in place of forces, therefore differ from predictions by a known factor. Such labels train
without an error, so they are worth a warning.
"""

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
"""One bohr in angstrom (CODATA 2018)."""
CLOSE = 0.05
"""Relative difference of a ratio of energies from a factor between units. Ratios are narrow, since
baselines make up most of a total energy."""
FAR = 1.0
"""Distance in eV per atom above which labels belong to another energy than the baseline."""
NEARLY_ALL = 0.9
"""Share of structures whose ratio must be close to a factor."""
NEAR = 1.25
"""Factor within which sizes of forces agree. Forces of another level of theory differ by this much;
no two units do."""
ALIKE = 0.7
"""Correlation of forces above which their size and sign can be compared."""
SEVERAL = 5.0
"""Ratio of the sizes of forces above which, or below whose inverse, a warning is given."""
PRESSURES = {"GPa": 160.21766, "kbar": 1602.1766, "bar": 1602176.6}
"""Number of each unit of pressure in one eV/angstrom^3 (CODATA 2018)."""
FEW = 4
"""Number of structures below which stress is not compared: its variation is, not its mean."""


def doubts(backbone: Any, run: Any, target: str, samples: Sequence[Any]) -> list[str]:
    """Return reasons to doubt that labels have the unit and level of theory of the target.

    Labels are compared with the model's predictions of the target; those of a new target with
    predictions of an older one.

    Parameters
    ----------
    backbone
        A model of atoms.
    run
        Function that returns the model's outputs for samples, see `molfun.backbones.base.Run`.
    target
        One of its energies.
    samples
        Structures; a few dozen suffice.

    Returns
    -------
    list of str
        Texts for warnings; empty if there is no doubt, or nothing to compare with.
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
    # everything is compared in the unit of the target
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
    """Return the energy to compare labels with: the target if it is fitted, else an older one."""
    names = (target, *backbone.targets)
    return next((name for name in names if backbone.baseline_of(name) is not None), None)


def _labelled_energies(
    samples: Sequence[Any], predicted: np.ndarray
) -> list[tuple[float, float, int, str]]:
    """Return label, prediction, number of atoms and reduced formula of each labelled structure."""
    return [
        (label, float(energy), len(sample.atoms), str(sample.atoms.symbols.formula.reduce()[0]))
        for sample, energy in zip(samples, predicted, strict=True)
        if (label := energy_of(sample)) is not None
    ]


def _labelled(
    labels: Sequence[np.ndarray | None], predicted: Sequence[np.ndarray], factor: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return labels and predictions of the labelled structures, flat and in one unit."""
    # not strict: without any label nothing was predicted, so the second list is empty
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
    # medians, here and below, since a single broken structure must not decide
    distance = float(np.median(np.abs(labels - expected) / sizes))
    text = (
        f"The labels of {target!r} lie {distance:.3g} {unit} per atom from what the model predicts "
        f"for {known!r}."
    )
    ratios = labels / np.where(expected == 0, np.nan, expected)
    for name, factor in PER_EV.items():
        times = factor / here
        if abs(times - 1) < CLOSE or not _alike(ratios, times, compared):
            continue
        if known != target and len(set(formulas)) == 1 and compared is None:
            # with one formula, a shift of its element energies looks like a factor
            continue
        return (
            f"{text} They are {np.nanmedian(ratios):.4g} times as large, so they are probably in "
            f"{name}: divide them by {times:.6g}."
        )
    # a new target is meant for another level of theory, so its distance is no reason to warn
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
    # forces may be per angstrom or per bohr
    return any(1 / NEAR < compared[1] / times / length < NEAR for length in (1.0, BOHR))


def _compare_forces(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float] | None:
    """Return the correlation of labels with predictions, and the ratio of their sizes."""
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
    """Return a reason to doubt that labels are stress in the right unit and sign, or None."""
    if len(pairs) < FEW:
        return None
    # Virials first: times the volume and of the other sign, they could pass for a pressure.
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
    # without the means: a constant pressure offset between levels of theory says nothing of units
    compared = _compare_forces(
        [
            (row, other)
            for row, other in zip(labels - labels.mean(0), expected - expected.mean(0), strict=True)
        ]
    )
    if compared is None or abs(compared[0]) < ALIKE or not 0.5 < compared[1] < 2:
        return None
    return "alike" if compared[0] > 0 else "against"
