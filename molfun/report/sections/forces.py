"""Forces against labels, for models of atoms."""

from __future__ import annotations

import numpy as np

from molfun.report.blocks import Figure, Section
from molfun.report.figures import COLOURS, MUTED, plot, points
from molfun.report.finished import PARTS, FinishedRun
from molfun.report.inputs import samples
from molfun.report.numbers import PART_NAMES, number

MOST_STRUCTURES = 500


def section(run: FinishedRun) -> Section | None:
    """Return predicted against reference forces, from the files next to the predictions."""
    for part in PARTS:
        path = run.path / f"predictions_{part}_structures.xyz"
        if not path.is_file():
            continue
        labels, predictions = _forces(run, path)
        if len(labels):
            return Section("Forces", [_parity(part, labels, predictions)])
    return None


def _forces(run: FinishedRun, path: object) -> tuple[np.ndarray, np.ndarray]:
    """Return the components of reference and predicted forces, in eV/Å."""
    from ase.io import read

    frames = read(path, index=f":{MOST_STRUCTURES}", format="extxyz")
    known = samples(run, [str(frame.info["id"]) for frame in frames if "id" in frame.info])
    pairs = []
    for frame in frames:
        sample = known.get(str(frame.info.get("id")))
        target = sample.target if sample is not None else None
        if isinstance(target, dict) and target.get("forces") is not None:
            pairs.append((np.asarray(target["forces"]), frame.get_forces()))
    if not pairs:
        return np.zeros(0), np.zeros(0)
    labels, predictions = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    return labels, predictions


def _parity(part: str, labels: np.ndarray, predictions: np.ndarray) -> Figure:
    with plot(4.4, 4.0) as drawn:
        axes = drawn.axes[0]
        points(axes, labels, predictions, COLOURS[0])
        ends = [min(labels.min(), predictions.min()), max(labels.max(), predictions.max())]
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
        axes.set_xlabel("reference force (eV/Å)")
        axes.set_ylabel("predicted force (eV/Å)")
    error = 1000 * float(np.abs(labels - predictions).mean())
    size = 1000 * float(np.abs(labels).mean())
    return Figure(
        drawn.svg,
        f"Components of forces, {PART_NAMES[part]} part ({len(labels):,}): mean absolute error "
        f"{number(error)} meV/Å, where forces of zero would have {number(size)}.",
    )
