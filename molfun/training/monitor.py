"""Monitor the value that decides which epoch is the best and when to stop early."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from molfun.errors import ConfigError
from molfun.strategies.base import FinetuneStrategy
from molfun.text import unknown_name
from molfun.training.history import Row, monitored
from molfun.training.runner import Runner

logger = logging.getLogger(__name__)


def check_monitor(name: str, metrics: Iterable[str]) -> None:
    """Refuse a value that no row of the history will have.

    Raises
    ------
    ConfigError
        With the names that there are.

    Examples
    --------
    >>> check_monitor("val/rmse", ["rmse", "spearman"])
    """
    known = ["val/loss", *(f"val/{metric}" for metric in metrics)]
    if name not in known:
        raise ConfigError(unknown_name("monitor", name, known))


class Monitor:
    """Reader of the value that a strategy monitors.

    Parameters
    ----------
    strategy
        Strategy whose ``monitor`` names the value.
    runner
        Runner of the model, which lists its metrics.

    Raises
    ------
    ConfigError
        If the model has no such metric.
    """

    def __init__(self, strategy: FinetuneStrategy, runner: Runner) -> None:
        self.name, self._strategy = strategy.monitor, strategy
        # the task's metrics are known before the first epoch, so a misspelt name ends no run late
        check_monitor(self.name, runner.metric_names)
        self.higher_is_better = self.name.removeprefix("val/") in runner.higher_is_better

    def need_validation(self) -> None:
        """Refuse settings that need a validation set; call it if there is none.

        Raises
        ------
        ConfigError
            Naming these settings.
        """
        problems = []
        if self._strategy.early_stopping_patience:
            problems.append("early_stopping_patience needs a val_loader: early stopping watches")
        if self._strategy.scheduler == "plateau":
            problems.append("The scheduler plateau needs a val_loader: it watches")
        if problems:
            raise ConfigError(" ".join(f"{text} {self.name}." for text in problems))

    def value(self, row: Row) -> float:
        """Return the value in a row of the history; NaN if it is undefined."""
        return monitored(row, self.name)

    def score(self, row: Row) -> float:
        """Return the value with the sign that makes smaller better; NaN wins no comparison."""
        return self.value(row) * (-1 if self.higher_is_better else 1)

    def warn_undefined(self, row: Row) -> None:
        """Warn if the monitored value is undefined, so that no epoch can be the best."""
        if math.isnan(self.value(row)):
            logger.warning(
                "%s is undefined on this validation set (too few samples, or all equal), so no "
                "epoch can be the best by it; the last weights are kept.",
                self.name,
            )
