"""Calibration: do predicted probabilities, and intervals of numbers, hold what they say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from molfun.report.blocks import Figure, Section, Text
from molfun.report.figures import COLOURS, MUTED, plot
from molfun.report.finished import FinishedRun
from molfun.report.numbers import PART_NAMES, number
from molfun.report.predicted import Predicted

BINS = 10


def section(run: FinishedRun) -> Section | None:
    """Return a reliability diagram for classes, and the coverage of intervals for numbers."""
    blocks: list[Figure | Text] = []
    for head in run.heads:
        judged = run.judged(head)
        if judged is None or not judged[1].known.any():
            continue
        blocks += [*_reliability(*judged), *_coverage(*judged)]
    return Section("Calibration", blocks) if blocks else None


def _reliability(part: str, found: Predicted) -> Iterator[Figure]:
    """Yield how often predictions of a probability are right."""
    if found.form != "class" or found.probs is None or len(found.probs) != len(found.labels):
        return
    probs, truth = found.probs[found.known], found.labels[found.known]
    if len(found.head.classes) == 2:
        sure, right = probs[:, 1], truth == 1
        words = f"share that is {found.head.classes[1]}"
    else:
        sure, right = probs.max(1), probs.argmax(1) == truth
        words = "share that is right"
    centres, shares, sizes = _binned(sure, right)
    error = float((np.abs(shares - centres) * sizes).sum() / sizes.sum())
    with plot(4.4, 4.0) as drawn:
        axes = drawn.axes[0]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        axes.plot(centres, shares, color=COLOURS[0], linewidth=1.4)
        axes.scatter(centres, shares, s=10 + 90 * sizes / sizes.max(), color=COLOURS[0])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share observed")
    yield Figure(
        drawn.svg,
        f"{found.head.target}, {PART_NAMES[part]} part: {words}, against its probability. "
        f"Expected calibration error {number(error)} ({BINS} bins); on the dashed line "
        f"probabilities are exact, larger points hold more samples.",
    )


def _binned(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean probability, share observed and size of each bin that is not empty."""
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    sizes = np.bincount(place, minlength=BINS)
    full = sizes > 0
    centres = np.bincount(place, sure, minlength=BINS)[full] / sizes[full]
    shares = np.bincount(place, right, minlength=BINS)[full] / sizes[full]
    return centres, shares, sizes[full]


def _coverage(part: str, found: Predicted) -> Iterator[Text]:
    """Yield how many labels lie in the intervals, where predictions have any."""
    columns = {"lower", "upper"}
    if found.form != "number" or not columns <= set(found.rows[0]):
        return
    low, high = (np.array([_float(row[c]) for row in found.rows]) for c in ("lower", "upper"))
    known = found.known & np.isfinite(low) & np.isfinite(high)
    if known.any():
        inside = (low <= found.labels) & (found.labels <= high)
        yield Text(
            f"{number(100 * float(inside[known].mean()))} % of {known.sum():,} labels of the "
            f"{PART_NAMES[part]} part lie between lower and upper."
        )


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
