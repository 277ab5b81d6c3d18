"""BioNeMo's loss class, as a setting of the regression task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from molfun.errors import ConfigError, DataError
from molfun.tasks.regression import RegressionTask


class RegressorLossReduction:
    """Mean squared error on labels that are not rescaled.

    Training sums the losses of a global batch and divides once by the number of its labels, so that
    a smaller micro batch counts less; `reduce` is used for the log alone. A subclass may set
    another `loss` and override `reduce`; `forward` follows from `loss`.

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

    loss: ClassVar[str] = "mse"

    def forward(
        self, batch: Mapping[str, torch.Tensor], forward_out: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a micro batch, alone and as ``{"avg": loss}``.

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
        # the task that trains the model, so that both losses are the same number
        task = RegressionTask(**task_settings(type(self)))
        total, n_labels = task.loss({"prediction": forward_out.reshape(-1)}, labels.reshape(-1))
        loss = total / max(n_labels, 1)
        return loss, {"avg": loss}

    def reduce(
        self, losses_reduced_per_micro_batch: Sequence[Mapping[str, torch.Tensor]]
    ) -> torch.Tensor:
        """Return the mean of the losses of the micro batches, for the log."""
        return torch.stack([loss["avg"] for loss in losses_reduced_per_micro_batch]).mean()


def task_settings(reduction: type[RegressorLossReduction]) -> dict[str, Any]:
    """Return the settings of `RegressionTask` that correspond to a loss class.

    Raises
    ------
    ConfigError
        If the class overrides ``forward``, so that it computes another loss than it names.
    """
    # training calls the task, so an overridden `forward` would be ignored without a word
    if getattr(reduction, "forward", None) is not RegressorLossReduction.forward:
        raise ConfigError(
            f"{reduction.__name__}.forward is not what trains the model. Set its class attribute "
            f"loss to 'mse', 'mae' or 'huber', or write a task for MolfunStructureModel."
        )
    return {"loss": reduction.loss, "standardize": False}
