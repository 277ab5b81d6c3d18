"""`Logger`, the base of experiment trackers: it collects the values, a subclass sends them."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from molfun._io import write_text
from molfun.config import flattened
from molfun.errors import ConfigError, MolfunError, RunError
from molfun.runs.folder import LOGGERS, LOGS, RunFolder
from molfun.strict import must_set, wrong_counts
from molfun.text import first_line
from molfun.training.callbacks import Callback, FitPlan, StepReport
from molfun.training.history import History, Row
from molfun.training.loggers.results import final_metrics

logger = logging.getLogger(__name__)

EVERY = 10
"""Default number of optimizer steps from one logged step to the next."""
FILES = ("report.html",)
"""Files of the run folder that are attached at the end, if they are there."""
_NAMES = {"train_loss": "train/epoch_loss", "val_loss": "val/loss"}
"""Names in trackers of columns of a history; others keep theirs."""
_LEFT_OUT = ("lr", "steps")
"""Columns that steps have already, as the rate of each group and as their number."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The run that a logger starts or continues.

    Parameters
    ----------
    name
        Name to show: that of the run folder.
    folder
        Folder for files of this logger, which it may create.
    config
        Settings of the run with flat names, as plain values.
    id
        Id of the tracker's run that is continued, as `Logger.start` returned it; None starts one.
    step
        Optimizer steps that were done before.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    id: str | None
    step: int


class Logger(Callback, ABC):
    """Base of experiment trackers.

    As a context manager it stays open after `fit`, until the end of the block, so that a report
    that is written in between is attached.

    Parameters
    ----------
    every
        Optimizer steps from one logged step to the next; the first is logged, too.

    Raises
    ------
    MissingDependencyError
        If the package of the tracker is not installed; the text has the line that installs it.

    Attributes
    ----------
    settings
        Function that returns further settings to send, asked when the run starts; those of a
        command, with values that are resolved.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        must_set(cls, "logger", {"name": "Registered name."})

    def __init__(self, *, every: int = EVERY) -> None:
        problems = wrong_counts(every=every)
        if problems:
            raise ConfigError(f"The logger {self.name}: {' '.join(problems)}")
        self.every = every
        self.settings: Callable[[], Mapping[str, Any]] = dict
        self._folder: RunFolder | None = None
        self._config: Mapping[str, Any] = {}
        self._is_held = self._is_open = self._is_stopped = False
        self._step = self._n_skipped = 0
        self._n_samples, self._seconds = 0, 0.0
        self._last: StepReport | None = None

    # --- what a tracker does -------------------------------------------------------------------

    @abstractmethod
    def start(self, run: LoggedRun) -> str:
        """Start or continue the tracker's run, send the settings, and return its id."""

    @abstractmethod
    def write(self, values: Mapping[str, float], step: int) -> None:
        """Send finite values at an optimizer step."""

    def write_file(self, path: Path) -> None:
        """Attach a file to the run; trackers without attachments leave it out."""

    @abstractmethod
    def finish(self, *, failed: bool) -> None:
        """Send what is buffered and close the tracker's run."""

    # --- its place in a run --------------------------------------------------------------------

    def join(self, folder: RunFolder | None, config: Mapping[str, Any]) -> None:
        """Take the folder and the settings of the fit that begins.

        Raises
        ------
        ConfigError
            Without a folder.
        """
        if folder is None:
            raise ConfigError(
                f"The logger {self.name} needs output_dir, the folder that keeps the id of its run."
            )
        self._folder, self._config = folder, config

    def __enter__(self) -> Self:
        self._is_held = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._is_held = False
        self.end(failed=kind is not None)

    def begin(self, plan: FitPlan, run_id: str | None) -> str:
        """Start or continue the run of the tracker, and return its id.

        Raises
        ------
        RunError
            If the tracker refuses.
        """
        assert self._folder is not None
        run = LoggedRun(
            name=self._folder.path.absolute().name,
            folder=self._folder.path / LOGS / self.name,
            config=flattened({**self._config, **self.settings()}),
            id=run_id,
            step=plan.done_steps,
        )
        try:
            found = self.start(run)
        except MolfunError:
            raise
        except Exception as error:  # any package may raise anything; the run has not begun
            raise RunError(
                f"The logger {self.name} cannot start: {type(error).__name__}: "
                f"{first_line(error)}. Leave it out, or set it up."
            ) from error
        self._is_open, self._is_stopped, self._step = True, False, plan.done_steps
        self._begin_epoch()
        return found

    def end(self, *, failed: bool) -> None:
        """Attach files and close, unless a ``with`` block keeps the logger open."""
        if self._is_held or not self._is_open:
            return
        assert self._folder is not None
        for path in (self._folder.path / name for name in FILES):
            if path.is_file() and not failed:
                self._try(self.write_file, path)
        if not failed:
            self._send(final_metrics(self._folder.path), self._step)
        self._close(failed=failed or self._is_stopped)

    def _close(self, *, failed: bool) -> None:
        """Close the run of the tracker, also of one that stopped: it must not seem to go on."""
        self._is_open = False
        try:
            self.finish(failed=failed)
        except Exception as error:  # any package may raise anything
            logger.warning(
                "The logger %s cannot close its run: %s: %s.",
                self.name, type(error).__name__, first_line(error),
            )  # fmt: skip

    def give_up(self) -> None:
        """Close the tracker's run as failed, if it is open: another tracker refused."""
        if self._is_open:
            self._close(failed=True)

    # --- hooks ---------------------------------------------------------------------------------

    def on_step_end(self, report: StepReport) -> None:
        """Log loss, gradient norm and rates of every `every`-th step, and of each skipped one."""
        newly_skipped = report.skipped > self._n_skipped
        self._step, self._last, self._n_skipped = report.step, report, report.skipped
        self._n_samples += report.n_samples
        self._seconds += report.seconds
        if report.step == 1 or report.step % self.every == 0 or newly_skipped:
            self._send(step_values(report), report.step)

    def on_epoch_end(self, row: Row, improved: bool) -> None:  # noqa: ARG002
        """Log the row of the history, samples per second of training, and peak memory."""
        shown = {name: value for name, value in row.items() if name not in _LEFT_OUT}
        values = {_NAMES.get(name, name): float(value) for name, value in shown.items()}
        if self._seconds > 0:
            values["samples_per_second"] = self._n_samples / self._seconds
        if self._last is not None:
            values |= step_values(self._last)
        values["peak_memory_gb"] = peak_memory_gb()
        self._send(values, self._step)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._n_samples, self._seconds, self._last = 0, 0.0, None

    # --- sending -------------------------------------------------------------------------------

    def _send(self, values: Mapping[str, float], step: int) -> None:
        # NaN is what a metric without labels gives; a database may store it as 0 or refuse it
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if finite and self._is_open:
            self._try(self.write, finite, step)

    def _try(self, action: Any, *arguments: Any) -> None:
        """Run an action of the tracker; if it fails, say so and go on without the tracker."""
        if self._is_stopped:
            return
        try:
            action(*arguments)
        except Exception as error:  # a tracker that is down must not end days of training
            self._is_stopped = True
            logger.warning(
                "The logger %s stops: %s: %s. The run goes on, and history.csv has its rows.",
                self.name, type(error).__name__, first_line(error),
            )  # fmt: skip


def step_values(report: StepReport) -> dict[str, float]:
    """Return the values of a step by their names in trackers.

    Examples
    --------
    >>> report = StepReport(epoch=1, step=3, loss=0.5, rates={"head": 0.1}, grad_norm=2.0,
    ...                     skipped=0, n_samples=8, seconds=0.1)
    >>> step_values(report)
    {'epoch': 1, 'train/loss': 0.5, 'grad_norm': 2.0, 'skipped': 0, 'lr/head': 0.1}
    """
    rates = {f"lr/{name}": rate for name, rate in report.rates.items()}
    return {
        "epoch": report.epoch,
        "train/loss": report.loss,
        "grad_norm": report.grad_norm,
        "skipped": report.skipped,
        **rates,
    }


def peak_memory_gb() -> float:
    """Return the largest memory taken so far: on GPUs by tensors, else by the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
        return max(peaks) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage gives bytes there, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def joined(
    loggers: Sequence[Logger], folder: RunFolder | None, config: Mapping[str, Any]
) -> list[Callback]:
    """Give loggers the folder and the settings of a fit, and return its callbacks for them.

    Raises
    ------
    ConfigError
        If there are loggers and no folder.
    """
    for one in loggers:
        one.join(folder, config)
    return [] if folder is None or not loggers else [_Starts(folder, loggers), *loggers]


@contextlib.contextmanager
def ended(loggers: Sequence[Logger]) -> Iterator[None]:
    """Close loggers at the end of a ``with`` block, as failed after an error or a signal."""
    try:
        yield
    except BaseException:  # also Ctrl-C and signals: a tracker must not show a run that goes on
        for one in loggers:
            one.end(failed=True)
        raise
    for one in loggers:
        one.end(failed=False)


class _Starts(Callback):
    """Start the loggers before anything of a replaced run is removed; if one refuses, none is."""

    def __init__(self, folder: RunFolder, loggers: Sequence[Logger]) -> None:
        self._folder, self._loggers = folder, loggers
        self._ids: dict[str, str] = {}
        self._aside: dict[Path, Path] = {}

    def before_fit(self, plan: FitPlan) -> None:
        known = read_ids(self._folder)
        if not self._folder.resume:
            self._set_aside(known)
            known = {}
        try:
            found = {one.name: one.begin(plan, known.get(one.name)) for one in self._loggers}
        except BaseException:  # also Ctrl-C while a tracker waits for its server
            self._restore()
            raise
        self._ids = {**known, **found}

    def on_fit_start(self, plan: FitPlan, history: History) -> None:  # noqa: ARG002
        for place in self._aside.values():
            shutil.rmtree(place, ignore_errors=True)
        write_ids(self._folder, self._ids)

    def _set_aside(self, names: Iterable[str]) -> None:
        """Move the logs of the replaced run out of the way of the new ones."""
        # a folder of logs that no run of Molfun listed is a user's own, and stays
        for place in (self._folder.path / LOGS / name for name in names):
            aside = place.with_name(f".{place.name}.replaced")
            shutil.rmtree(aside, ignore_errors=True)  # of a process killed in between
            if place.is_dir():
                place.rename(aside)
                self._aside[place] = aside

    def _restore(self) -> None:
        for one in self._loggers:
            one.give_up()
        for place, aside in self._aside.items():
            shutil.rmtree(place, ignore_errors=True)
            aside.rename(place)


def read_ids(folder: RunFolder) -> dict[str, str]:
    """Return the ids of the trackers' runs, by the name of the logger.

    Raises
    ------
    RunError
        If the file is damaged.
    """
    path = folder.path / LOGGERS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # names become names of folders, and such a file may come with a folder from elsewhere
        return {n: str(run) for n, run in found["runs"].items() if n.isidentifier()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} does not name the runs of the loggers ({first_line(error)}). Remove it to "
            f"start new ones."
        ) from error


def write_ids(folder: RunFolder, ids: Mapping[str, str]) -> None:
    """Write ``loggers.json``."""
    write_text(folder.path / LOGGERS, json.dumps({"format": 1, "runs": dict(ids)}, indent=1) + "\n")
