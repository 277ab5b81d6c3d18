"""Baselines: simple models on the same split, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from molfun.report.blocks import Figure, Section, Table, Text
from molfun.report.figures import COLOURS, INK, MUTED, cut, plot
from molfun.report.finished import FinishedRun
from molfun.report.numbers import PART_NAMES, estimate
from molfun.tasks.titles import title_of


def section(run: FinishedRun) -> Section | None:
    """Return the baselines of the part that the verdict speaks of."""
    blocks: list[Any] = []
    for head, found in run.evaluation.items():
        part = found.get("parts", {}).get(found.get("part"), {})
        if part.get("baselines"):
            blocks += [_table(head, found, part), _figure(found, part)]
    if not blocks:
        return None
    text = (
        "Baselines saw the training rows alone. A difference above 0 means that the model is "
        "better; an interval that holds 0 means that the data does not tell. Intervals of "
        "differences are paired: the same samples are drawn for both."
    )
    return Section("Baselines", [*blocks, Text(text, "note")])


def _table(head: str, found: Mapping[str, Any], part: Mapping[str, Any]) -> Table:
    main = found["metric"]
    names = [main, *(m for m in part["metrics"] if m != main)][:3]
    header = ["", title_of(main), "model better by", *map(title_of, names[1:])]
    rows = [_row("this model", part["metrics"], names, "")]
    for baseline in part["baselines"].values():
        better = estimate(baseline.get("difference"))
        rows.append(_row(baseline["title"], baseline["metrics"], names, better))
    words = f"{PART_NAMES.get(found['part'], found['part'])} part, {part['n']:,} samples"
    return Table(header, rows, caption=f"{head}: {words}" if head else words.capitalize())


def _row(title: str, metrics: Mapping[str, Any], names: list[str], better: str) -> list[str]:
    first, *others = (estimate(metrics.get(name)) for name in names)
    return [title, first, better, *others]


def _figure(found: Mapping[str, Any], part: Mapping[str, Any]) -> Figure:
    main = found["metric"]
    lines = [("this model", part["metrics"].get(main))]
    lines += [(one["title"], one["metrics"].get(main)) for one in part["baselines"].values()]
    lines = [(name, value) for name, value in lines if value and value.get("value") is not None]
    with plot(8.0, 1.1 + 0.36 * len(lines)) as drawn:
        axes = drawn.axes[0]
        for place, (_, value) in enumerate(lines):
            draw_interval(axes, place, value, COLOURS[0] if place == 0 else MUTED)
        axes.set_yticks(range(len(lines)), [cut(name, 50) for name, _ in lines], color=INK)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(title_of(main))
    better = "higher" if found.get("higher_is_better") else "lower"
    return Figure(
        drawn.svg, f"{title_of(main)} with 95 % intervals; {better} is better.", wide=True
    )


def draw_interval(axes: Any, place: int, value: Mapping[str, float | None], colour: str) -> None:
    """Draw a value with its interval, if it has one that is defined."""
    if value.get("low") is not None and value.get("high") is not None:
        axes.plot([value["low"], value["high"]], [place, place], color=colour, linewidth=2)
    axes.plot([value["value"]], [place], "o", color=colour, markersize=6)
