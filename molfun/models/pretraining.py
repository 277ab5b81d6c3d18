"""Self-supervised training of a backbone, through the same engine as fine-tuning."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun._io import save_safetensors
from molfun.backbones.base import Backbone
from molfun.errors import RunError
from molfun.models import run_folder
from molfun.objectives.base import Objective
from molfun.training.base import FinetuneStrategy
from molfun.training.callbacks import Callback
from molfun.training.engine import Engine, EngineConfig, make_fabric, make_optimizer
from molfun.training.full import FullFinetune
from molfun.training.history import History
from molfun.training.ranks import Ranks
from molfun.training.selfsupervised import ObjectiveRunner

logger = logging.getLogger(__name__)

DEFAULT = FullFinetune(
    lr=4e-4, lr_head=4e-4, lr_embedder=4e-4, layer_lr_decay=1.0, warmup_ratio=0.05
)
"""Everything trains at one rate, the one of ESM-2's own pre-training."""


class Pretraining(nn.Module):
    """A backbone with an objective in the place of a head, for strategies to work on.

    Parameters
    ----------
    backbone, objective
        The parts.
    """

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: Any = objective
        self.strategy: FinetuneStrategy | None = None


def run(
    backbone: Backbone,
    objective: Objective,
    train: Any,
    val: Any,
    *,
    strategy: FinetuneStrategy,
    config: EngineConfig,
    device: torch.device,
    precision: str,
    run_dir: Path | None,
    resume: bool,
    callbacks: list[Callback],
    ranks: Ranks,
) -> History:
    """Train `backbone` on `objective`; see `MolfunStructureModel.pretrain`."""
    objective.check(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        objective.build(backbone)
    shell = Pretraining(backbone, objective.to(device))
    fabric = make_fabric(device, precision)
    runner = ObjectiveRunner(backbone, objective, device=device, autocast=fabric.autocast)
    strategy.setup(shell, seed=config.seed)
    optimizer, parameters = make_optimizer(strategy, shell)
    engine = Engine(
        runner,
        strategy,
        config,
        parameters=parameters,
        optimizer=optimizer,
        fabric=fabric,
        callbacks=[*run_folder.logs(run_dir), *callbacks],
        on_best=_keeper(backbone, run_dir if ranks.is_first else None),
        ranks=ranks,
    )
    with run_folder.held(run_dir if ranks.is_first else None):
        try:
            history = engine.fit(train, val, resume=resume)
        finally:
            backbone.eval()
    if len(history) and not history[-1]["steps"]:
        raise RunError(
            f"Nothing was trained: no batch had anything for {objective.name!r} to learn from. "
            f"Give larger batches (a DataLoader with batch_size), or look at the data."
        )
    if run_dir is not None and ranks.is_first:
        save_weights(backbone, run_dir / run_folder.WEIGHTS)
    ranks.wait()
    return history


def _keeper(backbone: Backbone, run_dir: Path | None) -> Callable[[History], None]:
    def keep(history: History) -> None:
        if run_dir is not None and history[-1]["steps"]:
            save_weights(backbone, run_dir / run_folder.WEIGHTS)

    return keep


def save_weights(backbone: Backbone, path: Path) -> None:
    """Write the weights of a backbone as a file that ``weights=`` reads."""
    backbone.mark_trained()
    metadata: Mapping[str, str] = {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint(),
        "config": json.dumps(backbone.config_dict, default=str),
    }
    if backbone.feature_names is not None:
        metadata = {**metadata, "features": json.dumps(backbone.feature_names)}
    save_safetensors(path, backbone.base_state_dict(), metadata)
