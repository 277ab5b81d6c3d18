"""Weights of samples in the training loss, from a column of their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from molfun.errors import ConfigError, DataError
from molfun.sample import Sample, is_missing
from molfun.tasks.base import LossSum
from molfun.training.task_head import TaskHead


@dataclass(frozen=True)
class SampleWeights:
    """Column of the weights of each head, and the mean weight of its training samples.

    Weights are divided by their mean, so that they change which samples count more and not the
    size of a step. Metrics and the validation loss know no weights.

    Parameters
    ----------
    columns
        Column of `Sample.metadata` by the name of the head.
    means
        Mean over the training samples that have a label of that head.
    """

    columns: Mapping[str, str]
    means: Mapping[str, float]

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Any],
        values: Callable[[str], Sequence[Any]],
        heads: Sequence[TaskHead],
        targets: Sequence[Any],
    ) -> SampleWeights | None:
        """Return the weights that a training set asks for; None if it asks for none.

        Parameters
        ----------
        settings
            `SampleDataset.input_settings` of the training set.
        values
            Returns the values of one of its columns.
        heads
            Heads of the model.
        targets
            Labels of the training set.

        Raises
        ------
        ConfigError
            If the loss of a head compares samples with each other.
        DataError
            If all samples with a label weigh nothing.
        """
        each = settings.get("heads", {})
        columns, means = {}, {}
        for part in heads:
            column = each.get(part.name, settings).get("weight_column")
            if column is None:
                continue
            _check_loss(part, column)
            weights = np.asarray(values(column), np.float64)
            labelled = [not is_missing(label) for label in part.labels(targets)]
            mean = float(weights[labelled].mean()) if any(labelled) else 0.0
            if mean == 0:
                raise DataError(f"All weights in column {column!r} of samples with a label are 0.")
            columns[part.name], means[part.name] = column, mean
        return cls(columns, means) if columns else None

    @staticmethod
    def columns_in(settings: Mapping[str, Any]) -> list[str]:
        """Return the columns of weights that `SampleDataset.input_settings` names."""
        each = [settings, *settings.get("heads", {}).values()]
        found = [one["weight_column"] for one in each if one.get("weight_column") is not None]
        return sorted(set(found))

    def of_batch(self, part: TaskHead, samples: Sequence[Sample]) -> list[float] | None:
        """Return the weight of each sample for a head; None if it has none."""
        column = self.columns.get(part.name)
        if column is None or not samples:
            return None
        return [float(sample.metadata[column]) / self.means[part.name] for sample in samples]


def _check_loss(part: TaskHead, column: str) -> None:
    if part.task.sums_samples:
        return
    chosen = part.task.config_dict.get("loss")
    name = chosen["function"] if isinstance(chosen, Mapping) else chosen
    raise ConfigError(
        f"weight_column={column!r} weighs samples one by one, and the loss {name!r} compares them "
        f"with each other. Choose mse, mae or huber, or leave the weights out."
    )


def weighed_loss(
    part: TaskHead,
    outputs: Mapping[str, Any],
    targets: torch.Tensor,
    weights: Sequence[float],
) -> LossSum:
    """Return the loss of a batch with a weight for each sample; labels count as ever.

    Examples
    --------
    >>> from molfun.heads import MLPHead
    >>> from molfun.tasks import RegressionTask
    >>> part = TaskHead(head=MLPHead(single_dim=8), task=RegressionTask())
    >>> labels, outputs = torch.tensor([1.0, 2.0]), {"prediction": torch.zeros(2)}
    >>> weighed_loss(part, outputs, labels.double(), [1.0, 0.5])
    LossSum(total=tensor(3.), n_labels=2)
    """
    found: list[LossSum] = []
    for value in sorted(set(weights)):  # equal ones together
        rows = [i for i, weight in enumerate(weights) if weight == value]
        total, n = part.task.loss(_rows(outputs, rows), targets[rows])
        found.append(LossSum(total * value, n))
    return LossSum(
        sum((f.total for f in found[1:]), found[0].total), sum(f.n_labels for f in found)
    )


def _rows(outputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    return {
        name: _rows(value, rows) if isinstance(value, Mapping) else value[rows]
        for name, value in outputs.items()
    }
