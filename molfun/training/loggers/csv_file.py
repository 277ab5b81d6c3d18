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

        path = run.folder / METRICS
        rows = _rows_until(path, run.step) if run.id else []
        # Fabric warns of a folder that is there, and then removes the file as well
        shutil.rmtree(run.folder, ignore_errors=True)
        self._writer: Any = FabricLogger(run.folder.parent, name="", version=run.folder.name)
        self._writer.experiment  # noqa: B018  (Fabric looks for other files when it is made)
        write_text(run.folder / CONFIG, json.dumps(dict(run.config), indent=1, default=str) + "\n")
        for row in rows:
            step = int(row.pop("step"))
            self._writer.log_metrics(row, step)
        return run.name

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append a row."""
        self._writer.log_metrics(dict(values), step)
        self._writer.save()

    def finish(self, *, failed: bool) -> None:  # noqa: ARG002
        """Write what is buffered."""
        self._writer.finalize("finished")


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if int(row["step"]) <= step]
