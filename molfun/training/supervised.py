"""Run a backbone with its heads on batches: outputs, loss, predictions and metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch

from molfun.backbones.base import Backbone
from molfun.errors import ConfigError
from molfun.nn.modes import evaluating
from molfun.parallel.dealing import Share, put_back
from molfun.sample import Sample
from molfun.tasks.base import LossSum, Task
from molfun.training.ahead import Featurize, loaded_ahead
from molfun.training.cache import PrefixCache
from molfun.training.feature_cache import FeatureCache
from molfun.training.forward import ForwardPass
from molfun.training.inputs import Inputs, as_inputs
from molfun.training.loading import watched, worker_errors
from molfun.training.runner import MeanLoss, Runner
from molfun.training.task_head import TaskHead, as_module, chains_read, joined_needs
from molfun.training.weights import SampleWeights, weighed_loss
from molfun.trunk import TrunkOutput


@dataclass(kw_only=True)
class HeadResult(MeanLoss):
    """Predictions and labels of one head over a data set, one array per sample in input order."""

    weight: float = 1.0
    predictions: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    terms: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """Sum of each term of the loss and its number of labels, one pair per batch."""

    def add_terms(self, terms: Mapping[str, tuple[float, int]]) -> None:
        """Add the terms of the loss of a batch."""
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value)

    def mean_terms(self, names: Iterable[str]) -> dict[str, float]:
        """Return the mean of each term over the labels for which it counts; NaN without any."""
        return {name: _mean_of_pairs(self.terms.get(name, ())) for name in names}

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the results on several parts of the data into one."""
        result = super().joined(parts)
        result.weight = parts[0].weight
        result.predictions = [p for part in parts for p in part.predictions]
        result.targets = [t for part in parts for t in part.targets]
        for part in parts:
            for name, values in part.terms.items():
                result.terms.setdefault(name, []).extend(values)
        return result


@dataclass
class Evaluation:
    """Results over a data set.

    Parameters
    ----------
    ids
        Ids in input order.
    heads
        Results of each head by its name.
    distances
        (samples,) distances to the training set, where they are known.
    """

    ids: list[str]
    heads: dict[str, HeadResult]
    distances: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the evaluations of several processes or batches into one."""
        return cls(
            [i for part in parts for i in part.ids],
            {
                name: HeadResult.joined([part.heads[name] for part in parts])
                for name in parts[0].heads
            },
        )

    def gathered(self, share: Share) -> Self:
        """Return the evaluation of all processes in input order, the same in each of them."""
        found = share.ranks.gather(self)
        # a process without samples knows no distances
        every = [part for part in found if part.ids] or found
        result = self.joined(every)
        result.ids = put_back(share.order, result.ids)
        for head in result.heads.values():
            head.predictions = put_back(share.order, head.predictions)
            if head.targets:
                head.targets = put_back(share.order, head.targets)
        distances = [part.distances for part in every if part.distances is not None]
        if distances:
            result.distances = np.stack(put_back(share.order, np.concatenate(distances)))
        return result

    @property
    def n_labels(self) -> int:
        """Number of labels over all heads."""
        return sum(head.loss_count for head in self.heads.values())

    @property
    def loss(self) -> float:
        """Weighted sum of the mean losses of the heads that have labels; NaN without any."""
        known = [head for head in self.heads.values() if head.loss_count]
        return sum(head.weight * head.loss for head in known) if known else math.nan


class SupervisedRunner(Runner):
    """Runner of a backbone with one head or several.

    With several heads the loss is the sum of their mean losses, each times its weight.

    Parameters
    ----------
    backbone, heads
        Parts of the model.
    device
        Device of the model.
    autocast
        Returns the context for mixed precision.
    make_cache, features, in_step
        As in `molfun.training.forward.ForwardPass`.
    also
        Further outputs of the backbone, for readers next to the heads.
    weights
        Weights of the samples in `loss`; None counts all alike.

    Attributes
    ----------
    readers
        Called with the inputs and the representations of each batch, next to the heads.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[TaskHead],
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        make_cache: Callable[[], PrefixCache | None] = lambda: None,
        features: FeatureCache | None = None,
        also: Sequence[str] = (),
        in_step: bool = False,
        weights: SampleWeights | None = None,
    ) -> None:
        self.weights = weights
        self.backbone, self.heads, self.head = backbone, tuple(heads), as_module(heads)
        self.device, self.autocast = device, autocast
        self.metric_names = metric_names(heads)
        self.higher_is_better = frozenset(
            part.key(name) for part in heads for name in part.task.higher_is_better
        )
        self.forward = ForwardPass(
            backbone,
            tuple(dict.fromkeys((*joined_needs(heads), *also))),
            device=device,
            reader="the head " + ", ".join(type(part.head).__name__ for part in heads),
            make_cache=make_cache,
            features=features,
            in_step=in_step,
            by_chain=chains_read(heads),
        )
        self.readers: list[Callable[[Inputs, TrunkOutput], None]] = []
        self._steps = 0

    @property
    def ahead(self) -> Featurize | None:
        """As in `molfun.training.forward.ForwardPass`."""
        return self.forward.ahead

    def trainable_changed(self) -> None:
        """Look up what is frozen now."""
        self.forward.trainable_changed()

    def outputs(self, inputs: Inputs) -> dict[str, Any]:
        """Return the outputs of the only head, or a dict per head by its name; and the ``mask``."""
        with self.autocast():
            # once for all heads
            trunk = self.forward(inputs)
            for reader in self.readers:
                reader(inputs, trunk)
            found = {part.name: part.outputs(trunk, inputs.samples) for part in self.heads}
        return {**(found.pop("") if "" in found else found), "mask": trunk.mask}

    def loss(self, inputs: Inputs, outputs: Mapping[str, Any]) -> LossSum:
        """Return the summed loss of a batch and its number of labels.

        With several heads, each loss is divided by the head's labels per training sample, and the
        count is that of samples. Sums over batches of any size and mix of labels then stay exact.

        Raises
        ------
        ConfigError
            If labels give a loss that no weight that trains has a part in.
        """
        found = self._summed(inputs, outputs)
        if found.n_labels and torch.is_grad_enabled() and not found.total.requires_grad:
            raise ConfigError(
                "The loss depends on no weight that trains. Choose another strategy, or a loss "
                "with other terms."
            )
        return found

    def _summed(self, inputs: Inputs, outputs: Mapping[str, Any]) -> LossSum:
        losses = [self._weighed(part, inputs, outputs) for part in self.heads]
        if len(losses) == 1:  # count its labels directly: no mean number per sample is needed
            return LossSum(losses[0].total * self.heads[0].weight, losses[0].n_labels)
        terms = [
            total * (part.weight / part.labels_per_sample)
            for part, (total, count) in zip(self.heads, losses, strict=True)
            if count
        ]
        # a batch without any label still gives a tensor
        total = sum(terms, start=torch.zeros((), device=self.device))
        return LossSum(total, len(inputs.ids) if terms else 0)

    def _weighed(self, part: TaskHead, inputs: Inputs, outputs: Mapping[str, Any]) -> LossSum:
        own, targets = part.share(outputs), self._encoded(part, inputs, outputs)
        weights = None if self.weights is None else self.weights.of_batch(part, inputs.samples)
        if weights is None:
            return self._loss(part, own, targets)
        return weighed_loss(part, own, targets.to(self.device), weights)

    def _loss(
        self, part: TaskHead, outputs: Mapping[str, torch.Tensor], targets: torch.Tensor
    ) -> LossSum:
        return part.task.loss(outputs, targets.to(self.device))

    def _encoded(self, part: TaskHead, inputs: Inputs, outputs: Mapping[str, Any]) -> torch.Tensor:
        return part.task.encode(part.labels(inputs.targets), _lengths(part, outputs))

    def representations(self, samples: Iterable[Sample]) -> Iterator[TrunkOutput]:
        """Yield the representations that the heads read, sample by sample and without a graph."""
        for sample in samples:
            with self.autocast(), torch.no_grad():
                trunk = self.forward(Inputs.of([sample]))
            yield trunk

    def empty(self) -> Evaluation:
        """An evaluation of no batch yet."""
        return Evaluation([], {part.name: HeadResult(weight=part.weight) for part in self.heads})

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], *, labels: bool = True) -> Evaluation:
        """Run over batches in eval mode, and restore the modes afterwards.

        With ``labels=False`` labels are ignored and no loss is computed.
        """
        result = self.empty()
        with (
            evaluating(self.backbone, *(part.head for part in self.heads)),
            worker_errors(),
            self.forward.weights_stay(),
        ):
            for batch in watched(loaded_ahead(batches, self.ahead)):
                inputs = as_inputs(batch)
                self.add(result, inputs, self.outputs(inputs), labels=labels)
        return result

    @torch.no_grad()
    def add(
        self,
        result: Evaluation,
        inputs: Inputs,
        outputs: Mapping[str, Any],
        *,
        labels: bool = True,
    ) -> None:
        """Add the outputs of a batch to an evaluation."""
        result.ids += inputs.ids
        for part in self.heads:
            found, own = result.heads[part.name], part.share(outputs)
            sizes = _lengths(part, outputs) or [0] * len(inputs.ids)
            found.predictions += part.task.split(part.task.predictions(own), sizes)
            if not labels:
                continue
            targets = self._encoded(part, inputs, outputs)
            found.targets += part.task.split(targets, sizes)
            loss = self._loss(part, own, targets)
            found.add(*loss)
            found.add_terms(getattr(loss, "terms", {}))

    def metrics(self, result: Evaluation) -> dict[str, float]:
        """Return the metrics of an evaluation; with several heads, names begin with the head's."""
        values: dict[str, float] = {}
        for part in self.heads:
            found, task = result.heads[part.name], part.task
            if part.name:
                values[part.key("loss")] = found.loss
            measured = task.metrics(task.join(found.predictions), task.join(found.targets))
            measured |= found.mean_terms(task.term_names)
            values |= {part.key(name): value for name, value in measured.items()}
        return values

    def after_step(self, progress: float) -> None:  # noqa: ARG002
        """Tell the tasks how many optimizer steps are done."""
        self._tell_steps(self._steps + 1)

    def _tell_steps(self, steps: int) -> None:
        self._steps = steps
        for part in self.heads:
            part.task.after_step(steps)

    def resume_state(self) -> dict[str, torch.Tensor]:
        """Return the number of optimizer steps where a task depends on it."""
        depends = any(type(part.task).after_step is not Task.after_step for part in self.heads)
        return {"steps": torch.tensor(self._steps)} if depends else {}

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put it back."""
        if "steps" in state:
            self._tell_steps(int(state["steps"]))


def metric_names(heads: Iterable[TaskHead]) -> list[str]:
    """Return the names of what an epoch measures of heads, as in a row after ``val/``."""
    heads = list(heads)
    return [
        *(part.key("loss") for part in heads if part.name),
        *(
            part.key(name)
            for part in heads
            for name in (*part.task.metric_names, *part.task.term_names)
        ),
    ]


def _mean_of_pairs(pairs: Sequence[tuple[float, int]]) -> float:
    """Return the mean behind pairs of a sum and a count; NaN where nothing was counted."""
    count = sum(n for _, n in pairs)
    # fsum rounds once, so the order of batches and processes does not matter
    return math.fsum(value for value, _ in pairs) / count if count else math.nan


def _lengths(part: TaskHead, outputs: Mapping[str, Any]) -> list[int] | None:
    """Return the number of residues of each sample; None for tasks at sequence level."""
    if part.task.level == "sequence":
        return None
    return [int(n) for n in outputs["mask"].sum(1).tolist()]
