"""Folds of a cross-validation: sizes, chosen epochs and metrics of each, and their means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from molfun.models.fold_results import FEWEST_FOLDS
from molfun.report.blocks import Figure, Section, Table, Text
from molfun.report.figures import COLOURS, MUTED, plot
from molfun.report.finished import FinishedRun
from molfun.report.numbers import duration, estimate, number
from molfun.tasks.titles import title_of
from molfun.text import counted

SIZES = ("n_train", "n_val", "n_test")
MOST_METRICS = 4
"""Metrics with a column; ``folds.csv`` has all of them."""


def section(run: FinishedRun) -> Section | None:
    """Return a row per fold, and the metric of the verdict in each."""
    rows = run.folds.get("folds")
    if not rows:
        return None
    names = _metrics(run)
    blocks = [
        _table(run.folds, rows, names),
        *([_figure(run.folds, rows, names[0])] if names else []),
    ]
    means = "Two folds give no interval of a mean."
    if len(rows) >= FEWEST_FOLDS:
        means = "Intervals of the means are those of Nadeau and Bengio 2003: folds share training"
        means += " samples."
    text = (
        f"{means} The verdict is on all out-of-fold predictions together, each by a model that "
        f"never saw the sample."
    )
    untested = run.folds.get("n_untested")
    if untested:
        text += f" Tested in no fold, and of training parts alone: {counted(untested, 'sample')}."
    cached = [Text(line, "note") for line in run.folds.get("cache", ())[:1]]
    return Section("Folds", [*blocks, Text(text, "note"), *cached])


def _metrics(run: FinishedRun) -> list[str]:
    """Return the metrics worth a column, that of the verdict first."""
    means = run.folds.get("metrics", {})
    judged = [f"{head}/{one['metric']}".lstrip("/") for head, one in run.evaluation.items()]
    names = dict.fromkeys([*judged, *(name for name in means if name != "loss")])
    return [name for name in names if name in means][:MOST_METRICS]


def _table(found: Mapping[str, Any], rows: list[dict[str, Any]], names: list[str]) -> Table:
    header = ["", "training", "validation", "test", "epoch", "time", *map(title_of, names)]
    cells = [
        [
            str(row["fold"]).replace("_", " "),
            *(number(row.get(size)) for size in SIZES),
            number(row.get("epoch")),
            duration(row["seconds"]),
            *(number(row.get(name)) for name in names),
        ]
        for row in rows
    ]
    few = len(rows) < FEWEST_FOLDS  # older versions wrote an interval of two as well
    means = [
        number(found["metrics"][name]["value"]) if few else estimate(found["metrics"][name])
        for name in names
    ]
    pooled = [number(found.get("pooled", {}).get(name)) for name in names]
    cells.append(
        ["mean" if len(rows) < FEWEST_FOLDS else "mean [95 %]", "", "", "", "", "", *means]
    )
    cells.append(["all samples together", "", "", number(found["n"]), "", "", *pooled])
    return Table(header, cells)


def _figure(found: Mapping[str, Any], rows: list[dict[str, Any]], name: str) -> Figure:
    values = [float("nan") if row.get(name) is None else row[name] for row in rows]
    mean = found["metrics"][name]["value"]
    with plot() as drawn:
        axes = drawn.axes[0]
        if mean is not None:
            axes.axhline(mean, color=MUTED, linewidth=1, linestyle="--")
        axes.plot(range(1, len(values) + 1), values, "o", color=COLOURS[0], markersize=6)
        axes.set_ylabel(title_of(name))
        axes.set_xlabel("fold")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return Figure(drawn.svg, f"{title_of(name)} of each fold; the dashed line is their mean.")
