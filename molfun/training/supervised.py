"""Backbone, head and task on batches: outputs, loss, predictions and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from molfun.backbones.base import Backbone
from molfun.heads.base import Head
from molfun.nn.modes import evaluating
from molfun.sample import Sample
from molfun.tasks.base import LossSum, Task
from molfun.training.ahead import Featurize, loaded_ahead
from molfun.training.cache import PrefixCache
from molfun.training.feature_cache import FeatureCache
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.loading import watched, worker_errors
from molfun.training.runner import Evaluation, Runner
from molfun.trunk import TrunkOutput


class SupervisedRunner(Runner):
    """Backbone, head and task as one function from a batch to outputs and loss.

    Parameters
    ----------
    backbone, head, task
        The parts.
    device
        Where they are.
    autocast
        Makes the context for mixed precision.
    make_cache, features
        As in `molfun.training.forward.ForwardPass`.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        task: Task,
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        make_cache: Callable[[], PrefixCache | None] = lambda: None,
        features: FeatureCache | None = None,
    ) -> None:
        self.backbone, self.head, self.task = backbone, head, task
        self.device, self.autocast = device, autocast
        self.metric_names = task.metric_names
        self.higher_is_better = task.higher_is_better
        self.forward = ForwardPass(
            backbone,
            head.needs,
            device=device,
            reader=f"the head {type(head).__name__}",
            make_cache=make_cache,
            features=features,
        )

    @property
    def ahead(self) -> Featurize | None:
        """As in `molfun.training.forward.ForwardPass`."""
        return self.forward.ahead

    def trainable_changed(self) -> None:
        """Find out what is frozen now."""
        self.forward.trainable_changed()

    def outputs(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Head outputs of a batch."""
        with self.autocast():
            trunk = self.forward(inputs)
            return {**self.head(trunk), "mask": trunk.mask}

    def loss(self, inputs: Inputs, outputs: Mapping[str, torch.Tensor]) -> LossSum:
        """Loss of a batch over its labels."""
        targets = self.task.encode(inputs.targets, self._lengths(outputs)).to(self.device)
        return self.task.loss(outputs, targets)

    def _lengths(self, outputs: Mapping[str, torch.Tensor]) -> list[int] | None:
        """Residues of each sample, where the task asks."""
        if self.task.level == "sequence":
            return None
        return [int(n) for n in outputs["mask"].sum(1).tolist()]

    def representations(self, samples: Iterable[Sample]) -> Iterator[TrunkOutput]:
        """Return what the head reads of each sample, one by one and without a graph."""
        for sample in samples:
            with self.autocast(), torch.no_grad():
                trunk = self.forward(Inputs.of([sample]))
            yield trunk

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], *, labels: bool = True) -> Evaluation:
        """Run over batches in eval mode; the modes are put back as they were.

        Without `labels` none is looked at, and there is no loss.
        """
        result = Evaluation()
        with evaluating(self.backbone, self.head), worker_errors():
            for batch in watched(loaded_ahead(batches, self.ahead)):
                self._evaluate_one(as_inputs(batch), result, labels=labels)
        return result

    def _evaluate_one(self, inputs: Inputs, result: Evaluation, *, labels: bool) -> None:
        outputs = self.outputs(inputs)
        result.ids += inputs.ids
        lengths = self._lengths(outputs)
        sizes = lengths or [0] * len(inputs.ids)
        result.predictions += self.task.split(self.task.predictions(outputs), sizes)
        if not labels:
            return
        targets = self.task.encode(inputs.targets, lengths)
        result.targets += self.task.split(targets, sizes)
        total, count = self.task.loss(outputs, targets.to(self.device))
        result.loss_total += float(total)
        result.loss_count += count

    def metrics(self, result: Evaluation) -> dict[str, float]:
        """The task's metrics of an evaluation."""
        joined = self.task.join(result.predictions), self.task.join(result.targets)
        return self.task.metrics(*joined)
