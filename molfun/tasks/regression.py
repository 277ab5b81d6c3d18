"""Regression of numbers: one per label, or the components of a vector or a matrix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from molfun.errors import ConfigError, ContractError, DataError
from molfun.sample import is_missing, single_label
from molfun.strict import Configured
from molfun.tasks.base import Level, LossSum, Task, check_level
from molfun.tasks.chosen_loss import ChosenLoss, LossChoice, again, choose

LARGEST_SHAPE = 10_000
"""Numbers of one label, as many as a head has outputs."""


class RegressionTask(Configured, Task):
    """Predict a real number, trained in standardised units and reported in the label's own.

    The head learns ``(y - mean) / std`` with mean and standard deviation of the training labels,
    so a new head starts at the mean of the data instead of at zero. The components of a vector or
    a matrix have a mean each and one deviation together, which keeps their proportions.

    Parameters
    ----------
    loss
        ``"mse"``, ``"mae"`` or ``"huber"``, in standardised units; or one that ranks the samples of
        a batch, after which predictions say what is better and not by how much: ``"listmle"``,
        ``"margin"``, ``"pairwise"`` or ``"spearman"``; or another of `molfun.registry.LOSSES`; or a
        function ``loss(prediction, target)`` that takes the labels of a batch, (labels,) float32
        each without missing ones, and returns their summed loss.
    loss_config
        Options of the loss, such as ``{"delta": 0.5}``; see `molfun.tasks.losses`.
    standardize
        Whether to standardise; False trains on the labels as they are.
    level
        One label for each ``"sequence"`` (or structure), or for each ``"residue"`` (or atom).
    shape
        Of one label: ``()`` for a number, ``(3,)`` for a vector, ``(3, 3)`` for a matrix.

    Raises
    ------
    ConfigError
        If a loss or level is unknown, or a shape has no numbers.

    Examples
    --------
    >>> task = RegressionTask()
    >>> task.fit_targets(np.array([4.0, 6.0, 8.0]))
    >>> task.predictions({"prediction": torch.tensor([0.0])})
    tensor([6.], dtype=torch.float64)
    >>> RegressionTask(shape=(3, 3)).n_outputs
    9
    """

    name = "regression"
    numbers_unfitted = True
    higher_is_better = frozenset({"pearson", "spearman", "r2"})
    main_metric = "spearman"
    labels_are = "numbers"

    def __init__(
        self,
        *,
        loss: LossChoice = "mse",
        loss_config: Mapping[str, Any] | None = None,
        standardize: bool = True,
        level: Level = "sequence",
        shape: Sequence[int] = (),
    ) -> None:
        self.chosen_loss: ChosenLoss = choose(loss, loss_config)
        check_level(level)
        if self.chosen_loss.ranks and (level != "sequence" or shape):
            raise ConfigError(
                f"loss={self.chosen_loss.name!r} ranks samples by one number each: labels of "
                f"residues, and vectors, have no order. Use mse, mae or huber."
            )
        if any(size < 1 for size in shape) or math.prod(shape) > LARGEST_SHAPE:
            raise ConfigError(
                f"shape={tuple(shape)} is no shape of a label, which has 1 to {LARGEST_SHAPE} "
                f"numbers: (3,) for a vector, (3, 3) for a matrix."
            )
        self.level, self.sums_samples = level, not self.chosen_loss.ranks
        self.shape = tuple(int(size) for size in shape)
        named = self.chosen_loss.config
        self._config: dict[str, Any] = {"loss": named, "standardize": standardize, "level": level}
        if loss_config:
            self._config["loss_config"] = dict(loss_config)
        if self.shape:
            self._config["shape"] = list(self.shape)
        self.mean: Any = 0.0
        """In the units of the labels: a number, or (numbers of a label,)."""
        self.std: Any = 1.0
        self.fitted = False

    @property
    def n_outputs(self) -> int:
        """Numbers of one label."""
        return math.prod(self.shape)

    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Take mean and standard deviation of the labels, the first time only.

        A head that has been trained speaks in the units of its first training set; a later fit
        keeps them.

        Raises
        ------
        DataError
            If no label is present.
        ConfigError
            If the loss is a function that must be passed again.
        """
        self.chosen_loss.need()
        blank = np.zeros((0, *self.numbers(None).shape))
        rows = [self.numbers(t).reshape(-1, *blank.shape[1:]) for t in targets]
        values = np.concatenate(rows or [blank])
        present = values[np.isfinite(values)]
        if present.size == 0:
            raise DataError("The training set has no labels. Fill the target column.")
        if self.fitted:
            return
        self.fitted = True
        if not self._config["standardize"]:
            return
        if self.shape:
            self.mean = np.array([_mean_of(column) for column in values.T])
            present = (values - self.mean)[np.isfinite(values)]
        else:
            self.mean = float(present.mean())
        # a constant label has no scale; 1 keeps the units
        self.std = float(present.std()) or 1.0

    def gaps(self, targets: Sequence[Any]) -> str | None:
        """Say how many labels are missing, and how many have forces or stress that go unused."""
        n = sum(isinstance(t, Mapping) and bool({"forces", "stress"} & set(t)) for t in targets)
        other = (
            f"{n} of {len(targets)} training structures have forces or stress, which this task "
            f"does not use: it learns the energy. head='energy' learns them."
            if n
            else ""
        )
        return " ".join(filter(None, [super().gaps(targets), other])) or None

    def numbers(self, target: Any) -> np.ndarray:
        """Return the label in its own units: () for a sequence, (length,) for residues.

        A label of several numbers has them as a last dimension. Of labels by name (energy, forces)
        it is the energy.

        Raises
        ------
        DataError
            If it has another shape than the task.
        """
        target = single_label(target)
        numbers = () if not self.shape else (math.prod(self.shape),)
        if is_missing(target):
            return np.full(numbers, math.nan)
        try:
            values = np.asarray(target, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"A label is made of numbers, got {repr(target)[:60]}. Classes are for the tasks "
                f"binary, multiclass and multilabel."
            ) from error
        return self._shaped(values, numbers)

    def _shaped(self, values: np.ndarray, numbers: tuple[int, ...]) -> np.ndarray:
        if self.level == "sequence":
            if values.size == math.prod(self.shape):
                return values.reshape(numbers)
        elif values.shape[1:] == self.shape:
            return values.reshape(-1, *numbers)
        elif not self.shape and values.ndim < 2:
            return values
        raise DataError(self._misfit(values.shape))

    def _misfit(self, found: tuple[int, ...]) -> str:
        if self.level == "sequence":
            theirs, level = found, ""
        else:
            theirs, level = found[1:], " for each residue or atom"
        one = f"{math.prod(self.shape)} numbers {self.shape}" if self.shape else "one number"
        return (
            f"A label has the shape {found}, and the task takes {one}{level}. Say so with "
            f"task_config={{'shape': {list(theirs)}}}, or level='residue' for a label of each "
            f"residue or atom (on the command line --level residue)."
        )

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the summed loss over labels that are present; 0 (with a graph) without any."""
        prediction = outputs["prediction"].float()
        scaled = ((targets - self._mean_on(targets)) / self._std_on(targets)).to(prediction)
        present = ~torch.isnan(scaled)
        if prediction.shape != scaled.shape:  # torch would broadcast them, and learn nonsense
            raise ContractError(
                f"The head predicts the shape {tuple(prediction.shape)} for labels of the shape "
                f"{tuple(scaled.shape)}. Head.as_outputs drops the last dimension of one output."
            )
        if not present.all():
            prediction, scaled = prediction[present], scaled[present]
        return LossSum(self.chosen_loss(prediction.flatten(), scaled.flatten()), scaled.numel())

    def use_loss(self, loss: Callable[..., torch.Tensor]) -> None:
        """Give a function that is the loss of a loaded checkpoint again, which holds its name.

        Raises
        ------
        ConfigError
            If it gives other numbers than the one of the training.

        Examples
        --------
        >>> def cubic(prediction, target):
        ...     return (prediction - target).abs().pow(3).sum()
        >>> loaded = RegressionTask(**RegressionTask(loss=cubic).config_dict)
        >>> loaded.use_loss(cubic)
        """
        self.chosen_loss = again(self.chosen_loss, loss)
        self._config["loss"] = self.chosen_loss.config

    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return predictions in the label's units, float64."""
        raw = outputs["prediction"].double()
        return raw * self._std_on(raw) + self._mean_on(raw)

    def _mean_on(self, values: torch.Tensor) -> Any:
        """Return the mean on the device of a tensor of labels."""
        return torch.as_tensor(self.mean).to(values) if self.shape else self.mean

    def _std_on(self, values: torch.Tensor) -> Any:
        """Return the deviation on the device of a tensor of labels."""
        return torch.as_tensor(self.std).to(values) if np.ndim(self.std) else self.std

    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return ``prediction``: (samples,) float64, or a list of (length,) arrays for residues.

        The shape of a label follows, where it has one.
        """
        if self.level == "sequence":
            rows = np.array(predictions, dtype=np.float64).reshape(len(predictions), *self.shape)
            return {"prediction": torch.tensor(rows, dtype=torch.float64)}
        return {"prediction": [row.reshape(len(row), *self.shape) for row in predictions]}

    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return RMSE, MAE, Pearson and Spearman correlation and R2; NaN where undefined.

        Correlations need two different values on both sides, R2 two different labels. Of labels
        of several numbers, all components weigh the same, each around its own mean in R2.
        """
        present = np.isfinite(targets)
        centred = targets - _means(targets, present) if self.shape else targets
        predictions, targets, centred = predictions[present], targets[present], centred[present]
        if targets.size == 0:
            return dict.fromkeys(("rmse", "mae", "pearson", "spearman", "r2"), math.nan)
        error = predictions - targets
        spread = float(((centred - centred.mean()) ** 2).sum())
        return {
            "rmse": float(np.sqrt((error**2).mean())),
            "mae": float(np.abs(error).mean()),
            "pearson": _correlation("pearsonr", predictions, targets),
            "spearman": _correlation("spearmanr", predictions, targets),
            "r2": 1 - float((error**2).sum()) / spread if spread > 0 else math.nan,
        }

    def metric(self, name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Return one metric; Spearman's correlation alone takes a fifth of the time of all."""
        if name != "spearman":
            return super().metric(name, predictions, targets)
        present = np.isfinite(targets)
        return _correlation("spearmanr", predictions[present], targets[present])

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and standard deviation of the labels."""
        mean, std = (np.asarray(value).tolist() for value in (self.mean, self.std))
        return {"mean": mean, "std": std, "fitted": self.fitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the label statistics back."""
        mean = np.array(state["mean"], dtype=np.float64)
        # one mean for all components is what a task that was not fitted has
        self.mean = mean if mean.ndim else float(mean)
        std = np.array(state["std"], dtype=np.float64)
        self.std = std if std.ndim else float(std)
        self.fitted = bool(state["fitted"])


def _mean_of(column: np.ndarray) -> float:
    """Return the mean of the labels that are there; 0 without any."""
    present = column[np.isfinite(column)]
    return float(present.mean()) if present.size else 0.0


def _means(targets: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the mean of each component over the labels that are there."""
    totals: np.ndarray = np.where(present, targets, 0.0).sum(0)
    return totals / np.maximum(present.sum(0), 1)


def _correlation(name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
    from scipy import stats

    if any(values.size < 2 or values.min() == values.max() for values in (predictions, targets)):
        return math.nan
    if name == "spearmanr":  # as scipy computes it, without the p-value that takes half the time
        ranks = np.asarray(np.corrcoef(stats.rankdata([predictions, targets], axis=1)))
        return float(ranks[0, 1])
    with warnings.catch_warnings():
        # nearly constant input is reported through a value near NaN already
        warnings.simplefilter("ignore")
        return float(getattr(stats, name)(predictions, targets).statistic)
