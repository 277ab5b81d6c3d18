"""Series of a pre-training run: true values, which of them were hidden, and the model's values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molfun.errors import printable
from molfun.report.blocks import Figure, Section, Text
from molfun.report.figures import COLOURS, MUTED, PAPER, cut, plot
from molfun.report.finished import FinishedRun
from molfun.report.numbers import number

MOST_FEATURES = 4
MOST_STEPS = 200
"""Time steps that have room next to each other as points."""
Row = Mapping[str, str]


def section(run: FinishedRun) -> Section | None:
    """Return each series with its hidden values, and the errors of model and interpolation."""
    by_series: dict[str, dict[str, list[Row]]] = {}
    for row in run.reconstructions:
        by_series.setdefault(row["id"], {}).setdefault(row["feature"], []).append(row)
    if not by_series:
        return None
    text = (
        "Values marked as hidden were taken away before the model saw the series, and predicted "
        "from the rest. Validation series where there are any; units of the data."
    )
    every = _errors([rows for features in by_series.values() for rows in features.values()])
    figures = [_figure(name, features) for name, features in by_series.items()]
    return Section("Reconstructed series", [Text(f"{text} {_in_words(every)}"), *figures])


def _figure(name: str, by_feature: Mapping[str, Sequence[Row]]) -> Figure:
    shown = dict(list(by_feature.items())[:MOST_FEATURES])
    with plot(8.8, 0.9 + 1.3 * len(shown), rows=len(shown)) as drawn:
        for axes, (feature, rows) in zip(drawn.axes, shown.items(), strict=True):
            _draw(axes, rows[:MOST_STEPS])
            axes.set_ylabel(cut(printable(feature), 12), fontsize=9)
        drawn.axes[-1].set_xlabel("time step")
        drawn.axes[-1].xaxis.get_major_locator().set_params(integer=True)
        handles, labels = drawn.axes[0].get_legend_handles_labels()
        drawn.figure.legend(handles, labels, loc="outside upper left", ncols=3)
    more = f" (first {len(shown)} of {len(by_feature)} features)"
    words = printable(name) + (more if len(by_feature) > len(shown) else "")
    errors = _in_words(_errors([*by_feature.values()]))
    return Figure(drawn.svg, f"{words}. {errors}".strip(), wide=True)


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    steps, values, hidden, predicted = _arrays(rows)
    axes.plot(steps, values, color=MUTED, linewidth=1.1, label="true")
    axes.plot(
        steps[hidden], values[hidden], "o", color=MUTED, markerfacecolor=PAPER, markersize=5,
        label="hidden from the model",
    )  # fmt: skip
    axes.plot(steps[hidden], predicted[hidden], "x", color=COLOURS[1], label="predicted")


def _errors(by_feature: Sequence[Sequence[Row]]) -> tuple[float, float] | None:
    """Return the RMSE at hidden values of the model, and of lines between the values it saw.

    In deviations of what is seen of a feature, so that features of other units count as much.
    """
    squares: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for rows in by_feature:
        steps, values, hidden, predicted = _arrays(rows)
        seen = np.isfinite(values) & ~hidden
        scale = values[seen].std() if seen.any() else 0.0
        if not hidden.any() or not scale > 0:
            continue
        line = np.interp(steps[hidden], steps[seen], values[seen])
        for found, filled in zip(squares, (predicted[hidden], line), strict=True):
            found.append(((filled - values[hidden]) / scale) ** 2)
    if not squares[0]:
        return None
    own, straight = (math.sqrt(np.concatenate(found).mean()) for found in squares)
    return own, straight


def _in_words(errors: tuple[float, float] | None) -> str:
    if errors is None:
        return ""
    own, straight = map(number, errors)
    return (
        f"RMSE at hidden values: {own} standard deviations of the series; straight lines between "
        f"the seen values: {straight}."
    )


def _arrays(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, values, where they were hidden, and predictions."""
    values, predicted = (
        np.array([float(row[name] or "nan") for row in rows]) for name in ("value", "predicted")
    )
    hidden = np.array([row["hidden"] == "1" for row in rows])
    return np.array([int(row["step"]) for row in rows]), values, hidden, predicted
