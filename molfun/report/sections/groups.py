"""Results by group: per target, complex, assay or whatever a column names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import FinishedRun
from molfun.report.numbers import estimate
from molfun.tasks.titles import title_of

SHOWN = 30
"""Groups in a table, the largest first."""


def section(run: FinishedRun) -> Section | None:
    """Return the metrics of each group that the evaluation knows."""
    blocks: list[Any] = []
    for head, found in run.evaluation.items():
        part = found.get("parts", {}).get(found.get("part"), {})
        for column, groups in part.get("groups", {}).items():
            blocks += _table(f"{head}: {column}" if head else column, column, groups, found)
    return Section("Groups", blocks) if blocks else None


def _table(
    caption: str, column: str, groups: Mapping[str, Any], found: Mapping[str, Any]
) -> list[Any]:
    largest = sorted(groups.items(), key=lambda item: -item[1]["n"])
    metrics = dict.fromkeys([found["metric"], *(m for _, g in largest for m in g["metrics"])])
    names = list(metrics)[:4]
    rows = [
        [name, f"{group['n']:,}", *(estimate(group["metrics"].get(m)) for m in names)]
        for name, group in largest[:SHOWN]
    ]
    blocks: list[Any] = [Table([column, "samples", *map(title_of, names)], rows, caption)]
    if len(largest) > SHOWN:
        blocks.append(Text(f"The {SHOWN} largest of {len(largest):,} groups.", "note"))
    return blocks
