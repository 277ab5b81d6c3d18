"""The loss of the guide, as a setting of the regression task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from molfun.errors import ConfigError, DataError
from molfun.tasks.regression import RegressionLoss, RegressionTask


class RegressorLossReduction:
    """Mean squared error of the labels as they are.

    Training itself sums over a global batch and divides by its labels once, so that a micro batch
    that is smaller counts less; `reduce` is for the log alone. A subclass chooses another `loss`
    and may change `reduce`; `forward` follows from `loss`.

    Attributes
    ----------
    loss
        "mse", "mae" or "huber".

    Examples
    --------
    >>> reduction = RegressorLossReduction()
    >>> loss, logged = reduction.forward({"labels": torch.ones(2, 1)}, torch.zeros(2, 1))
    >>> loss, reduction.reduce([logged, {"avg": torch.tensor(3.0)}])
    (tensor(1.), tensor(2.))
    """

    loss: ClassVar[RegressionLoss] = "mse"

    def forward(
        self, batch: Mapping[str, torch.Tensor], forward_out: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a micro batch, and the same as ``{"avg": loss}``.

        Parameters
        ----------
        batch
            With ``labels``, (batch, 1).
        forward_out
            Predictions, (batch, 1).

        Raises
        ------
        DataError
            If the shapes differ.
        """
        labels = batch["labels"]
        if labels.shape != forward_out.shape:
            raise DataError(
                f"labels have the shape {tuple(labels.shape)}, predictions "
                f"{tuple(forward_out.shape)}; both must be (batch, 1)."
            )
        task = RegressionTask(**task_settings(type(self)))
        total, n_labels = task.loss({"prediction": forward_out.reshape(-1)}, labels.reshape(-1))
        loss = total / max(n_labels, 1)
        return loss, {"avg": loss}

    def reduce(
        self, losses_reduced_per_micro_batch: Sequence[Mapping[str, torch.Tensor]]
    ) -> torch.Tensor:
        """Mean over the micro batches of what `forward` gave, for the log."""
        return torch.stack([loss["avg"] for loss in losses_reduced_per_micro_batch]).mean()


def task_settings(reduction: type[RegressorLossReduction]) -> dict[str, Any]:
    """Return settings of `RegressionTask` that stand for a loss.

    Raises
    ------
    ConfigError
        If the class computes another loss than the one it names.
    """
    if getattr(reduction, "forward", None) is not RegressorLossReduction.forward:
        raise ConfigError(
            f"{reduction.__name__}.forward is not what trains the model. Set its class attribute "
            f"loss to 'mse', 'mae' or 'huber', or write a task for MolfunStructureModel."
        )
    return {"loss": reduction.loss, "standardize": False}
