"""`Runner`, the interface between the engine and what it trains."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from molfun.backbones.base import Backbone
from molfun.tasks.base import LossSum
from molfun.training.ahead import Featurize
from molfun.training.inputs import Inputs


@dataclass(kw_only=True)
class MeanLoss:
    """Mean loss over a data set, kept as a sum and a number of labels."""

    loss_total: float = 0.0
    loss_count: int = 0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the losses on several parts of the data into one."""
        # fsum rounds once, so the order of the parts does not matter
        total = math.fsum(part.loss_total for part in parts)
        return cls(loss_total=total, loss_count=sum(part.loss_count for part in parts))

    def add(self, total: torch.Tensor, n_labels: int) -> None:
        """Add the loss of a batch."""
        self.loss_total += float(total.detach())
        self.loss_count += n_labels

    @property
    def loss(self) -> float:
        """Mean loss per label; NaN without labels."""
        return self.loss_total / self.loss_count if self.loss_count else math.nan


class Runner(ABC):
    """Interface of a model for the engine: heads and tasks on a backbone, or an objective."""

    backbone: Backbone
    head: Any
    metric_names: list[str]
    higher_is_better: frozenset[str]
    ranks_epochs: bool = True
    """True if the loss can rank epochs; if not, the weights of the last epoch are kept."""

    @property
    def ahead(self) -> Featurize | None:
        """Function that featurises samples in loader workers; None if that would not save time."""
        return None

    @abstractmethod
    def outputs(self, inputs: Inputs) -> dict[str, Any]:
        """Return the outputs of a batch."""

    @abstractmethod
    def loss(self, inputs: Inputs, outputs: Mapping[str, Any]) -> LossSum:
        """Return the summed loss of a batch and its number of labels."""

    @abstractmethod
    def evaluate(self, batches: Iterable[Any]) -> Any:
        """Run over batches in eval mode, and return a result with the attribute ``loss``."""

    @abstractmethod
    def empty(self) -> Any:
        """An evaluation of no batch yet."""

    @abstractmethod
    def add(self, result: Any, inputs: Inputs, outputs: Mapping[str, Any]) -> None:
        """Add a batch and its outputs to an evaluation."""

    @abstractmethod
    def metrics(self, result: Any) -> dict[str, float]:
        """Return the metrics of an evaluation."""

    def after_step(self, progress: float) -> None:  # noqa: B027  (most have nothing to do)
        """Run after each optimizer step; `progress` is the share of steps done, in (0, 1]."""

    def trainable_changed(self) -> None:  # noqa: B027  (as above)
        """Adapt to a changed set of trainable parameters."""

    def resume_state(self) -> dict[str, torch.Tensor]:
        """Return the state that a resumed run needs in addition to the parameters."""
        return {}

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Restore the result of `resume_state`."""
