"""Regression of one number a sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from molfun.errors import ConfigError, DataError, unknown_name
from molfun.tasks.base import Level, LossSum, Task, check_level

RegressionLoss = Literal["mse", "mae", "huber"]
_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}


class RegressionTask(Task):
    """Predict a real number, trained in standardised units and reported in the label's own.

    The head learns ``(y - mean) / std`` with mean and standard deviation of the training labels,
    so a new head starts at the mean of the data instead of at zero.

    Parameters
    ----------
    loss
        ``"mse"``, ``"mae"`` or ``"huber"`` (delta 1), in standardised units.
    standardize
        Whether to standardise; False trains on the labels as they are.
    level
        One number for each ``"sequence"`` (or structure), or for each ``"residue"``.

    Examples
    --------
    >>> task = RegressionTask()
    >>> task.fit_targets(np.array([4.0, 6.0, 8.0]))
    >>> task.predictions({"prediction": torch.tensor([0.0])})
    tensor([6.], dtype=torch.float64)
    """

    name = "regression"
    n_outputs = 1
    higher_is_better = frozenset({"pearson", "spearman", "r2"})

    def __init__(
        self, *, loss: RegressionLoss = "mse", standardize: bool = True, level: Level = "sequence"
    ) -> None:
        if loss not in get_args(RegressionLoss):
            raise ConfigError(unknown_name("regression loss", loss, get_args(RegressionLoss)))
        check_level(level)
        self.level = level
        self._config = {"loss": loss, "standardize": standardize, "level": level}
        self.mean = 0.0
        self.std = 1.0
        self.fitted = False

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Take mean and standard deviation of the labels, the first time only.

        A head that has been trained speaks in the units of its first training set; a later fit
        keeps them.

        Raises
        ------
        DataError
            If no label is present.
        """
        values = np.concatenate([self.numbers(t).reshape(-1) for t in targets] or [np.zeros(0)])
        present = values[np.isfinite(values)]
        if present.size == 0:
            raise DataError("The training set has no labels. Fill the target column.")
        if self.fitted:
            return
        self.fitted = True
        if self._config["standardize"]:
            self.mean = float(present.mean())
            # a constant label has no scale; 1 keeps the units
            self.std = float(present.std()) or 1.0

    def numbers(self, target: Any) -> np.ndarray:
        """Label in its own units: () for a sequence, (length,) for residues.

        Of labels by name (energy, forces) it is the energy.
        """
        if isinstance(target, Mapping):
            target = target.get("energy")
        return np.asarray(math.nan if target is None else target, dtype=np.float64)

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Summed loss over the labels that are present; 0 (with a graph) where there are none."""
        prediction = outputs["prediction"].float()
        scaled = ((targets - self.mean) / self.std).to(prediction)
        present = ~torch.isnan(scaled)
        function = _LOSSES[str(self._config["loss"])]
        if prediction.shape == scaled.shape and present.all():
            return LossSum(function(prediction, scaled, reduction="sum"), scaled.numel())
        total = function(prediction[present], scaled[present], reduction="sum")
        return LossSum(total, int(present.sum()))

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Predictions in the label's units, float64."""
        return outputs["prediction"].double() * self.std + self.mean

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """``prediction``: (samples,) float64, or a list of (length,) arrays for residues."""
        if self.level == "sequence":
            return {"prediction": torch.tensor(np.array(predictions), dtype=torch.float64)}
        return {"prediction": list(predictions)}

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """RMSE, MAE, Pearson and Spearman correlation and R2; NaN where undefined.

        Correlations need two different values on both sides, R2 two different labels.
        """
        present = np.isfinite(targets)
        predictions, targets = predictions[present], targets[present]
        if targets.size == 0:
            return dict.fromkeys(("rmse", "mae", "pearson", "spearman", "r2"), math.nan)
        error = predictions - targets
        spread = float(((targets - targets.mean()) ** 2).sum())
        return {
            "rmse": float(np.sqrt((error**2).mean())),
            "mae": float(np.abs(error).mean()),
            "pearson": _correlation("pearsonr", predictions, targets),
            "spearman": _correlation("spearmanr", predictions, targets),
            "r2": 1 - float((error**2).sum()) / spread if spread > 0 else math.nan,
        }

    @property
    def config_dict(self) -> dict[str, Any]:
        """Constructor arguments."""
        return dict(self._config)

    def state_dict(self) -> dict[str, Any]:
        """Mean and standard deviation of the labels."""
        return {"mean": self.mean, "std": self.std, "fitted": self.fitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the label statistics back."""
        self.mean, self.std = float(state["mean"]), float(state["std"])
        self.fitted = bool(state["fitted"])


def _correlation(name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
    from scipy import stats

    if len(np.unique(predictions)) < 2 or len(np.unique(targets)) < 2:
        return math.nan
    with warnings.catch_warnings():
        # nearly constant input is reported through a value near NaN already
        warnings.simplefilter("ignore")
        return float(getattr(stats, name)(predictions, targets).statistic)
