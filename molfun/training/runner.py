"""What the engine needs of a model."""

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
    """The loss over a data set, as its sum and the number of labels it is over."""

    loss_total: float = 0.0
    loss_count: int = 0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One loss from those on several parts of the data."""
        total = math.fsum(part.loss_total for part in parts)
        return cls(loss_total=total, loss_count=sum(part.loss_count for part in parts))

    def add(self, total: torch.Tensor, n_labels: int) -> None:
        """Add the loss of a batch."""
        self.loss_total += float(total)
        self.loss_count += n_labels

    @property
    def loss(self) -> float:
        """Mean loss per label; NaN without labels."""
        return self.loss_total / self.loss_count if self.loss_count else math.nan


class Runner(ABC):
    """A model as the engine sees it: a head and a task on a backbone, or an objective."""

    backbone: Backbone
    head: Any
    metric_names: list[str]
    higher_is_better: frozenset[str]
    ranks_epochs: bool = True
    """Whether the loss says which epoch is the best; if not, the last one is kept."""

    @property
    def ahead(self) -> Featurize | None:
        """Featurises samples in workers of a loader; None where that is not worth it."""
        return None

    @abstractmethod
    def outputs(self, inputs: Inputs) -> dict[str, Any]:
        """Outputs of a batch."""

    @abstractmethod
    def loss(self, inputs: Inputs, outputs: Mapping[str, Any]) -> LossSum:
        """Loss of a batch over its labels."""

    @abstractmethod
    def evaluate(self, batches: Iterable[Any]) -> Any:
        """Run over batches in eval mode; gives something with ``loss``."""

    @abstractmethod
    def metrics(self, result: Any) -> dict[str, float]:
        """Metrics of an evaluation."""

    def after_step(self, progress: float) -> None:  # noqa: B027  (most have nothing to do)
        """Follow an optimizer step; `progress` is the share of all that are done."""

    def trainable_changed(self) -> None:  # noqa: B027  (as above)
        """Adapt to other parameters that train from now on."""

    def resume_state(self) -> dict[str, torch.Tensor]:
        """Return what a resumed run needs besides the parameters."""
        return {}

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Put back what `resume_state` gave."""
