"""The base of tasks: labels as numbers, the loss, metrics, and predictions for users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import torch

from molfun.sample import is_missing
from molfun.strict import check_choice, must_set
from molfun.trunk import Level

LabelsAre = Literal["numbers", "class", "classes", "other"]


class LossSum(NamedTuple):
    """A loss as a sum and the number of labels it sums over.

    Means are taken once, over everything that counts together (an accumulation window, all ranks,
    a validation set); never as a mean of means.
    """

    total: torch.Tensor
    n_labels: int


class LossOfTerms(LossSum):
    """A `LossSum` with its terms, for tasks that report them.

    Attributes
    ----------
    terms
        Sum of each term without weights, and the number of labels for which it counts, by name.
    """

    terms: Mapping[str, tuple[float, int]]

    def __new__(
        cls, total: torch.Tensor, n_labels: int, terms: Mapping[str, tuple[float, int]]
    ) -> Self:
        """Return a pair with the attribute ``terms``."""
        loss = super().__new__(cls, total, n_labels)
        loss.terms = terms
        return loss


class Task(ABC):
    """Loss, scale of the labels and metrics of one kind of prediction.

    Labels come as data sets give them (numbers, class names, one per residue) and become arrays of
    numbers here, NaN where there is no label. A head's raw output is ``outputs["prediction"]``:
    (batch,) or (batch, `n_outputs`), with the residue dimensions of the `level` after the batch.
    """

    name: ClassVar[str]
    default_head: ClassVar[str] = "mlp"
    """Registered name of the head that goes with the task."""
    higher_is_better: frozenset[str] = frozenset()
    """Metrics of which the largest value is the best; of all others the smallest is."""
    only_default_head: ClassVar[bool] = False
    """True if no other head gives what the task reads."""
    main_metric: ClassVar[str] = ""
    """Metric of a verdict; empty for the first one."""
    labels_are: ClassVar[LabelsAre] = "other"
    """Kind of labels, for baselines: numbers, one class, or a 0 or 1 per class."""
    level: Level = "sequence"
    labels_from_structure: ClassVar[bool] = False
    """True if the label of a sample is its own structure, and no column of a table."""
    sums_samples: bool = True
    """False if the loss compares the samples of a batch, so that none has a loss of its own."""
    numbers_unfitted: ClassVar[bool] = False
    """True if `numbers` can be used before `fit_targets`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        must_set(cls, "task", {"name": "Registered name."})

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Numbers a head has to give for each label."""

    @abstractmethod
    def fit_targets(self, targets: Sequence[Any]) -> None:
        """Learn what the labels look like (scale, class names); once, from the training set."""

    def gaps(self, targets: Sequence[Any]) -> str | None:
        """Return what the labels of a training set lack, for a warning; None if nothing."""
        missing = sum(map(is_missing, targets))
        if not 0 < missing < len(targets):
            return None
        return f"{missing} of {len(targets)} training samples have no label."

    def for_labels(self, targets: Sequence[Any], head: Mapping[str, Any]) -> Self:  # noqa: ARG002
        """Return the task that measures a data set: this one, unless the labels ask for more.

        Parameters
        ----------
        targets
            Labels of the data set.
        head
            Arguments of the head that predicts.
        """
        return self

    @abstractmethod
    def numbers(self, target: Any) -> np.ndarray:
        """Return one sample's label as float64, NaN where there is none.

        () or (classes,) for a sequence, (length,) or (length, classes) for residues, (length,
        length) for pairs; ``numbers(None)`` has the shape without the residue dimensions.
        """

    @abstractmethod
    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Return the loss of a batch over the labels that are present."""

    @abstractmethod
    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return values in the units of the labels, or probabilities; shaped as the raw output."""

    @abstractmethod
    def present(self, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """Put `predictions` of single samples into what a user gets: ``{"prediction": ...}``."""

    def point(self, predictions: np.ndarray) -> np.ndarray:
        """Return the prediction among the numbers that the task gives for each label."""
        return predictions

    def combined(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return one prediction of those of several models for a sample: their mean."""
        return np.asarray(np.mean(predictions, axis=0))

    def deviation(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return the standard deviation over the predictions of several models for a sample."""
        return np.asarray(np.std(predictions, axis=0, ddof=1))

    @abstractmethod
    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Return metrics over a whole data set in the units of the labels; NaN where undefined."""

    def is_finite(self, prediction: np.ndarray, target: np.ndarray) -> bool:
        """Return whether a prediction has a number wherever the label of its sample has one."""
        finite = np.isfinite(prediction)
        if finite.ndim > target.ndim:  # a probability per class
            finite = finite.all(-1)
        return not bool((np.isfinite(target) & ~finite).any())

    def metric(self, name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Return one metric, which some tasks compute in less time than all of them.

        Parameters
        ----------
        name
            One of `metric_names`.
        predictions, targets
            As in `metrics`.
        """
        return self.metrics(predictions, targets)[name]

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics."""
        empty = self.numbers(None)[None][:0]
        return list(self.metrics(empty, empty))

    @property
    @abstractmethod
    def config_dict(self) -> Mapping[str, Any]:
        """Constructor arguments, as plain values."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what `fit_targets` learned, as plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""

    def count(self, target: Any) -> int:
        """Return the number of labels that the loss counts in one sample's label."""
        return int(np.isfinite(self.numbers(target)).sum())

    @property
    def term_names(self) -> Sequence[str]:
        """Names of the terms in `LossOfTerms.terms`."""
        return ()

    def after_step(self, steps: int) -> None:  # noqa: B027  (most have nothing to do)
        """Run after each optimizer step of a training run; `steps` are done."""

    def encode(self, targets: Sequence[Any], lengths: Sequence[int] | None = None) -> torch.Tensor:
        """Return the labels of a batch as a float64 tensor, NaN where there is none.

        Parameters
        ----------
        targets
            One label per sample, or None.
        lengths
            Residues of each sample that the model saw, for labels of residues and pairs: longer
            labels are cut there, and all are padded to the longest.
        """
        if self.level == "sequence" or lengths is None:
            return torch.from_numpy(np.stack([self.numbers(t) for t in targets]))
        dims = 2 if self.level == "pair" else 1
        blank = self.numbers(None)
        result = np.full((len(targets), *[max(lengths)] * dims, *blank.shape), np.nan)
        for row, (target, n) in enumerate(zip(targets, lengths, strict=True)):
            if target is not None:
                inside = (slice(n),) * dims
                values = self.numbers(target)[inside]
                result[row][tuple(slice(k) for k in values.shape[:dims])] = values
        return torch.from_numpy(result)

    def split(self, values: torch.Tensor, lengths: Sequence[int]) -> list[np.ndarray]:
        """Return the values of a batch as one array per sample, without padding."""
        rows = values.detach().cpu().numpy()
        dims = {"sequence": 0, "residue": 1, "pair": 2}[self.level]
        return [row[(slice(n),) * dims] for row, n in zip(rows, lengths, strict=True)]

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Join arrays of single samples into one (labels, ...) array for `metrics`."""
        if not values:
            return self.numbers(None)[None][:0]
        if self.level == "sequence":
            return np.stack(values)
        flat = [v.reshape(-1, *v.shape[2:]) if self.level == "pair" else v for v in values]
        return np.concatenate(flat)


def check_level(level: str) -> None:
    """Refuse a level that is none.

    Raises
    ------
    ConfigError
        With the nearest name.
    """
    check_choice("level", level, get_args(Level))
