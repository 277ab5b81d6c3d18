"""Self-supervised training of a backbone, through the same engine as fine-tuning."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from molfun._io import save_safetensors, write_text
from molfun.backbones.base import Backbone
from molfun.data.cells import escape
from molfun.errors import ConfigError, RunError
from molfun.models.assembly import AssembledModel, arithmetic_of
from molfun.models.loaders import data_identity, fit_inputs, samples_of
from molfun.nn import lora
from molfun.nn.process import seeded
from molfun.objectives.base import Objective, Reconstruction
from molfun.registry import OBJECTIVES
from molfun.runs.folder import RECONSTRUCTIONS, RunFolder
from molfun.strategies.base import FinetuneStrategy
from molfun.strategies.full import FullFinetune
from molfun.strict import build
from molfun.training.history import History, Row
from molfun.training.job import Job
from molfun.training.selfsupervised import ObjectiveRunner

logger = logging.getLogger(__name__)

DEFAULT = FullFinetune(
    lr=4e-4, lr_head=4e-4, lr_embedder=4e-4, layer_lr_decay=1.0, warmup_ratio=0.05
)
"""Default strategy: all weights train at 4e-4, the rate of ESM-2's own pre-training."""
MOST_RECONSTRUCTED = 4
"""Series that are written with what was hidden and predicted."""
MOST_STEPS, MOST_FEATURES = 2000, 8
"""Time steps and features of each, from the first."""


class Pretraining(nn.Module):
    """A backbone with an objective in place of a head, so that strategies apply to it unchanged.

    Parameters
    ----------
    backbone, objective
        Parts of the model; the objective becomes the attribute ``head``.
    """

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: Any = objective
        self.strategy: FinetuneStrategy | None = None


def refuse_adapters(backbone: Backbone) -> None:
    """Refuse a backbone with adapters: pre-training saves the backbone's own weights only.

    Raises
    ------
    RunError
        If the backbone carries adapters.
    """
    if lora.installed_spec(backbone) is not None:
        raise RunError(
            "The backbone carries adapters. Pre-train a new model, then fine-tune from it."
        )


def run(
    model: AssembledModel,
    job: Job,
    strategy: FinetuneStrategy,
    *,
    objective_name: str,
    objective_config: dict[str, Any],
) -> History:
    """Train the backbone of `model` on an objective; see `MolfunStructureModel.pretrain`."""
    if strategy.adds_adapters:
        raise ConfigError(
            f"Pre-training writes the backbone's own weights, and {strategy.name!r} trains "
            f"adapters next to them. Use full or partial."
        )
    backbone = model.backbone
    cls = OBJECTIVES[objective_name]
    objective: Objective = build(cls, objective_config, "objective_config")
    fit_inputs(backbone, (), job.train)
    objective.check(backbone)
    with seeded(job.seed):  # the objective's own weights depend on the seed alone
        objective.build(backbone)
    if job.divides and objective.follows:
        raise ConfigError(
            f"parallel={job.parallel!r} divides the weights that {objective_name!r} copies after "
            f"each step. Pre-train with parallel='ddp', a copy in each process."
        )
    job.set_up(Pretraining(backbone, objective.to(job.device)), strategy)
    runner = ObjectiveRunner(backbone, objective, device=job.device, autocast=job.fabric.autocast)
    identity = {
        "kernels": arithmetic_of(model),
        "base weights": model.base_fingerprint,
        "objective": {"name": objective_name, **objective.config_dict},
        **data_identity(job.train, [], job.val),
    }

    def keep(row: Row | None, folder: RunFolder | None) -> None:
        if folder is not None and row is not None and job.history[-1]["steps"]:
            save_weights(backbone, folder.weights)

    try:
        history = job.run(runner, keep, identity=identity)
    finally:
        backbone.eval()
    # a contrastive loss on batches of one, say, has no pair to compare
    if not history[-1]["steps"]:
        raise RunError(
            f"Nothing was trained: no batch had anything for {objective.name!r} to learn from. "
            f"Give larger batches (a DataLoader with batch_size), or look at the data."
        )
    if job.folder is not None and job.ranks.is_first:
        write_reconstructions(runner, job, job.folder)
    return history


def write_reconstructions(runner: ObjectiveRunner, job: Job, folder: RunFolder) -> None:
    """Write a few series of the validation set (of the training set, without one) as filled in.

    One row per value: ``id,step,feature,value,hidden,predicted``, in the units of the data; an
    empty value was never observed. An objective that predicts no values writes nothing.
    """
    data = job.train if job.val is None else job.val
    # one by one: a series may be as long as the memory holds
    samples = list(itertools.islice(samples_of([data]), MOST_RECONSTRUCTED))
    found = [(s.id, one) for s in samples for one in runner.reconstruct([s]) or ()]
    if not found:
        if RECONSTRUCTIONS in folder.replaced:  # of the run before
            folder.reconstructions.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "step", "feature", "value", "hidden", "predicted"])
    for name, one in found:
        writer.writerows(_cells(name, one, runner.backbone.feature_names))
    write_text(folder.reconstructions, text.getvalue())


def _cells(series: str, found: Reconstruction, names: list[str] | None) -> Iterator[list[Any]]:
    steps, features = found.values.shape
    shown = (names or [str(i) for i in range(features)])[:MOST_FEATURES]
    for i, (j, name) in itertools.product(range(min(steps, MOST_STEPS)), enumerate(shown)):
        value = "" if np.isnan(found.values[i, j]) else f"{found.values[i, j]:.6g}"
        predicted = f"{found.predicted[i, j]:.6g}"
        yield [escape(series), i, escape(name), value, int(found.hidden[i, j]), predicted]


def save_weights(backbone: Backbone, path: Path) -> None:
    """Write the weights of a backbone to a file that the argument ``weights`` reads."""
    # weights that the base file lacked were random until now, and are part of the identity from
    # here on; see `Backbone.mark_trained`
    backbone.mark_trained()
    metadata: Mapping[str, str] = {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint(),
        "config": json.dumps(backbone.config_dict, default=str),
    }
    if backbone.feature_names is not None:
        metadata = {**metadata, "features": json.dumps(backbone.feature_names)}
    save_safetensors(path, backbone.base_state_dict(), metadata)
