"""What a study has found, as read from its folder.

::

    output/
      study.json      what the study is of; a process that joins it must have the same
      journal.log     its trials (optuna's journal, which optuna-dashboard shows as well)
      claims.lock     which process runs which trial
      cache/          outputs of frozen parts of the backbone, shared by all trials
      trials.csv      a row per trial
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molfun._io import write_text
from molfun._lazy import require
from molfun._paths import as_path
from molfun.data.cells import escape
from molfun.errors import RunError
from molfun.tuning.space import Space, label_of

if TYPE_CHECKING:
    import pandas as pd

STUDY, JOURNAL, CLAIMS, TRIALS = "study.json", "journal.log", "claims.lock", "trials.csv"
INSTALL = "pip install 'molfun[tune]'"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
FEWEST = 5
"""Complete trials from which importances are computed."""


def need_optuna() -> None:
    """Refuse to go on without optuna.

    Raises
    ------
    MissingDependencyError
        With the line that installs it.
    """
    require("optuna", INSTALL)


@dataclass(frozen=True)
class FinishedTrial:
    """A trial of a study.

    Parameters
    ----------
    number
        Number, from 0.
    state
        ``"complete"``, ``"pruned"``, ``"failed"`` or ``"running"``.
    value
        Best monitored value; NaN unless it is complete or pruned.
    settings
        What was drawn.
    reported
        Intermediate values by epoch, or fold.
    keys
        Names of the draws in the study, with their values.
    seconds
        Time that it took; NaN while it runs.
    error
        First line of what ended a failed trial.
    """

    number: int
    state: str
    value: float
    settings: Mapping[str, Any]
    reported: Mapping[int, float]
    keys: Mapping[str, Any]
    seconds: float
    error: str = ""


class StudyResults:
    """Trials of a study.

    Parameters
    ----------
    path
        Folder of the study.

    Raises
    ------
    RunError
        If it holds no study, or a damaged one.
    MissingDependencyError
        Without optuna.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)
        about = read_about(self.path)
        if about is None:
            raise RunError(f"{path} holds no study: {STUDY} is missing.")
        self.about = about

    @cached_property
    def optuna(self) -> Any:
        """The study as an ``optuna.Study``, for optuna's own tools; look, and change nothing."""
        need_optuna()
        from molfun.tuning import storage

        names = ("direction", "sampler", "seed")
        return storage.open_study(self.path / JOURNAL, **{n: self.about[n] for n in names})

    @property
    def space(self) -> Space:
        """What trials draw."""
        return Space.of(self.about["space"], source=STUDY)

    @property
    def monitor(self) -> str:
        """Name of the value."""
        return str(self.about["monitor"])

    @property
    def higher_is_better(self) -> bool:
        """Direction of the value."""
        return bool(self.about["direction"] == "maximize")

    @property
    def trials(self) -> list[FinishedTrial]:
        """All trials so far, by number."""
        return [self._finished(one) for one in self.optuna.get_trials(deepcopy=False)]

    def _finished(self, one: Any) -> FinishedTrial:
        settings: dict[str, Any] = {}
        # one that was killed while it drew lacks some: what is left is drawn when it runs again
        if "settings" in one.user_attrs:
            settings = dict(one.user_attrs["settings"])
        state = _STATES.get(one.state.name, "running")
        reported = dict(one.intermediate_values)
        value = math.nan
        if state == "complete":
            value = float(one.value)
        elif state == "pruned":
            known = [v for v in reported.values() if math.isfinite(v)]
            value = (max if self.higher_is_better else min)(known, default=math.nan)
        return FinishedTrial(
            number=one.number,
            state=state,
            value=value,
            settings=settings,
            reported=reported,
            keys=dict(one.params),
            seconds=float(one.user_attrs.get("seconds", math.nan)),
            error=str(one.user_attrs.get("error", "")),
        )

    @property
    def best(self) -> FinishedTrial:
        """Complete trial with the best value, the first of equal ones.

        Raises
        ------
        RunError
            If no trial is complete; the text has the error of the first that failed.
        """
        return best_of(self.trials, higher_is_better=self.higher_is_better)

    def table(self) -> pd.DataFrame:
        """Return a row per trial: number, state, value, each setting, seconds and error."""
        import pandas as pd

        found = self.trials
        columns: dict[str, list[Any]] = {
            "trial": [one.number for one in found],
            "state": [one.state for one in found],
            self.monitor: [one.value for one in found],
            **{
                name: [label_of(one.settings.get(name)) for one in found]
                for name in self.space.names()
            },
            "epochs_or_folds": [len(one.reported) for one in found],
            "seconds": [one.seconds for one in found],
            "error": [one.error for one in found],
        }
        # objects, so that a whole number stays one in a column with gaps
        return pd.DataFrame({name: pd.Series(v, dtype=object) for name, v in columns.items()})

    def write_table(self) -> Path:
        """Write ``trials.csv``, and return its path."""
        text, table = io.StringIO(), self.table()
        writer = csv.writer(text, lineterminator="\n")
        for row in [list(table), *table.to_numpy().tolist()]:
            writer.writerow([_cell(value) for value in row])
        write_text(self.path / TRIALS, text.getvalue())
        return self.path / TRIALS

    def importances(self) -> dict[str, dict[str, float]]:
        """Return how much of the values' variance each setting explains, by fANOVA.

        Settings that all complete trials drew are compared with each other (under ``""``); those
        of a choice among the trials that made it (under its name, ``"strategy=lora"``).

        References
        ----------
        Hutter, Hoos, Leyton-Brown 2014, "An efficient approach for assessing hyperparameter
        importance".
        """
        from molfun.tuning import storage

        done = [one for one in self.trials if one.state == "complete"]
        groups: dict[str, list[str]] = {}
        for key in self.space.draws():
            groups.setdefault(key.rpartition(": ")[0], []).append(key)
        found: dict[str, dict[str, float]] = {}
        for group, keys in groups.items():
            having = [one for one in done if set(keys) <= one.keys.keys()]
            varied = _varied(having, keys)
            if varied:
                found[group] = storage.importances(self.optuna, varied)
        return found


def _cell(value: Any) -> Any:
    """Return a cell of the table: no formula, and blank where there is no number."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    return escape(value) if isinstance(value, str) else value


def best_of(trials: Sequence[FinishedTrial], *, higher_is_better: bool) -> FinishedTrial:
    """Return the best complete trial; see `StudyResults.best`."""
    done = [one for one in trials if one.state == "complete"]
    if not done:
        failed = [one for one in trials if one.state == "failed"]
        if failed:
            raise RunError(
                f"No trial succeeded: {len(failed)} of {len(trials)} failed, first trial "
                f"{failed[0].number}: {failed[0].error}."
            )
        raise RunError("No trial is complete yet.")
    sign = -1 if higher_is_better else 1
    return min(done, key=lambda one: (sign * one.value, one.number))


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's study is of; None if it holds none.

    Raises
    ------
    RunError
        If its file is damaged.
    """
    path = folder / STUDY
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is damaged. Choose another output folder, or remove {folder}."
        ) from error


def _varied(trials: Sequence[FinishedTrial], keys: Sequence[str]) -> list[str]:
    """Return the settings that differ among trials, if these are enough and differ in value."""
    if len(trials) < FEWEST or len({one.value for one in trials}) == 1:
        return []
    return [key for key in keys if len({repr(one.keys[key]) for one in trials}) > 1]
