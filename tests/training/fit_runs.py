"""Fits that can be killed at any batch, also in a process of their own.

``python fit_runs.py FOLDER '{"stop_at": 7, "number": 9}'`` runs `run_fit` with these arguments.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import LENGTHS, build_batches, build_samples, build_tiny_model
from torch.utils.data import DataLoader, Dataset

from molfun.data.batching import LengthBatchSampler
from molfun.models.structure import MolfunStructureModel
from molfun.parallel.launch import fabric_for
from molfun.sample import Sample, SampleBatch
from molfun.training import Callback, FinetuneStrategy, LoRAFinetune
from molfun.training import engine as engine_module
from molfun.training.engine import Engine
from molfun.training.engine_config import EngineConfig
from molfun.training.groups import make_optimizer
from molfun.training.supervised import SupervisedRunner

STRATEGY = LoRAFinetune(
    rank=2, lr_lora=1e-2, dropout=0.2, ema_decay=0.9, accumulation_steps=3, warmup_steps=1
)
N_SAMPLES, BATCHES, EPOCHS = 7, 7, 2


class NoisySamples(Dataset[Sample]):
    """Samples whose labels carry noise from all three generators, drawn on every access."""

    def __init__(self, samples: Sequence[Sample], *, infinite: str | None = None) -> None:
        self.samples = [replace(s, target=math.inf) if s.id == infinite else s for s in samples]
        self.ids = [sample.id for sample in self.samples]
        self.targets = [sample.target for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        assert sample.target is not None
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        return replace(sample, target=sample.target + noise)


@dataclass
class Outcome:
    """What a fit gave, in a form that can be compared bit by bit."""

    history: list[dict[str, Any]]
    stopped: str
    weights: dict[str, torch.Tensor]
    order: list[str]
    """Ids of the samples in the order of training."""

    def same_results(self, other: Outcome) -> bool:
        """Equal history (NaN equals NaN) and weights; the order is a matter of its own."""
        return (
            repr(self.history) == repr(other.history)
            and self.stopped == other.stopped
            and self.weights.keys() == other.weights.keys()
            and all(torch.equal(self.weights[n], other.weights[n]) for n in self.weights)
        )


class Crash(Exception):  # noqa: N818
    """Stands for whatever kills a run."""


class StopAt(Callback):
    """Raise, or send a signal to this process, in the `at`-th batch of the fit (from 1)."""

    def __init__(self, at: int, number: int | None = None) -> None:
        self.at, self.number, self.seen = at, number, 0

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        self.seen += 1
        if self.seen == self.at:
            if self.number is None:
                raise Crash
            os.kill(os.getpid(), self.number)


def run_fit(
    folder: str | Path | None,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    number: int | None = None,
    num_workers: int = 0,
    seed: int = 5,
    save_every_batch: bool = True,
    strategy: FinetuneStrategy = STRATEGY,
    callbacks: Sequence[Callback] = (),
    model: MolfunStructureModel | None = None,
    with_val: bool = True,
    infinite: str | None = None,
    by_length: Mapping[str, Any] | None = None,
    **options: Any,
) -> Outcome:
    """Fit a fresh tiny model on `N_SAMPLES` shuffled single samples, or on batches by length."""
    if model is None:
        model = build_tiny_model(backbone_config={"fill_zero_init": 0.1, "checkpointing": False})
    batching: dict[str, Any] = {"batch_size": 1, "shuffle": True}
    if by_length is not None:
        lengths = LENGTHS[:N_SAMPLES]
        batching = {"batch_sampler": LengthBatchSampler(lengths=lengths, **by_length)}
    train = DataLoader(
        NoisySamples(build_samples(N_SAMPLES), infinite=infinite),
        num_workers=num_workers,
        collate_fn=SampleBatch,
        **batching,
    )
    stops = [] if stop_at is None else [StopAt(stop_at, number)]
    order: list[str] = []
    original, seconds = engine_module.as_inputs, engine_module.STATE_EVERY_SECONDS

    def recording(batch: Any) -> Any:
        inputs = original(batch)
        order.extend(inputs.ids)
        return inputs

    engine_module.as_inputs = recording  # type: ignore[assignment]
    if save_every_batch:
        engine_module.STATE_EVERY_SECONDS = -1.0
    try:
        history = model.fit(
            train,
            build_batches(3, seed=1, prefix="v") if with_val else None,
            strategy=strategy,
            output_dir=folder,
            resume=resume,
            seed=seed,
            callbacks=[*callbacks, *stops],
            **{"epochs": EPOCHS, **options},
        )
    finally:
        engine_module.as_inputs = original
        engine_module.STATE_EVERY_SECONDS = seconds
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    return Outcome(list(history), history.stopped, weights, order)


def make_engine(
    model: MolfunStructureModel,
    strategy: FinetuneStrategy,
    *,
    targets: Sequence[float] = (5.0, 7.0),
    callbacks: Sequence[Callback] = (),
    **config: Any,
) -> Engine:
    """An engine over a model, as the facade makes it, but for callers who look inside."""
    assert model.head is not None
    assert model.task is not None
    model.task.fit_targets(np.array(targets))
    strategy.setup(model)
    optimizer, parameters = make_optimizer(strategy, model)
    return Engine(
        SupervisedRunner(model.backbone, model.heads, device=model.device),
        strategy,
        EngineConfig(**{"epochs": 1, **config}),
        parameters=parameters,
        optimizer=optimizer,
        fabric=fabric_for(model.device, "32-true"),
        callbacks=callbacks,
    )


if __name__ == "__main__":
    run_fit(sys.argv[1], **json.loads(sys.argv[2]))
