"""Errors against length, and against the identity to the nearest training sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from molfun.report.blocks import Figure, Section
from molfun.report.figures import COLOURS, MUTED, cut, plot, points
from molfun.report.finished import FinishedRun
from molfun.report.numbers import PART_NAMES
from molfun.report.predicted import Predicted

FEW = 5
"""Samples below which errors are not plotted."""


def section(run: FinishedRun) -> Section | None:
    """Return a plot of the errors for each property of the inputs that varies."""
    blocks: list[Figure] = []
    for head in run.heads:
        judged = run.judged(head)
        if judged is not None and judged[1].form != "other":
            blocks += [*_against(*judged)]
    return Section("Errors and inputs", blocks) if blocks else None


def _against(part: str, found: Predicted) -> Iterator[Figure]:
    errors = _signed(found)
    for name, values in _properties(found):
        known = np.isfinite(errors) & np.isfinite(values)
        if known.sum() >= FEW and np.ptp(values[known]) > 0:
            yield _scatter(found, part, name, values[known], errors[known])


def _properties(found: Predicted) -> Iterator[tuple[str, np.ndarray]]:
    """Yield length and identity of each sample, where the table has them."""
    if found.lengths.any():
        yield "length", found.lengths.astype(float)
    if "identity" in found.rows[0]:
        yield "identity", np.array([_float(row["identity"]) for row in found.rows])


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _signed(found: Predicted) -> np.ndarray:
    """Return prediction minus label of a sample, or the mean error of its residues or classes."""
    if found.form == "number" and len(found.labels) == len(found.rows):
        return found.predictions - found.labels
    return found.errors()


def _scatter(
    found: Predicted, part: str, name: str, values: np.ndarray, errors: np.ndarray
) -> Figure:
    is_class = found.form == "class"
    single = is_class and len(found.labels) == len(found.rows)
    with plot() as drawn:
        axes = drawn.axes[0]
        if single:
            _share_wrong(axes, values, errors)
        else:
            points(axes, values, errors, COLOURS[0])
            axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xlabel(name)
        what = "share wrong" if is_class else f"error of {found.head.target}"
        axes.set_ylabel(cut(what, 40))
    words = "Share of wrong classes" if is_class else "Prediction minus label"
    return Figure(
        drawn.svg, f"{words} against {name}, {PART_NAMES[part]} part ({found.head.target})."
    )


def _share_wrong(axes: Any, values: np.ndarray, errors: np.ndarray) -> None:
    """Draw the share of wrong samples in five groups of equal size."""
    order = np.argsort(values, kind="stable")
    groups = [group for group in np.array_split(order, 5) if len(group)]
    centres = [float(values[group].mean()) for group in groups]
    shares = [float(errors[group].mean()) for group in groups]
    axes.plot(centres, shares, "o-", color=COLOURS[0])
    axes.set_ylim(bottom=0)
