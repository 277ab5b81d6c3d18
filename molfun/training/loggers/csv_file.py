"""Log to a CSV file, by Lightning Fabric's logger."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from molfun._io import write_text
from molfun.training.loggers.base import LoggedRun, Logger

METRICS, CONFIG = "metrics.csv", "config.json"


class CSVLogger(Logger):
    """Log to ``logs/csv/metrics.csv`` of the run folder: one row per logged step.

    ``history.csv``, which every run has, holds one row per epoch; this file also has the steps in
    between, the rates of all groups, and the rest of what trackers are sent.
    """

    name: ClassVar[str] = "csv"

    def start(self, run: LoggedRun) -> str:
        """Open the file; rows that a killed run wrote after its state are written again."""
        from lightning_fabric.loggers import CSVLogger as FabricLogger

        before = run.folder.with_name(f".{run.folder.name}.before")
        rows = _kept(run, before) if run.id else []
        # what is left in the folder, or of a run that was replaced
        shutil.rmtree(run.folder, ignore_errors=True)
        self._writer: Any = FabricLogger(run.folder.parent, name="", version=run.folder.name)
        self._writer.experiment  # noqa: B018  (Fabric looks for other files when it is made)
        write_text(run.folder / CONFIG, json.dumps(dict(run.config), indent=1, default=str) + "\n")
        for row in rows:
            step = int(row.pop("step"))
            self._writer.log_metrics(row, step)
        self._writer.save()
        shutil.rmtree(before, ignore_errors=True)
        return run.name

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append a row."""
        self._writer.log_metrics(dict(values), step)
        self._writer.save()

    def finish(self, *, failed: bool) -> None:  # noqa: ARG002
        """Write what is buffered."""
        self._writer.finalize("finished")


def _kept(run: LoggedRun, before: Path) -> list[dict[str, Any]]:
    """Return the rows up to the state, and put the folder aside until they are written again.

    Fabric removes the file when it opens one, and a process may be killed at any moment.
    """
    if run.folder.is_dir() and not before.is_dir():
        run.folder.rename(before)
    return _rows_until(before / METRICS, run.step)


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    # the last row of a killed process may be a part of one
    return [row for row in rows if "step" in row and int(row["step"]) <= step]
