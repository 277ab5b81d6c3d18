"""Several numbers per sample from one head, each in units of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molfun.errors import ConfigError
from molfun.tasks.chosen_loss import LossChoice
from molfun.tasks.regression import RegressionTask

_HIGHER = ("pearson", "spearman", "r2")


class MultiTargetTask(RegressionTask):
    """Predict several properties of a sample, trained by one head on their standardised values.

    Each property has a mean, a deviation and metrics of its own (``kd/rmse``); a label of which
    only some are measured counts with these. `spearman`, `pearson` and `r2` without a name are
    means over the properties. Properties with little in common are better learned by a head each.

    Parameters
    ----------
    targets
        Names of the properties, in the order of the numbers of a label.
    loss, loss_config, standardize
        As in `RegressionTask`; losses that rank are for one number.

    Raises
    ------
    ConfigError
        If there are fewer than two names, or one twice.

    Examples
    --------
    >>> task = MultiTargetTask(targets=["kd", "tm"])
    >>> task.fit_targets([[8.0, 50.0], [6.0, math.nan], [7.0, 70.0]])
    >>> task.mean.tolist(), task.std.round(2).tolist()
    ([7.0, 60.0], [0.82, 10.0])
    """

    name = "multitarget"

    def __init__(
        self,
        *,
        targets: Sequence[str],
        loss: LossChoice = "mse",
        loss_config: Mapping[str, Any] | None = None,
        standardize: bool = True,
    ) -> None:
        names = [] if isinstance(targets, str) else [str(name) for name in targets]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(
                f"targets must name two properties or more, each once; got {targets!r}."
            )
        super().__init__(
            loss=loss, loss_config=loss_config, standardize=standardize, shape=(len(names),)
        )
        self.targets = names
        self._config = {**self._config, "targets": names}
        del self._config["shape"], self._config["level"]
        self.higher_is_better = frozenset(
            f"{name}{metric}" for name in ("", *(f"{one}/" for one in names)) for metric in _HIGHER
        )

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Take mean and deviation of each property, the first time only.

        Raises
        ------
        DataError
            If no label is present.
        """
        first = not self.fitted
        super().fit_targets(targets)
        if first and self._config["standardize"]:
            rows = np.stack([self.numbers(target) for target in targets])
            # a constant property has no scale; 1 keeps the units
            self.std = np.array([_deviation(column) or 1.0 for column in rows.T])

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return the metrics of each property, and means over the properties that have them."""
        single = RegressionTask()
        each = {
            name: single.metrics(predictions[:, k], targets[:, k])
            for k, name in enumerate(self.targets)
        }
        means = {metric: _mean([found[metric] for found in each.values()]) for metric in _HIGHER}
        return means | {f"{n}/{m}": v for n, found in each.items() for m, v in found.items()}

    def metric(self, name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Return one metric."""
        return self.metrics(predictions, targets)[name]

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction`` (samples, properties), and their names as ``targets``."""
        return {**super().present(predictions), "targets": list(self.targets)}


def _deviation(column: np.ndarray) -> float:
    there = column[np.isfinite(column)]
    return float(there.std()) if there.size else 0.0


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan
