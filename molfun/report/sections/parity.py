"""Predictions against labels, for numbers."""

from __future__ import annotations

import numpy as np

from molfun.report.blocks import Figure, Section
from molfun.report.figures import COLOURS, MUTED, cut, plot, points
from molfun.report.finished import PARTS, FinishedRun
from molfun.report.numbers import PART_NAMES
from molfun.report.predicted import Predicted


def section(run: FinishedRun) -> Section | None:
    """Return a parity plot for each part and head whose labels are numbers."""
    figures = []
    for head in run.heads:
        for part in PARTS:
            found = run.predicted(head, part)
            if found is not None and found.form == "number" and found.known.any():
                figures.append(_parity(found, part))
    return Section("Predictions against labels", figures) if figures else None


def _parity(found: Predicted, part: str) -> Figure:
    labels, predictions = found.labels[found.known], found.predictions[found.known]
    name = found.head.target
    with plot(4.4, 4.0) as drawn:
        axes = drawn.axes[0]
        points(axes, labels, predictions, COLOURS[0])
        low, high = _range(labels, predictions)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle="--")
        axes.xaxis.get_major_locator().set_params(nbins=5)  # total energies have many digits
        axes.set_xlabel(cut(name, 40))
        axes.set_ylabel(cut(f"prediction of {name}", 40))
    spread = np.std(predictions) / np.std(labels) if np.std(labels) > 0 else np.nan
    words = (
        f"{name}, {PART_NAMES[part]} part ({len(labels):,} labels). On the dashed line a "
        f"prediction is exact."
    )
    if found.head.task == "energy":
        words += " Most of a total energy is its composition: see the baselines."
    if spread < 0.5:
        words += " Predictions vary far less than labels: the model stays near the mean."
    return Figure(drawn.svg, words)


def _range(*arrays: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest value of all."""
    finite = [one[np.isfinite(one)] for one in arrays]
    present = [one for one in finite if one.size]
    return min(float(one.min()) for one in present), max(float(one.max()) for one in present)
