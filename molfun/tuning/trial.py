"""One trial, as its objective sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from molfun.training.cache import CacheConfig
from molfun.training.callbacks import Callback
from molfun.training.history import Row, monitored


class Trial(Callback):
    """Settings that were drawn, and the callback that reports the epochs of a fit.

    Pass it to a fit (``callbacks=[trial]``): after each epoch the monitored value is noted, and a
    trial without prospects ends. An objective that is not one fit calls `report` itself.

    Parameters
    ----------
    number
        Number of the trial, from 0.
    settings
        Values by name; ``trial["lr"]`` is one of them.
    cache
        Where outputs of frozen parts are kept, for all trials of the study: pass it to the fit.
    monitor
        What is monitored.
    note
        Function that notes a value under a number of steps, and ends a trial without prospects.
    """

    def __init__(
        self,
        number: int,
        settings: Mapping[str, Any],
        *,
        cache: CacheConfig,
        monitor: str,
        note: Callable[[float, int], None],
    ) -> None:
        self.number, self.settings, self.cache = number, dict(settings), cache
        self._monitor, self._note = monitor, note

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def report(self, value: float, step: int) -> None:
        """Note an intermediate value, such as that of an epoch.

        Parameters
        ----------
        value
            The value; NaN where it is undefined.
        step
            Number of the epoch or fold, from 1.

        Raises
        ------
        optuna.TrialPruned
            If the trial is worse than half of the others were at this step, and trials are pruned.
        """
        self._note(float(value), step)

    def on_epoch_end(self, row: Row, improved: bool) -> None:  # noqa: ARG002
        """Report the monitored value of the epoch."""
        self.report(monitored(row, self._monitor), int(row["epoch"]))
