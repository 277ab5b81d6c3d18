"""Run a self-supervised objective on batches, in place of heads and tasks."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from molfun.backbones.base import Backbone, Features
from molfun.backbones.tensor_input import split_batch
from molfun.fingerprint import combine_digests, tensor_digests
from molfun.nn.modes import evaluating
from molfun.objectives.base import Objective, ObjectiveOutput, Reconstruction
from molfun.sample import Sample
from molfun.tasks.base import LossSum
from molfun.training.feature_cache import FeatureCache
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.loading import watched
from molfun.training.runner import MeanLoss, Runner


@dataclass(kw_only=True)
class ObjectiveEvaluation(MeanLoss):
    """Loss over a data set, and the sums from which metrics are computed."""

    ids: list[str] = field(default_factory=list)
    sums: Counter[str] = field(default_factory=Counter)  # numbers or arrays by name

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the evaluations of several processes into one."""
        result = super().joined(parts)
        for part in parts:
            result.ids += part.ids
            result.sums.update(part.sums)
        return result


class ObjectiveRunner(Runner):
    """Runner of a backbone with an objective.

    Parameters
    ----------
    backbone, objective
        Parts of the model.
    device
        Device of the model.
    autocast
        Returns the context for mixed precision.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.backbone, self.head = backbone, objective
        self.device, self.autocast = device, autocast
        self._featurizer = FeatureCache(backbone, None)
        self.metric_names = list(objective.metric_names)
        self.higher_is_better = objective.higher_is_better
        self.ranks_epochs = objective.ranks_epochs

    def outputs(self, inputs: Inputs) -> dict[str, Any]:
        """Return loss and sums of a batch, and the loss alone."""
        found = self._run(inputs, fixed=False)
        return {"objective": found, "total": found.total}

    def loss(self, inputs: Inputs, outputs: Mapping[str, Any]) -> LossSum:  # noqa: ARG002
        """Return the summed loss of a batch and its number of labels."""
        result: ObjectiveOutput = outputs["objective"]
        return LossSum(result.total, result.n_labels)

    def after_step(self, progress: float) -> None:
        """Pass the end of an optimizer step on to the objective (for an EMA teacher)."""
        self.head.after_step(progress)

    def resume_state(self) -> dict[str, torch.Tensor]:
        """Return the state of the objective apart from its parameters."""
        return self.head.resume_state()

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the result of `resume_state`."""
        self.head.load_resume_state(state)

    @torch.no_grad()
    def reconstruct(self, samples: Sequence[Sample]) -> list[Reconstruction] | None:
        """Return samples as the model fills them in, hidden as in `evaluate`; None if it cannot."""
        with evaluating(self.backbone, self.head), self.autocast():
            return self.head.reconstruct(self.backbone, self._batch(Inputs.of(samples), fixed=True))

    def _run(self, inputs: Inputs, *, fixed: bool) -> ObjectiveOutput:
        batch = self._batch(inputs, fixed=fixed)
        with self.autocast():
            output: ObjectiveOutput = self.head(self.backbone, batch)
        return output

    def _batch(self, inputs: Inputs, *, fixed: bool) -> Features:
        """Return prepared features on the device of the model."""
        if inputs.features is None:
            keys = [sample.content_key() for sample in inputs.samples]
            rows = list(zip(keys, inputs.featurized(self._featurizer.features), strict=True))
        else:
            parts = split_batch(self.backbone, inputs.features)
            rows = [(combine_digests({}, tensor_digests(part)), part) for part in parts]
        features = [self._prepare(key, row, fixed=fixed) for key, row in rows]
        return {k: v.to(self.device) for k, v in self.backbone.collate(features).items()}

    def _prepare(self, key: str, features: Features, *, fixed: bool) -> Features:
        # in validation the masks of a sample come from its content key, so that losses of different
        # epochs are about the same masks and can be compared
        # 15 hexadecimal digits are 60 bits; torch takes seeds of up to 64
        generator = torch.Generator().manual_seed(int(key[:15], 16)) if fixed else None
        return self.head.prepare(features, generator)

    def empty(self) -> ObjectiveEvaluation:
        """An evaluation of no batch yet."""
        return ObjectiveEvaluation()

    def add(self, result: ObjectiveEvaluation, inputs: Inputs, outputs: Mapping[str, Any]) -> None:
        """Add loss and sums of a batch to an evaluation."""
        output: ObjectiveOutput = outputs["objective"]
        result.ids += inputs.ids
        result.add(output.total, output.n_labels)
        result.sums.update(output.sums)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any]) -> ObjectiveEvaluation:
        """Run over batches in eval mode; random masks depend on the samples alone."""
        result = self.empty()
        with evaluating(self.backbone, self.head):
            for batch in watched(batches):
                inputs = as_inputs(batch)
                self.add(result, inputs, {"objective": self._run(inputs, fixed=True)})
        return result

    def metrics(self, result: ObjectiveEvaluation) -> dict[str, float]:
        """Return the metrics of an evaluation."""
        return self.head.metrics(result.loss, result.sums, result.loss_count)
