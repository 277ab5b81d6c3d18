"""The monitored value: it decides which epoch is the best, and when to stop."""

from __future__ import annotations

import logging
import math

from molfun.errors import ConfigError
from molfun.strategies.base import FinetuneStrategy
from molfun.text import unknown_name
from molfun.training.history import Row, monitored
from molfun.training.runner import Runner

logger = logging.getLogger(__name__)


class Monitor:
    """The value that a strategy watches, of one model.

    Parameters
    ----------
    strategy
        Names the value, and what depends on it.
    runner
        The model, which knows its metrics.

    Raises
    ------
    ConfigError
        If the model has no such metric.
    """

    def __init__(self, strategy: FinetuneStrategy, runner: Runner) -> None:
        self.name, self._strategy = strategy.monitor, strategy
        known = ["val/loss", *(f"val/{metric}" for metric in runner.metric_names)]
        if self.name not in known:
            raise ConfigError(unknown_name("monitor", self.name, known))
        self.higher_is_better = self.name.removeprefix("val/") in runner.higher_is_better

    def need_validation(self) -> None:
        """Refuse settings that need a validation set; called where there is none.

        Raises
        ------
        ConfigError
            Naming them.
        """
        problems = []
        if self._strategy.early_stopping_patience:
            problems.append("early_stopping_patience needs a val_loader: early stopping watches")
        if self._strategy.scheduler == "plateau":
            problems.append("The scheduler plateau needs a val_loader: it watches")
        if problems:
            raise ConfigError(" ".join(f"{text} {self.name}." for text in problems))

    def value(self, row: Row) -> float:
        """The value in a row of the history; NaN where it is undefined."""
        return monitored(row, self.name)

    def score(self, row: Row) -> float:
        """The value, negated where the largest is the best; NaN wins no comparison."""
        return self.value(row) * (-1 if self.higher_is_better else 1)

    def warn_undefined(self, row: Row) -> None:
        """Say that what should decide the best epoch has no value."""
        if math.isnan(self.value(row)):
            logger.warning(
                "%s is undefined on this validation set (too few samples, or all alike), so no "
                "epoch can be the best by it; the last weights are kept.",
                self.name,
            )
