"""Write reports of finished runs, and compare runs with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from molfun.cli.command_settings import CompareSettings, ReportSettings
from molfun.cli.console import say, set_up_logging
from molfun.cli.outputs import check_output
from molfun.report import compare_runs, write_comparison, write_report
from molfun.report.compare import Comparison
from molfun.report.folds import is_folds, write_fold_report
from molfun.report.numbers import PART_NAMES
from molfun.report.tuned import is_study, write_study_report
from molfun.text import counted


def report(given: Mapping[str, Any]) -> None:
    """Write ``report.html`` into each folder of a run, a study or predicted structures."""
    wanted, _ = ReportSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    for run in wanted.runs:
        write = write_fold_report if is_folds(run) else write_report
        if is_study(run):
            write = write_study_report
        say(f"Report: {write(run)}")


def compare(given: Mapping[str, Any]) -> None:
    """Print the metrics of runs on their common samples, and write them as HTML."""
    wanted, _ = CompareSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    path = check_output(wanted.output, {}, overwrite=wanted.overwrite)
    found = compare_runs(wanted.runs)
    for one in found:
        _say(one)
    say(f"Comparison: {write_comparison(wanted.runs, found, path)}")


def _say(found: Comparison) -> None:
    """Print one table: a line per run."""
    words = f"{counted(found.n, 'common sample')} of the {PART_NAMES[found.part]} part"
    say(f"{found.head.target} ({found.head.task}), {words}:")
    header, rows = found.table()
    _say_columns([header, *rows])
    say("Brackets: 95 % intervals; differences are paired (the same samples are drawn for all).")
    if found.left_out:
        say(f"Left out: {counted(found.left_out, 'sample')} that only some runs predicted.")


def _say_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        say("  ".join(cells).rstrip())
