"""Verdict: is the model any better than a simple one, and how sure is that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import PARTS, FinishedRun
from molfun.report.numbers import PART_NAMES, estimate, number
from molfun.tasks.titles import title_of


def section(run: FinishedRun) -> Section | None:
    """Return metrics with intervals; the verdict itself heads the page."""
    if not run.evaluation:
        return _without_evaluation(run)
    blocks: list[Any] = []
    for head, found in run.evaluation.items():
        blocks += [*_metrics(head, found), *_threshold(head, found.get("threshold"))]
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
        [title_of(metric), *(estimate(part["metrics"].get(metric)) for part in parts.values())]
        for metric in names
    ]
    yield Table(header, rows, caption=head)


def _threshold(head: str, found: Mapping[str, Any] | None) -> Iterator[Table]:
    """Yield the threshold of two classes, and what it gives on the test part."""
    if found:
        header = ["threshold chosen on validation", *map(title_of, found["metrics"])]
        row = [number(found["value"]), *map(number, found["metrics"].values())]
        words = "Test part, positive from this probability of the positive class on"
        yield Table(header, [row], f"{head}: {words}" if head else words)


def _without_evaluation(run: FinishedRun) -> Section | None:
    """Return what the best epoch had in validation, of a run without ``evaluation.json``."""
    if not run.history or run.objective:
        return None
    best = run.history.best
    if not any(
        math.isfinite(v) for row in run.history for k, v in row.items() if k.startswith("val")
    ):
        text = (
            "There was neither a validation nor a test part, so nothing says how good the model "
            "is. --val-frac and --test-frac leave some rows out, --val and --test name files."
        )
        return Section("Results", [Text(text, "warning")])
    rows = [[title_of(k), number(v)] for k, v in best.items() if k.startswith("val")]
    text = (
        "No baselines and intervals were computed for this run, so nothing says if the model is "
        "better than a simple one. The numbers are those of the best epoch in validation, which "
        "also chose the epoch."
    )
    return Section("Results", [Text(text, "warning"), Table(["", "validation"], rows)])
