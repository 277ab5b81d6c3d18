"""Regression with an uncertainty of its own: mean and variance, or quantiles.

For labels whose noise differs from sample to sample; the uncertainty of what the model has not seen
is that of an ensemble (`molfun.models.ensemble`) or of conformal intervals.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from molfun.errors import ConfigError
from molfun.tasks.base import Level, LossSum
from molfun.tasks.regression import RegressionTask

LEAST_VARIANCE = 1e-6
"""Added to a variance, in squared deviations of the labels: the loss has no lower bound at 0."""


class _SeveralNumbers(RegressionTask):
    """Base of tasks whose head gives several numbers for each label, one of them the prediction.

    Predictions of samples, as `Task.predictions` and `Task.split` give them, have these numbers as
    a last dimension; those of other models (baselines) have the prediction alone.
    """

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the summed loss over labels that are present; 0 (with a graph) without any."""
        scaled = ((targets - self.mean) / self.std).to(outputs["prediction"].device).float()
        present = ~torch.isnan(scaled)
        raw = outputs["prediction"].float()[present]
        return LossSum(self._loss(raw, scaled[present]), int(present.sum()))

    @abstractmethod
    def _loss(self, raw: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
        """Return the sum over (labels, numbers) outputs and (labels,) labels, standardised."""

    @abstractmethod
    def _calibration(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return how well the other numbers fit the labels, all of which are present."""

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return the metrics of regression, and of the interval; NaN of baselines without one."""
        if predictions.ndim == targets.ndim:
            found = super().metrics(predictions, targets)
            blank = self._calibration(np.full((0, self.n_outputs), math.nan), targets[:0])
            return {**found, **dict.fromkeys(blank, math.nan)}
        present = np.isfinite(targets)
        found = super().metrics(self.point(predictions), targets)
        return {**found, **self._calibration(predictions[present], targets[present])}

    def metric(self, name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Return one metric."""
        point = predictions if predictions.ndim == targets.ndim else self.point(predictions)
        if name == "spearman":
            return super().metric(name, point, targets)
        return self.metrics(predictions, targets)[name]

    def _shown(
        self, predictions: Sequence[np.ndarray], columns: Mapping[str, int]
    ) -> dict[str, Any]:
        if self.level != "sequence":
            return {name: [row[..., k] for row in predictions] for name, k in columns.items()}
        rows = np.array(predictions, dtype=np.float64).reshape(len(predictions), self.n_outputs)
        return {name: torch.tensor(rows[:, k]) for name, k in columns.items()}


class GaussianTask(_SeveralNumbers):
    r"""Predict the mean and the standard deviation of a label, by Gaussian likelihood.

    The loss of a label is :math:`\frac12 (\log \sigma^2 + (y - \mu)^2 / \sigma^2)`, times
    :math:`\sigma^{2\beta}` as a constant where `beta` is above 0, so that samples with a large
    variance still move the mean.

    Parameters
    ----------
    beta
        From 0, the likelihood, to 1, where the mean learns as from squared errors.
    standardize, level
        As in `RegressionTask`.

    Raises
    ------
    ConfigError
        If a value is out of range.

    References
    ----------
    Nix and Weigend 1994, "Estimating the mean and variance of the target probability distribution";
    Seitzer et al. 2022, "On the pitfalls of heteroscedastic uncertainty estimation with
    probabilistic neural networks", ICLR, for `beta`.

    Examples
    --------
    >>> task = GaussianTask()
    >>> task.fit_targets([4.0, 6.0, 8.0])
    >>> shown = task.present([np.array([6.5, 0.4])])
    >>> {name: values.tolist() for name, values in shown.items()}
    {'prediction': [6.5], 'std': [0.4]}
    """

    name = "gaussian"

    def __init__(
        self, *, beta: float = 0.0, standardize: bool = True, level: Level = "sequence"
    ) -> None:
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta must be from 0 to 1, got {beta}.")
        super().__init__(standardize=standardize, level=level)
        self.beta = beta
        self._config = {"beta": beta, "standardize": standardize, "level": level}

    @property
    def n_outputs(self) -> int:
        """Mean and variance."""
        return 2

    def _loss(self, raw: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
        variance = functional.softplus(raw[:, 1]) + LEAST_VARIANCE
        each = functional.gaussian_nll_loss(raw[:, 0], scaled, variance, full=True,
                                            eps=LEAST_VARIANCE, reduction="none")  # fmt: skip
        if self.beta:
            each = each * variance.detach() ** self.beta
        return each.sum()

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return mean and standard deviation in the label's units, float64."""
        raw = outputs["prediction"].double()
        std = (functional.softplus(raw[..., 1]) + LEAST_VARIANCE).sqrt() * self.std
        return torch.stack([raw[..., 0] * self.std + self.mean, std], dim=-1)

    def point(self, predictions: np.ndarray) -> np.ndarray:
        """Return the means."""
        return predictions[..., 0]

    def _calibration(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        if not len(targets):
            return {"nll": math.nan}
        mean, std = predictions[:, 0], predictions[:, 1]
        each = np.log(std) + 0.5 * ((targets - mean) / std) ** 2 + 0.5 * math.log(2 * math.pi)
        return {"nll": float(each.mean())}

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction`` and ``std``: (samples,), or a list of (length,) for residues."""
        return self._shown(predictions, {"prediction": 0, "std": 1})

    def combined(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return mean and standard deviation of the mixture of several models' Gaussians."""
        mean = np.mean([p[..., 0] for p in predictions], axis=0)
        return np.stack([mean, self.deviation(predictions)], axis=-1)

    def deviation(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return the deviation of the mixture: that of the labels and that of the models."""
        rows = np.stack(predictions)
        total: np.ndarray = np.sqrt((rows[..., 1] ** 2).mean(0) + rows[..., 0].var(0))
        return total


class QuantileTask(_SeveralNumbers):
    """Predict quantiles of a label: the median, and an interval around it.

    Parameters
    ----------
    quantiles
        Increasing, between 0 and 1, with 0.5 among them; the first and the last are the interval.
    standardize, level
        As in `RegressionTask`.

    Raises
    ------
    ConfigError
        If the quantiles are no such list.

    References
    ----------
    Koenker and Bassett 1978, "Regression quantiles", Econometrica 46; quantiles that cross are
    sorted, as by Chernozhukov et al. 2010, Econometrica 78.

    Examples
    --------
    >>> task = QuantileTask()
    >>> task.fit_targets([4.0, 6.0, 8.0])
    >>> sorted(task.present([np.array([5.0, 6.5, 8.0])]))
    ['lower', 'prediction', 'upper']
    """

    name = "quantile"
    # an epoch is best by `coverage_error`, which has no wrong side
    higher_is_better = RegressionTask.higher_is_better | {"coverage"}

    def __init__(
        self,
        *,
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
        standardize: bool = True,
        level: Level = "sequence",
    ) -> None:
        inside = all(0 < q < 1 for q in quantiles)
        if not inside or 0.5 not in quantiles or any(a >= b for a, b in pairwise(quantiles)):
            raise ConfigError(
                f"quantiles must increase, between 0 and 1, with 0.5 among them; got "
                f"{list(quantiles)}."
            )
        if len(quantiles) < 3:
            raise ConfigError(
                f"quantiles must be at least 3 for an interval, got {list(quantiles)}."
            )
        super().__init__(standardize=standardize, level=level)
        self.quantiles = tuple(quantiles)
        self._config = {"quantiles": list(quantiles), "standardize": standardize, "level": level}

    @property
    def n_outputs(self) -> int:
        """Number of quantiles."""
        return len(self.quantiles)

    def _loss(self, raw: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
        above = scaled[:, None] - raw
        levels = torch.tensor(self.quantiles, device=raw.device)
        # a mean over quantiles: their number is no weight among several heads
        return torch.maximum(levels * above, (levels - 1) * above).mean(1).sum()

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the quantiles in the label's units, float64, sorted."""
        return (outputs["prediction"].double() * self.std + self.mean).sort(dim=-1).values

    @property
    def _median(self) -> int:
        return self.quantiles.index(0.5)

    def point(self, predictions: np.ndarray) -> np.ndarray:
        """Return the medians."""
        return predictions[..., self._median]

    def _calibration(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        if not len(targets):
            return dict.fromkeys(("coverage", "coverage_error", "width"), math.nan)
        lower, upper = predictions[:, 0], predictions[:, -1]
        inside = (lower <= targets) & (targets <= upper)
        covered = float(inside.mean())
        asked = self.quantiles[-1] - self.quantiles[0]
        return {
            "coverage": covered,
            "coverage_error": abs(covered - asked),
            "width": float((upper - lower).mean()),
        }

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction``, ``lower`` and ``upper``: (samples,), or a list for residues."""
        return self._shown(predictions, {"prediction": self._median, "lower": 0, "upper": -1})

    def deviation(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return the standard deviation of the medians of several models."""
        return super().deviation([self.point(p) for p in predictions])
