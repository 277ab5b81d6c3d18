"""Fit under ``torchrun``: ``parallel_fit.py FOLDER '{"accumulation": 1}'`` writes what came out."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import PET_TINY, build_atoms, build_samples, build_series
from torch import nn
from torch.utils.data import DataLoader, Dataset

from molfun import FullFinetune, LoRAFinetune, MolfunStructureModel, PartialFinetune
from molfun.nn.mapped import is_mapped
from molfun.sample import Sample, SampleBatch
from molfun.training import Callback, FinetuneStrategy, GradualFinetune

BACKBONES: dict[str, tuple[str, Any]] = {
    "timeseries": (
        "timeseries",
        {"name": "transformer", "d_input": 3, "d_model": 16, "n_heads": 2, "dropout": 0.0},
    ),
    "esm2": ("esm2", "esm2_t3_d16_h2"),
    "esmc": ("esmc", {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}),
    "saprot": ("saprot", {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}),
    "pet": ("pet", PET_TINY),
    "openfold": ("openfold", "tiny"),
}
FAMILIES = ("esmc", "saprot")
"""Families of transformers; the blocks of T5 share weights, so that they are not divided."""


class Samples(Dataset[Sample]):
    """A list of samples as a map-style data set."""

    collate_fn = SampleBatch

    def __init__(self, samples: list[Sample], dies_in: str = "", dies_at: int = 0) -> None:
        self.dies_in, self.dies_at = dies_in, dies_at
        self.samples = samples
        self.ids = [s.id for s in samples]
        self.targets = [s.target for s in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        if self.dies_at and os.environ.get("RANK") == self.dies_in:
            self.dies_at -= 1
            if not self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.samples[index]


class Kill(Callback):
    """Send a signal to this process, or to its torchrun, at the end of a batch."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number, self.seen = at, number, 0

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), self.number)


class Predicting(Callback):
    """Run the model in the first process alone."""

    def __init__(self, model: MolfunStructureModel, samples: list[Sample], when: str) -> None:
        self.model, self.samples = model, samples
        setattr(self, when, self.predict)

    def predict(self, *_: Any) -> None:
        self.model.predict(self.samples)


def energies(*args: Any, **options: Any) -> list[Sample]:
    """Atoms without forces."""
    samples = build_atoms(*args, **options)
    return [replace(s, target={"energy": s.target["energy"]}) for s in samples]


def strategy_of(name: str, accumulation: int, optimizer: str) -> FinetuneStrategy:
    """The strategy by name, without chance."""
    shared: dict[str, Any] = {"accumulation_steps": accumulation, "ema_decay": 0.9}
    shared["optimizer"] = optimizer
    full = FullFinetune(lr=1e-3)
    return {
        "gradual": GradualFinetune(inner=full, unfreeze_epoch=2, **shared),
        "blocks": GradualFinetune(inner=full, blocks_per_stage=1, stage_warmup_steps=2, **shared),
        "full": FullFinetune(lr=1e-3, **shared),
        "partial": PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-3, **shared),
        "lora": LoRAFinetune(rank=2, lr_lora=1e-3, **shared),
    }[name]


def run(
    *,
    backbone: str = "timeseries",
    strategy: str = "gradual",
    accumulation: int = 1,
    n: int = 11,
    epochs: int = 4,
    augment: bool = True,
    objective: str | None = None,
    folder: str | None = None,
    resume: bool = False,
    kill_at: int | None = None,
    bad: bool = False,
    dies: str = "",
    parallel: str = "auto",
    forces: bool = True,
    optimizer: str = "adamw",
    save_every: int | None = None,
    precision: str | None = None,
    mmap: bool = False,
    runs_model: str = "",
) -> dict[str, Any]:
    """Train and give what can be compared."""
    torch.set_num_threads(1)
    name, config = BACKBONES[backbone]
    parts: dict[str, Any] = {"head": "regression", "head_config": {"dropout": 0.0}}
    if backbone == "pet":
        parts = {"head": "energy", "backbone_config": {"augment": augment}}
    if mmap:
        parts["backbone_config"] = {"mmap": True}
    model = MolfunStructureModel(name, config=config, device="cpu", **parts)
    for module in model.backbone.modules():
        if isinstance(module, nn.Dropout):  # AlphaFold's; other models here have none
            module.p = 0.0
    build = {"timeseries": build_series, "pet": build_atoms}.get(backbone, build_samples)
    if backbone == "pet" and not forces:
        build = energies
    samples = build(n)
    data = Samples(samples, dies_in=dies, dies_at=9 if dies else 0)
    if bad:  # when the scale of the labels is known
        data.samples[3] = replace(samples[3], target=math.inf)
    train = DataLoader(data, batch_size=2, shuffle=True, collate_fn=SampleBatch)
    val = DataLoader(Samples(build(5, seed=1, prefix="v")), batch_size=2, collate_fn=SampleBatch)
    callbacks: list[Callback] = [] if kill_at is None else [Kill(kill_at, signal.SIGTERM)]
    if runs_model:
        callbacks.append(Predicting(model, samples[:2], runs_model))
    options: dict[str, Any] = {
        "epochs": epochs, "output_dir": folder, "resume": resume, "seed": 3,
        "callbacks": callbacks,
        "strategy": strategy_of(strategy, accumulation, optimizer), "parallel": parallel,
        "precision": precision, "save_every_steps": save_every,
    }  # fmt: skip
    if objective is not None:
        history = model.pretrain(train, val, objective=objective, **options)
    else:
        history = model.fit(train, val, **options)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert all(type(p) is nn.Parameter for p in model.parameters())  # whole again
    in_file = [n for n, p in model.named_parameters() if is_mapped(p)]
    return {"history": [dict(row) for row in history], "weights": weights, "in_file": in_file}


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    result: Any = (
        [run(**one) for one in settings] if isinstance(settings, list) else run(**settings)
    )
    torch.save(result, Path(sys.argv[1]) / f"rank{os.environ.get('RANK', '0')}.pt")
