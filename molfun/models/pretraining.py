"""Self-supervised training of a backbone, through the same engine as fine-tuning."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from molfun._io import save_safetensors
from molfun.backbones.base import Backbone
from molfun.errors import ConfigError, RunError
from molfun.models.assembly import AssembledModel, arithmetic_of
from molfun.models.loaders import data_identity, fit_inputs
from molfun.nn import lora
from molfun.nn.process import seeded
from molfun.objectives.base import Objective
from molfun.registry import OBJECTIVES
from molfun.runs.folder import RunFolder
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
    return history


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
