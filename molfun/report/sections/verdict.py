"""Verdict: is the model any better than a simple one, and how sure is that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import PARTS, FinishedRun
from molfun.report.numbers import PART_NAMES, estimate, name_of, number


def section(run: FinishedRun) -> Section | None:
    """Return metrics with intervals; the verdict itself heads the page."""
    if not run.evaluation:
        return _without_evaluation(run)
    blocks: list[Any] = []
    for head, found in run.evaluation.items():
        blocks += _metrics(head, found)
    blocks.append(Text("Brackets are 95 % bootstrap intervals over samples.", "note"))
    return Section("Results", blocks)


def _metrics(head: str, found: Mapping[str, Any]) -> Iterator[Table]:
    """Yield one table: metrics by part."""
    parts = {name: found["parts"][name] for name in PARTS if name in found.get("parts", {})}
    every = [m for part in parts.values() for m in part["metrics"]]
    if not every:
        return
    names = dict.fromkeys([found["metric"], *every])  # the metric of the verdict first
    header = ["", *(f"{PART_NAMES[name]} ({part['n']:,})" for name, part in parts.items())]
    rows = [
        [name_of(metric), *(estimate(part["metrics"].get(metric)) for part in parts.values())]
        for metric in names
    ]
    yield Table(header, rows, caption=head)


def _without_evaluation(run: FinishedRun) -> Section | None:
    """Return what the best epoch had in validation, of a run without ``evaluation.json``."""
    if not run.history or run.objective:
        return None
    best = run.history.best
    rows = [[name_of(k), number(v)] for k, v in best.items() if k.startswith("val")]
    text = (
        "No baselines and intervals were computed for this run, so nothing says if the model is "
        "better than a simple one. The numbers are those of the best epoch in validation, which "
        "also chose the epoch."
    )
    return Section("Results", [Text(text, "warning"), Table(["", "validation"], rows)])
