"""Weights that the models of an ensemble have in common, held in memory once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun.errors import CheckpointError, ConfigError
from molfun.models import persistence
from molfun.models.structure import MolfunStructureModel


def check_alike(models: Sequence[MolfunStructureModel]) -> None:
    """Refuse models that differ in backbone, heads or tasks.

    Raises
    ------
    ConfigError
        Naming the first that does.
    """
    first, *others = [_outline(model) for model in models]
    for i, other in enumerate(others, start=2):
        differ = [name for name in first if first[name] != other[name]]
        if differ:
            raise ConfigError(
                f"Model {i} of the ensemble differs from the first in {', '.join(differ)}: its "
                f"predictions mean something else."
            )


def _outline(model: MolfunStructureModel) -> dict[str, Any]:
    return {
        "backbone": (model.backbone.name, dict(model.backbone.config_dict)),
        "heads": [(part.name, part.head_name) for part in model.need_heads("Ensemble")],
        "tasks": [(part.task_name, getattr(part.task, "classes", None)) for part in model.heads],
    }


def share(ours: nn.Module, theirs: nn.Module) -> None:
    """Hold weights of `theirs` that equal those of `ours` in the memory of these."""
    known = {_plain(name): tensor for name, tensor in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        same = known.get(_plain(name))
        if same is not None and _equal(same, parameter):
            parameter.data = same.data


def _plain(name: str) -> str:
    """Return the name of a weight without the layers that adapters put around it."""
    return name.replace(".base_layer.", ".")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)


def copied(model: MolfunStructureModel, path: Path) -> MolfunStructureModel | None:
    """Return a checkpoint loaded into a copy of a model, which is quicker than to build another.

    None if it needs another model: one with adapters, or without.
    """
    made = copy.deepcopy(model)
    try:
        persistence.load(made, path)
    except CheckpointError:  # a damaged one is refused again where it is built
        return None
    return made
