"""ROC curve, precision and recall, and the confusion matrix, for classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from molfun.report.blocks import Figure, Section, Text
from molfun.report.figures import COLOURS, INK, MUTED, PAPER, cut, plot
from molfun.report.finished import FinishedRun
from molfun.report.numbers import PART_NAMES
from molfun.report.predicted import Predicted

MOST_CLASSES = 30
"""Classes of which a confusion matrix can still be read."""


def section(run: FinishedRun) -> Section | None:
    """Return the plots of each head that chooses one of several classes."""
    blocks = []
    for head in run.heads:
        judged = run.judged(head)
        if judged is not None and judged[1].form == "class" and judged[1].known.any():
            blocks += [*_plots(*judged)]
    return Section("Classes", blocks) if blocks else None


def _plots(part: str, found: Predicted) -> Iterator[Figure | Text]:
    truth, hard = found.labels[found.known], found.predictions[found.known]
    name = f"{found.head.target}, {PART_NAMES[part]} part ({len(truth):,} labels)"
    if len(found.head.classes) <= MOST_CLASSES:
        yield _confusion(truth, hard, found, name)
    if len(np.unique(truth)) < 2:
        yield Text(f"{name}: labels are of one class, so no ranking can be judged.", "note")
    elif found.probs is not None and len(found.probs) == len(found.labels):
        yield from _rankings(truth, found.probs[found.known], found.head.classes, name)


def _confusion(truth: np.ndarray, hard: np.ndarray, found: Predicted, name: str) -> Figure:
    from sklearn.metrics import confusion_matrix

    classes = found.head.classes
    counts = confusion_matrix(truth, hard, labels=range(len(classes)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(8.0, 3.2 + 0.32 * len(classes))
    with plot(size + 0.4, size) as drawn:
        axes = drawn.axes[0]
        axes.grid(visible=False)
        for (row, column), share in np.ndenumerate(shares):
            _cell(axes, row, column, share, int(counts[row, column]), small=len(classes) > 10)
        axes.set_xlim(-0.5, len(classes) - 0.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        names = [cut(c, 14) for c in classes]
        turn = 90 if max(map(len, names)) * len(names) > 40 else 0
        axes.set_xticks(range(len(names)), names, rotation=turn)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
    return Figure(drawn.svg, f"{name}: how often each class is predicted as each.", wide=size > 5)


def _cell(axes: Any, row: int, column: int, share: float, n: int, *, small: bool) -> None:
    from matplotlib.patches import Rectangle

    square = Rectangle((column - 0.5, row - 0.5), 1, 1, color=COLOURS[0], alpha=share, linewidth=0)
    axes.add_patch(square)
    if n:
        style = {"ha": "center", "va": "center", "fontsize": 7 if small else 9}
        colour = PAPER if share > 0.6 else INK
        axes.text(column, row, f"{n:,}", color=colour, **style)


def _rankings(
    truth: np.ndarray, probs: np.ndarray, classes: tuple[str, ...], name: str
) -> Iterator[Figure]:
    """Yield ROC and precision-recall curves of the positive class, or of each class."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    chosen = [1] if len(classes) == 2 else [c for c in np.unique(truth) if c >= 0][: len(COLOURS)]
    with plot(8.8, 3.8, columns=2) as drawn:
        roc, recall = drawn.axes
        for place, number in enumerate(chosen):
            is_it, score = truth == number, probs[:, number]
            style = {"color": COLOURS[place], "label": cut(classes[number], 16), "linewidth": 1.6}
            false, true, _ = roc_curve(is_it, score)
            roc.plot(false, true, **style)
            precision, found, _ = precision_recall_curve(is_it, score)
            recall.plot(found, precision, **style)
            recall.axhline(is_it.mean(), color=COLOURS[place], linewidth=0.8, linestyle=":")
        roc.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        roc.set_xlabel("false positives (share)")
        roc.set_ylabel("true positives (share)")
        recall.set_xlabel("recall")
        recall.set_ylabel("precision")
        recall.set_ylim(-0.03, 1.03)
        roc.legend(loc="lower right")
    more = "" if len(chosen) == 1 or len(chosen) == len(classes) else " (the first six classes)"
    words = f"{name}: ROC, and precision against recall{more}. Dashed and dotted lines are chance."
    yield Figure(drawn.svg, words, wide=True)
