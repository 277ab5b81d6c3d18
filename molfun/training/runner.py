"""Run the model on batches: with a graph where something trains, cached where nothing does."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from molfun.backbones.base import Backbone, Features
from molfun.errors import DataError
from molfun.heads.base import Head
from molfun.sample import Sample, SampleBatch
from molfun.tasks.base import LossSum, Task
from molfun.training.cache import PrefixCache
from molfun.training.feature_cache import FeatureCache
from molfun.training.loading import watched, worker_errors
from molfun.trunk import SAMPLE_LEVEL, TrunkOutput

logger = logging.getLogger(__name__)

REPRESENTATIONS = {"single", "mean", "cls"}
"""Features of a sample that stand for the backbone's output."""
TARGET_KEYS = ("target", "targets", "affinity", "label")


@dataclass(frozen=True)
class Inputs:
    """One batch in the form the runner takes.

    Either `samples`, or the backbone's own tensors in `features` (with a batch dimension).
    """

    ids: list[str]
    targets: list[Any]
    samples: Sequence[Sample] = ()
    features: Features | None = None


def as_inputs(batch: Any) -> Inputs:
    """Accept what a loader may give: samples, or a dict of the backbone's tensors.

    Raises
    ------
    DataError
        If the batch is neither.
    """
    if isinstance(batch, Inputs):
        return batch
    if isinstance(batch, Sample):
        batch = SampleBatch([batch])
    if isinstance(batch, list | tuple) and batch and all(isinstance(s, Sample) for s in batch):
        batch = SampleBatch(batch)
    if isinstance(batch, SampleBatch):
        return Inputs(ids=batch.ids, targets=batch.targets, samples=batch.samples)
    if isinstance(batch, Mapping):
        return _from_mapping(batch)
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
        return _from_mapping({**batch[0], "target": batch[1]})
    if isinstance(batch, list | tuple) and not batch:
        raise DataError("There is nothing in this batch: the list is empty.")
    raise DataError(
        f"Cannot use a batch of type {type(batch).__name__}. Give samples (a data set such as "
        f"SequenceDataset or AtomsDataset, or a DataLoader with the collate_fn of one), or a dict "
        f"of the backbone's tensors."
    )


def _from_mapping(batch: Mapping[str, Any]) -> Inputs:
    features = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    target = next((features.pop(k) for k in TARGET_KEYS if k in features), None)
    if not features:
        raise DataError(f"The batch is a dict without input tensors (keys: {sorted(batch)}).")
    # packed features have no batch dimension; their shape table has one
    size = features.get("shape", next(iter(features.values()))).shape[0]
    targets: list[Any] = [None] * size
    if target is not None:
        flat = target.ndim <= 1 or target.numel() == size
        targets = target.reshape(-1).tolist() if flat else list(target.cpu().numpy())
    ids = list(batch.get("ids", batch.get("pdb_id", [f"sample_{i}" for i in range(size)])))
    return Inputs(ids=[str(i) for i in ids], targets=targets, features=features)


def set_modes(module: nn.Module, *, training: bool, inherited: bool = False) -> None:
    """Put what trains into training mode and what is frozen into eval mode.

    A module without parameters (dropout) follows the module that holds it: dropout is active in a
    block where something trains, and in no frozen one.
    """
    parameters = list(module.parameters())
    active = any(p.requires_grad for p in parameters) if parameters else inherited
    module.training = training and active
    for child in module.children():
        set_modes(child, training=training, inherited=active)


@dataclass(frozen=True)
class FrozenPart:
    """How much of a backbone does not train, from its beginning on.

    Parameters
    ----------
    n_blocks
        Leading blocks that are frozen along with all in front of them.
    whole
        Whether nothing of it trains.
    splits
        Whether the forward pass can be divided behind these blocks, though something trains.
    """

    n_blocks: int
    whole: bool
    splits: bool

    @classmethod
    def of(cls, backbone: Backbone, needs: Sequence[str]) -> Self:
        """What is frozen now; `needs` are the outputs that are asked for."""
        n_blocks = backbone.frozen_blocks()
        return cls(
            n_blocks=n_blocks,
            whole=not any(p.requires_grad for p in backbone.parameters()),
            splits=n_blocks > 0 and backbone.splits_before(n_blocks, needs),
        )


@dataclass
class Evaluation:
    """Predictions over a data set, in input order."""

    ids: list[str] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    loss_total: float = 0.0
    loss_count: int = 0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One evaluation from those of several processes."""
        return cls(
            ids=[i for part in parts for i in part.ids],
            predictions=[p for part in parts for p in part.predictions],
            targets=[t for part in parts for t in part.targets],
            loss_total=math.fsum(part.loss_total for part in parts),
            loss_count=sum(part.loss_count for part in parts),
        )

    @property
    def loss(self) -> float:
        """Mean loss a label; NaN without labels."""
        return self.loss_total / self.loss_count if self.loss_count else math.nan


class Runner(Protocol):
    """What the engine needs of a model: a head and a task on it, or an objective."""

    backbone: Backbone
    head: Any
    metric_names: list[str]
    higher_is_better: frozenset[str]

    def outputs(self, inputs: Inputs) -> dict[str, Any]:
        """Outputs of a batch."""

    def loss(self, inputs: Inputs, outputs: Mapping[str, Any]) -> LossSum:
        """Loss of a batch over its labels."""

    def after_step(self, progress: float) -> None:
        """Be told of an optimizer step, with the share of all that are done."""

    def trainable_changed(self) -> None:
        """Be told that other parameters train from now on."""

    def resume_state(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs besides the parameters."""

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what `resume_state` gave."""

    def evaluate(self, batches: Iterable[Any]) -> Any:
        """Run over batches in eval mode; gives something with ``loss``."""

    def metrics(self, result: Any) -> dict[str, float]:
        """Metrics of an evaluation."""


class ModelRunner:
    """Backbone, head and task as one function from a batch to outputs and loss.

    Parameters
    ----------
    backbone, head, task
        The parts.
    device
        Where they are.
    autocast
        Makes the context for mixed precision.
    make_cache
        Makes the cache of what the frozen part of the backbone gives: its outputs, or its
        activations at the first block that trains. None computes them each time.
    features
        Featurises samples; None asks the backbone every time.
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
        self._make_cache = make_cache
        self._reports: list[str] = []
        self.cache: PrefixCache | None = None
        self.trainable_changed()
        self._featurizer = features or FeatureCache(backbone, None)

    def resume_state(self) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def load_resume_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing."""

    def trainable_changed(self) -> None:
        """Look anew at what is frozen: the cache of before holds something else."""
        self._reports = self.cache_reports()
        self.frozen = FrozenPart.of(self.backbone, self.head.needs)
        self.cache = None  # frees the entries before there are others
        self.cache = self._make_cache()

    def cache_reports(self) -> list[str]:
        """What each cache saved, where it was of use."""
        last = "" if self.cache is None else self.cache.report()
        return [*self._reports, *([last] if last else [])]

    def outputs(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Head outputs of a batch."""
        with self.autocast():
            trunk = self._trunk(inputs)
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

    def after_step(self, progress: float) -> None:
        """Nothing: no part follows the steps."""

    def _trunk(self, inputs: Inputs) -> TrunkOutput:
        if not self.frozen.whole:
            self._refuse_given(inputs)
            if self.frozen.splits:
                return self._run_from_prefix(inputs)
            return self._run(self._features(inputs))
        with torch.no_grad():
            if inputs.features is not None:
                return self._run(self._features(inputs))
            pooled = self._given_pooled(inputs.samples)
            if pooled is not None:
                return pooled
            # one by one: no work on padding, and cached and fresh results are the same bits
            return TrunkOutput.stack([self._frozen_one(sample) for sample in inputs.samples])

    def _frozen_one(self, sample: Sample) -> TrunkOutput:
        given = self._given(sample)
        if given is not None:
            return given
        if self.cache is None:
            return self._run(self._collate([sample]))
        key = self.cache.key(sample.content_key())
        stored = self.cache.get(key)
        if stored is None:
            start = time.perf_counter()
            output = self._run(self._collate([sample]))
            stored = self.cache.put(key, output.tensors(), since=start)
        return TrunkOutput.from_tensors(self._to_device(stored))

    @torch.no_grad()
    def representations(self, samples: Iterable[Sample]) -> Iterator[TrunkOutput]:
        """What the head reads of each sample, from a frozen backbone."""
        for sample in samples:
            with self.autocast():
                yield self._frozen_one(sample)

    @staticmethod
    def _refuse_given(inputs: Inputs) -> None:
        """A backbone that trains has to run; what samples bring along would be out of date."""
        for sample in inputs.samples:
            if REPRESENTATIONS & set(sample.features or {}):
                raise DataError(
                    f"{sample.id} comes with representations, but parts of the backbone train. "
                    f"Use HeadOnlyFinetune, or a data set without representations."
                )

    def _given_pooled(self, samples: Sequence[Sample]) -> TrunkOutput | None:
        """What `_given` says of many samples, where each brings one vector along."""
        needs = self.head.needs
        if not set(needs) <= set(SAMPLE_LEVEL):
            return None
        tensors = {}
        for name in needs:
            rows = [np.asarray((s.features or {}).get(name, ())) for s in samples]
            if any(row.shape != (self.backbone.single_dim,) for row in rows):
                return None  # one by one, for the message
            tensors[name] = torch.as_tensor(np.stack(rows), device=self.device).float()
        mask = torch.ones(len(samples), 1, device=self.device)
        return TrunkOutput.from_tensors({**tensors, "mask": mask})

    def _given(self, sample: Sample) -> TrunkOutput | None:
        """What the head reads, where the sample brings it along."""
        names = REPRESENTATIONS & set(sample.features or {})
        if not names:
            return None
        missing = sorted(set(self.head.needs) - names)
        if missing:
            raise DataError(
                f"{sample.id} comes with the representation {', '.join(sorted(names))}, but the "
                f"head reads {', '.join(missing)}. Embed with another pooling, or choose another "
                f"head or pooling."
            )
        tensors = {
            n: torch.as_tensor((sample.features or {})[n], device=self.device).float()[None]
            for n in self.head.needs
        }
        for name, tensor in tensors.items():
            if tensor.shape[-1] != self.backbone.single_dim:
                raise DataError(
                    f"{sample.id}: its representation {name!r} has {tensor.shape[-1]} channels, "
                    f"the backbone {self.backbone.single_dim}. Choose the backbone it came from."
                )
        length = tensors["single"].shape[1] if "single" in tensors else 1
        return TrunkOutput.from_tensors(
            {**tensors, "mask": torch.ones(1, length, device=self.device)}
        )

    def _run_from_prefix(self, inputs: Inputs) -> TrunkOutput:
        """Run the part that trains on what the frozen blocks give, computed now or before."""
        with torch.no_grad():
            if self.cache is None or not inputs.samples:
                features = self._to_device(self._features(inputs))
                state = self.backbone.run_prefix(features, self.frozen.n_blocks)
            else:
                # one by one, so that a resumed run computes the same bits in any order of samples
                states = [self._prefix_one(sample, self.cache) for sample in inputs.samples]
                state = self._to_device(self.backbone.join_states(states))
        return self.backbone.run_suffix(state, self.frozen.n_blocks, outputs=self.head.needs)

    def _prefix_one(self, sample: Sample, cache: PrefixCache) -> Features:
        key = cache.key(sample.content_key())
        state = cache.get(key)
        if state is None:
            start = time.perf_counter()
            features = self._to_device(self._collate([sample]))
            fresh = self.backbone.run_prefix(features, self.frozen.n_blocks)
            state = cache.put(key, fresh, since=start)
        return state

    def _to_device(self, features: Features) -> Features:
        return {k: v.to(self.device, non_blocking=True) for k, v in features.items()}

    def _features(self, inputs: Inputs) -> Features:
        if inputs.features is not None:
            self.backbone.check_batch(inputs.features)
            return inputs.features
        return self._collate(inputs.samples)

    def _collate(self, samples: Sequence[Sample]) -> Features:
        return self.backbone.collate([self._featurizer.features(sample) for sample in samples])

    def _run(self, features: Features) -> TrunkOutput:
        moved = self._to_device(features)
        return self.backbone(moved, outputs=self.head.needs).select(self.head.needs)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], *, labels: bool = True) -> Evaluation:
        """Run over batches in eval mode; the modes are put back as they were.

        Without `labels` none is looked at, and there is no loss.
        """
        modules = nn.ModuleList([self.backbone, self.head])
        modes = [(module, module.training) for module in modules.modules()]
        modules.eval()
        result = Evaluation()
        try:
            with worker_errors():
                for batch in watched(batches):
                    self._evaluate_one(as_inputs(batch), result, labels=labels)
        finally:
            for module, mode in modes:
                module.training = mode
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
