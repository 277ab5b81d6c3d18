"""What the engine needs of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch


class LossSum(NamedTuple):
    """A loss as a sum and the number of labels it sums over.

    Means are taken once, over everything that counts together (an accumulation window, all ranks,
    a validation set); never as a mean of means.
    """

    total: torch.Tensor
    n_labels: int


class Task(ABC):
    """Loss, scale of the labels and metrics of one kind of prediction."""

    name: ClassVar[str]
    higher_is_better: ClassVar[frozenset[str]] = frozenset()
    """Metrics of which the largest value is the best; of all others the smallest is."""

    @abstractmethod
    def fit_targets(self, targets: np.ndarray) -> None:
        """Learn what the labels look like (mean and scale); once, from the training set."""

    @abstractmethod
    def encode(self, targets: Sequence[float | None]) -> torch.Tensor:
        """Labels of a batch as a tensor, NaN where there is none."""

    @abstractmethod
    def loss(self, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor) -> LossSum:
        """Loss of a batch over the labels that are present."""

    @abstractmethod
    def predictions(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Predictions in the units of the labels."""

    @abstractmethod
    def metrics(self, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Metrics over a whole data set in the units of the labels; NaN where undefined."""

    @property
    @abstractmethod
    def config_dict(self) -> Mapping[str, Any]:
        """Constructor arguments, as plain values."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What `fit_targets` learned, as plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
