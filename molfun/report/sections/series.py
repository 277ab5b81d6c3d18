"""Example series with their predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from molfun.report.blocks import Figure, Section, Text
from molfun.report.figures import COLOURS, cut, plot
from molfun.report.finished import FinishedRun
from molfun.report.inputs import kind_name, samples
from molfun.report.numbers import number
from molfun.report.predicted import Predicted
from molfun.report.sections.worst import worst

SHOWN = 2
"""Series shown of the worst, and of the best."""
MOST_FEATURES = 6
MOST_STEPS = 2000


def section(run: FinishedRun) -> Section | None:
    """Return the series with the largest errors and those with the smallest."""
    judged = run.judged_first() if kind_name(run) == "timeseries" else None
    if judged is None:
        return None
    found = judged[1]
    order = worst(found, len(found.rows))
    chosen = list(dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]]))
    known = samples(run, [found.ids[place] for place in chosen])
    names = run.meta.get("data", {}).get("feature_columns") or []
    figures = [
        _figure(found, place, known[found.ids[place]], names)
        for place in chosen
        if found.ids[place] in known
    ]
    if not figures:
        return None
    text = (
        "This model predicts labels and has no decoder that fills in hidden values; the report of "
        "a pre-training run (molfun pretrain) shows reconstructions."
    )
    return Section("Example series", [*figures, Text(text, "note")])


def _figure(found: Predicted, place: int, sample: Any, names: list[str]) -> Figure:
    values = np.asarray(sample.features["timeseries"], dtype=float)[:MOST_STEPS]
    with plot(4.8, 2.8) as drawn:
        axes = drawn.axes[0]
        for i, column in enumerate(values.T[:MOST_FEATURES]):
            name = names[i] if i < len(names) else str(i)
            axes.plot(column, color=COLOURS[i], linewidth=1.1, label=cut(name, 14))
        axes.set_xlabel("time step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("value")
        axes.legend(ncols=1, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    more = f" (first {MOST_FEATURES} of {values.shape[1]} features)"
    label, predicted = (_shown(found, v[place]) for v in (found.labels, found.predictions))
    words = f"{found.ids[place]}: label {label}, predicted {predicted}"
    return Figure(drawn.svg, words + (more if values.shape[1] > MOST_FEATURES else "") + ".")


def _shown(found: Predicted, value: float) -> str:
    if found.form == "class":
        return found.head.classes[int(value)] if value >= 0 else "unknown"
    return number(float(value))
