"""The base of objectives: labels made from the input, and their loss.

A new objective is one class, one line in `molfun.registry` (or an entry point in the group
``molfun.objectives``) and one contract test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.strict import must_set


@dataclass(frozen=True)
class ObjectiveOutput:
    """Loss of a batch as a sum, so that means are taken once over everything.

    Parameters
    ----------
    total
        Summed loss, with a graph.
    n_labels
        Number of labels that `total` sums over.
    sums
        Sums over the same labels of what the metrics are made of.
    """

    total: torch.Tensor
    n_labels: int
    sums: Mapping[str, float | np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """A time series with what an objective hid of it and predicted.

    Parameters
    ----------
    values
        (time, features) the series, in the units of the data; NaN where nothing was observed.
    hidden
        (time, features) True where a value was observed and hidden.
    predicted
        (time, features) the model's values at every place, in the units of the data.
    """

    values: np.ndarray
    hidden: np.ndarray
    predicted: np.ndarray


def need(objective: str, backbone: nn.Module, what: str, names: Sequence[str]) -> None:
    """Refuse a backbone that lacks attributes that an objective uses.

    Raises
    ------
    ConfigError
        Naming what is missing.
    """
    missing = [name for name in names if not hasattr(backbone, name)]
    if missing:
        raise ConfigError(
            f"The objective {objective!r} needs {what}; "
            f"{getattr(backbone, 'display_name', type(backbone).__name__)} has no "
            f"{' and no '.join(missing)}."
        )


class Objective(nn.Module, ABC):
    """Labels made from the input, their loss, and whatever weights that needs.

    Parameters of the objective (a predictor, a decoder) train along with the backbone and are left
    behind afterwards.
    """

    name: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]] = ()
    """Metrics that `metrics` gives."""
    higher_is_better: ClassVar[frozenset[str]] = frozenset()
    """Those of which the largest value is the best."""
    ranks_epochs: ClassVar[bool] = True
    """True if a smaller loss means a better epoch. False where what is predicted changes during
    training, as with an EMA teacher; then the last epoch is kept."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        must_set(cls, "objective", {"name": "Registered name."})

    @abstractmethod
    def check(self, backbone: nn.Module) -> None:
        """Refuse a backbone that lacks what the objective needs.

        Raises
        ------
        ConfigError
            Naming what is missing.
        """

    def build(self, backbone: Any) -> None:
        """Make the weights for this backbone; called once, with torch's generator seeded."""

    @abstractmethod
    def prepare(
        self, features: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """Corrupt the features of one sample and add its labels.

        Parameters
        ----------
        features
            What the backbone's ``featurize`` gave; not changed.
        generator
            Source of chance: the run's own (None) in training, one that depends on the sample
            alone in validation.
        """

    @abstractmethod
    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        """Return the loss of a batch of prepared features."""

    @abstractmethod
    def metrics(self, loss: float, sums: Mapping[str, Any], n_labels: int) -> dict[str, float]:
        """Return metrics over a whole data set from its mean loss and its sums."""

    def reconstruct(
        self,
        backbone: Any,  # noqa: ARG002
        batch: dict[str, torch.Tensor],  # noqa: ARG002
    ) -> list[Reconstruction] | None:
        """Return the series of a batch of prepared features as the model fills them in.

        None, the default, for an objective that predicts no values.
        """
        return None

    @property
    def follows(self) -> bool:
        """True if a part of the objective follows the weights of the backbone."""
        return type(self).after_step is not Objective.after_step

    def after_step(self, progress: float) -> None:
        """Follow an optimizer step, given the share of all steps done (for EMA teachers)."""

    def resume_state(self) -> dict[str, torch.Tensor]:
        """Return state that is no parameter, such as the weights of a teacher."""
        return {}

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what `resume_state` gave."""

    @property
    @abstractmethod
    def config_dict(self) -> Mapping[str, Any]:
        """Constructor arguments, as plain values."""
