"""Callbacks of a fit, for progress bars, log files and experiment trackers."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from molfun._io import disk_errors
from molfun._paths import as_path
from molfun.data.cells import escape
from molfun.errors import RunError
from molfun.training.history import History, Row


@dataclass(frozen=True)
class FitPlan:
    """Size of a fit, known before it starts.

    Parameters
    ----------
    epochs
        Number of epochs.
    batches_per_epoch
        Batches of the training set.
    steps_per_epoch
        Optimizer steps: ``ceil(batches / accumulation_steps)``.
    total_steps
        Optimizer steps of the whole fit.
    done_steps
        Optimizer steps that a resumed fit took before.
    """

    epochs: int
    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    done_steps: int = 0

    @classmethod
    def of(
        cls,
        n_batches: int,
        n_own: int,
        *,
        per_step: int,
        epochs: int | None,
        max_steps: int | None,
    ) -> Self:
        """Return the plan of a fit that ends at the first of two limits.

        Parameters
        ----------
        n_batches, n_own
            Batches per epoch, over all processes and in this one.
        per_step
            Batches per optimizer step, over all processes.
        epochs, max_steps
            Limits in epochs and in optimizer steps; at least one is given.

        Examples
        --------
        >>> FitPlan.of(10, 10, per_step=4, epochs=2, max_steps=None).total_steps
        6
        """
        per_epoch = math.ceil(n_batches / per_step)
        limits = [max_steps, None if epochs is None else epochs * per_epoch]
        total = min(limit for limit in limits if limit is not None)
        return cls(
            epochs=math.ceil(total / per_epoch),
            batches_per_epoch=n_own,
            steps_per_epoch=per_epoch,
            total_steps=total,
        )


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Figures of one optimizer step.

    Parameters
    ----------
    epoch
        Epoch, counted from 1.
    step
        Optimizer steps so far, this one included; a skipped step is not counted.
    loss
        Mean loss per label of its batches with a finite loss; NaN without labels.
    rates
        Learning rate of the next step, by group of parameters.
    grad_norm
        Norm of the gradient before clipping; NaN if there was none.
    skipped
        Steps of the run that were skipped so far, since a loss or gradient was not finite.
    n_samples
        Samples in its batches, over all processes.
    seconds
        Time that it took, with loading its batches and without callbacks.
    """

    epoch: int
    step: int
    loss: float
    rates: Mapping[str, float]
    grad_norm: float
    skipped: int
    n_samples: int
    seconds: float


class Callback:
    """Base class of callbacks; every method does nothing unless it is overridden."""

    def before_fit(self, plan: FitPlan) -> None:
        """Run before a run writes or removes anything: an error here leaves an older run whole."""

    def on_fit_start(self, plan: FitPlan, history: History) -> None:
        """Run once before the first batch; `history` holds the rows of a resumed run."""

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        """Run after each training batch; `batch` counts from 1, `loss` is the mean of the batch."""

    def on_step_end(self, report: StepReport) -> None:
        """Run after each optimizer step, also a skipped one."""

    def on_validation_start(self, n_batches: int) -> None:
        """Run before the model is validated."""

    def on_epoch_end(self, row: Row, improved: bool) -> None:
        """Run after validation, with the new row of the history."""

    def on_fit_end(self, history: History) -> None:
        """Run after the last epoch, with the best weights loaded; not run after an error."""


class CSVLog(Callback):
    """Write the history to a CSV file, one row per epoch, as soon as the epoch ends.

    Parameters
    ----------
    path
        File to write; the rows of a resumed run are written again from its state.

    Raises
    ------
    RunError
        At the start of a fit, if the file exists and is not a history.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = as_path(path)
        self._columns: list[str] | None = None

    def on_fit_start(self, plan: FitPlan, history: History) -> None:  # noqa: ARG002
        """Replace the file by the rows known so far.

        A run killed after it wrote a row and before it wrote its state trains that epoch again;
        appending would leave the row twice.
        """
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_other_files()
            self._path.unlink(missing_ok=True)
        self._columns = None
        for row in history:
            self._append(row)

    def _refuse_other_files(self) -> None:
        """Refuse to replace a file that is not a history."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            start = file.read(6)
        if start not in (b"", b"epoch,"):
            raise RunError(
                f"{self._path} is not a history of a fit, and the fit would replace it. "
                f"Choose another name."
            )

    def on_epoch_end(self, row: Row, improved: bool) -> None:  # noqa: ARG002
        """Append the row to the file."""
        self._append(row)

    def _append(self, row: Mapping[str, Any]) -> None:
        with disk_errors(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            if self._columns is None:
                # the first row fixes the columns, so that every line of the file has the same
                self._columns = list(row)
                # spreadsheet programs run cells that begin with "=", and names may be a user's
                csv.writer(file).writerow(map(escape, self._columns))
            csv.writer(file).writerow([row.get(name, "") for name in self._columns])
