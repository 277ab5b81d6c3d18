"""Read the folder of a finished run: settings, history, evaluation, log and predictions."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from molfun._paths import as_path
from molfun.config import read_yaml
from molfun.data.cells import read_cells
from molfun.errors import ConfigError, MolfunError, RunError
from molfun.registry import OBJECTIVES, TASKS
from molfun.report.predicted import HeadOfRun, Predicted, read_predicted
from molfun.runs import provenance
from molfun.runs.checkpoint import META_JSON
from molfun.runs.folder import ATTRIBUTIONS, CV_SUMMARY, LOG, OUT_OF_FOLD, SPLITS, RunFolder
from molfun.runs.noted import is_noted
from molfun.structures.files import NOTE
from molfun.training.history import History

PARTS = ("test", "out_of_fold", "val")
"""Parts with predictions, the more telling one first."""
_FILES = {part: f"predictions_{part}.csv" for part in PARTS} | {"out_of_fold": OUT_OF_FOLD}
_RECORD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} (\w+) ([\w.]+): (.*)")
"""First line of a record in ``run.log``: time, level, logger and text."""


@dataclass(frozen=True)
class LogRecord:
    """One record of ``run.log``."""

    time: str
    level: str
    logger: str
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Message, with its lines joined."""
        return "\n".join(self.lines)


class FinishedRun:
    """Files of a finished run, read; every part but the history may be missing.

    Parameters
    ----------
    path
        Folder of the run.

    Raises
    ------
    RunError
        If the folder holds neither a history nor a checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder(path)
        self.path = as_path(path)
        # a model of a cross-validation is as good as another to say what was trained
        self._trained = RunFolder(self.path / self._first_fold) if self.folds else self.folder
        if not (self._trained.history.is_file() or self._trained.checkpoint.is_dir()):
            if (self.path / NOTE).is_file():
                raise RunError(
                    f"{path} holds structures of a fold that has not ended. Repeat its command, "
                    f"which goes on, and then make the report."
                )
            if is_noted(self.path):
                raise RunError(
                    f"{path} holds structures of a prediction that has not ended. Repeat its "
                    f"command with --overwrite, and then make the report."
                )
            raise RunError(
                f"{path} is no folder of a run: it holds neither history.csv nor checkpoint/. "
                f"Give the folder that --output named."
            )

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @cached_property
    def folds(self) -> dict[str, Any]:
        """Rows and metrics of the folds of a cross-validation; empty for a single run."""
        return _json(self.path / CV_SUMMARY)

    @property
    def _first_fold(self) -> str:
        rows = self.folds.get("folds") or [{}]
        return Path(str(rows[0].get("fold", ""))).name

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings of the command; empty for a run of `MolfunStructureModel.fit`."""
        try:
            return read_yaml(self.folder.config) if self.folder.config.is_file() else {}
        except ConfigError:
            return {}

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Description in the checkpoint; empty for a pre-training run."""
        return _json(self._trained.checkpoint / META_JSON)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Versions, files and machine, as `molfun.runs.provenance` wrote them."""
        own = provenance.read(self.path)
        if self.folds:
            own.setdefault("model", provenance.read(self._trained.path).get("model", {}))
        return own

    @cached_property
    def evaluation(self) -> dict[str, dict[str, Any]]:
        """Verdict, intervals and baselines by head; empty for a run of an older version."""
        content = _json(self.path / "evaluation.json")
        found = content.get("heads", {"": content} if content else {})
        return {name: one for name, one in found.items() if isinstance(one, dict)}

    @property
    def objective(self) -> str | None:
        """Objective of a pre-training run; None for a run that learned from labels."""
        return None if self.meta else self.config.get("objective")

    @cached_property
    def reconstructions(self) -> list[dict[str, str]]:
        """Rows of ``reconstructions.csv``, as texts; empty where there is none."""
        return _cells(self.folder.reconstructions)

    @cached_property
    def attributions(self) -> dict[str, np.ndarray]:
        """Contributions of residues by id, of the samples in ``attributions.csv``."""
        found: dict[str, list[float]] = {}
        for row in _cells(self.path / ATTRIBUTIONS):
            found.setdefault(row.get("id", ""), []).append(_number(row.get("attribution")))
        return {name: np.array(values) for name, values in found.items()}

    @cached_property
    def history(self) -> History:
        """One row per epoch."""
        history = History(_rows(self.folder.history))
        strategy = self.meta.get("strategy") or {}
        history.monitor = strategy.get("monitor", "val/loss")
        if self.objective in OBJECTIVES and not OBJECTIVES[str(self.objective)].ranks_epochs:
            history.monitor = ""  # no row has it, so that the last one is the best
        metric = history.monitor.rpartition("/")[2]
        history.higher_is_better = any(
            metric in TASKS[head.task].higher_is_better for head in self.heads if head.task in TASKS
        )
        return history

    @cached_property
    def heads(self) -> list[HeadOfRun]:
        """Heads in the order of the checkpoint."""
        if not self.meta:
            return []
        data = self.meta.get("data", {})
        several = self.meta.get("heads") or [self.meta]
        return [_head(one, data.get("heads", {}).get(one.get("name"), data)) for one in several]

    @cached_property
    def splits(self) -> dict[str, int]:
        """Number of samples by part."""
        return dict(Counter(row["split"] for row in _cells(self.path / SPLITS)))

    def ids_of(self, part: str) -> list[str]:
        """Ids of the samples of a part; none where the run has no ``splits.csv``."""
        rows = _cells(self.path / SPLITS)
        return [next(iter(row.values()), "") for row in rows if row.get("split") == part]

    @cached_property
    def log(self) -> list[LogRecord]:
        """Records of ``run.log``."""
        path = self.path / LOG
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        records: list[LogRecord] = []
        for line in text.splitlines():
            found = _RECORD.fullmatch(line)
            if found:
                time, level, logger, first = found.groups()
                records.append(LogRecord(time, level, logger, [first]))
            elif records:
                records[-1].lines.append(line)
        since = self.provenance.get("log_from", "")
        return [record for record in records if record.time >= since]

    @cached_property
    def _tables(self) -> dict[str, list[dict[str, str]]]:
        return {part: _cells(self.path / name) for part, name in _FILES.items()}

    def predicted(self, head: HeadOfRun, part: str) -> Predicted | None:
        """Return labels and predictions of a part; None where there are none."""
        rows = self._tables.get(part)
        return read_predicted(rows, head) if rows else None

    def judged(self, head: HeadOfRun) -> tuple[str, Predicted] | None:
        """Return the first part with predictions, test before validation, and these."""
        for part in PARTS:
            found = self.predicted(head, part)
            if found is not None:
                return part, found
        return None

    def judged_first(self) -> tuple[str, Predicted] | None:
        """Return `judged` of the first head; None where it cannot be compared with labels."""
        judged = self.judged(self.heads[0]) if self.heads else None
        if judged is None or judged[1].form == "other" or not judged[1].known.any():
            return None
        return judged


def _head(meta: Mapping[str, Any], data: Mapping[str, Any]) -> HeadOfRun:
    task = meta.get("task", {})
    classes = task.get("state", {}).get("classes") or task.get("config", {}).get("classes") or ()
    name = meta.get("name", "")
    energy = meta.get("head", {}).get("config", {}).get("target")
    kind = str(task.get("name", ""))
    # the label of a structure has no column
    whole = "structures" if kind in TASKS and TASKS[kind].labels_from_structure else ""
    return HeadOfRun(
        name=name,
        task=kind,
        level=task.get("config", {}).get("level") or "sequence",
        target=whole or joined_names(data.get("target_column")) or name or energy or "target",
        classes=tuple(map(str, classes)),
        settings=task.get("config", {}),
    )


def joined_names(columns: str | Sequence[str] | None) -> str:
    """Return the name of a column, or those of several with commas.

    Examples
    --------
    >>> joined_names("kd"), joined_names(["kd", "kon"]), joined_names(None)
    ('kd', 'kd, kon', '')
    """
    return columns if isinstance(columns, str) else ", ".join(columns or ())


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a history as numbers."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: _number(v) for k, v in row.items() if k} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row.get("epoch", 0))} for row in rows]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _cells(path: Path) -> list[dict[str, str]]:
    """Read a table that a run wrote, as texts; empty if there is none that can be read."""
    try:
        cells = read_cells(path, "id")
    except MolfunError:
        return []
    # a user may have edited the table: a row with fewer cells still has its first ones
    return [dict(zip(cells.header, row, strict=False)) for row in cells.rows]
