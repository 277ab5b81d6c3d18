"""Cost: time, memory, and what the cache of the frozen part saved."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator

from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import FinishedRun
from molfun.report.numbers import duration, number
from molfun.text import megabytes

CACHE = "Frozen-prefix cache:"


def section(run: FinishedRun) -> Section | None:
    """Return the cost of a run, as far as its files know it."""
    rows = [*_times(run), *_steps(run), *_machine(run)]
    notes = [Text(r.text) for r in run.log if r.text.startswith(CACHE)]
    return Section("Cost", [Table([], rows, numeric=False), *notes[-1:]]) if rows else None


def _times(run: FinishedRun) -> Iterator[list[str]]:
    seconds = run.provenance.get("seconds")
    if seconds is not None:
        what = "since it was resumed" if run.provenance.get("resumed") else "training to report"
        yield [what, duration(seconds)]
    epochs = _epochs(run)
    if epochs:
        yield ["per epoch (median)", duration(sorted(epochs)[len(epochs) // 2])]


def _steps(run: FinishedRun) -> Iterator[list[str]]:
    if not run.history:
        return
    last = run.history[-1]
    yield ["epochs", f"{len(run.history):,}"]
    if "steps" in last:
        yield ["optimizer steps", number(int(last["steps"]))]
    if last.get("skipped"):
        yield ["windows skipped (not finite)", number(int(last["skipped"]))]


def _machine(run: FinishedRun) -> Iterator[list[str]]:
    if "peak_memory" in run.provenance:
        yield ["largest memory", megabytes(run.provenance["peak_memory"])]
    machine = run.provenance.get("machine")
    if machine:
        yield ["machine", f"{machine.get('device')}, {machine.get('system')}"]


def _epochs(run: FinishedRun) -> list[float]:
    """Return the seconds between the log lines of one epoch and the next of one process."""
    times = [
        record.time
        for record in run.log
        if record.logger == "molfun.training.engine" and record.text.startswith("epoch=")
    ]
    resumed = run.provenance.get("resumed_at", ())
    read = datetime.datetime.fromisoformat
    found = [
        (read(b) - read(a)).total_seconds()
        for a, b in itertools.pairwise(times)
        # the process may have been dead for days
        if not any(a <= time <= b for time in resumed)
    ]
    return [seconds for seconds in found if seconds > 0]
