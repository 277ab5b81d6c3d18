"""The optimizer over a strategy's groups of parameters, and when each begins to train."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from molfun.nn.optimizers import build_optimizer
from molfun.nn.param_groups import for_optimizer
from molfun.strategies.base import FinetuneStrategy

logger = logging.getLogger(__name__)


def make_optimizer(
    strategy: FinetuneStrategy, model: Any
) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    """The strategy's optimizer over its groups, and the parameters in it by name."""
    groups = strategy.groups(model)
    parameters = {name: p for group in groups for name, p in group.parameters}
    optimizer = build_optimizer(
        strategy.optimizer,
        for_optimizer(groups, strategy.weight_decay),
        momentum=strategy.momentum,
    )
    return optimizer, parameters


def let_train(optimizer: torch.optim.Optimizer, epoch: int) -> bool:
    """Freeze what begins after `epoch` (from 0), unfreeze the rest; whether any changed."""
    changed = False
    for group in optimizer.param_groups:
        active = epoch >= group["start_epoch"]
        for parameter in group["params"]:
            changed |= parameter.requires_grad != active
            parameter.requires_grad_(active)
    return changed


def shown_lr(optimizer: torch.optim.Optimizer) -> float:
    """Learning rate of the head, where there is one, for the next step."""
    rates = {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}
    return rates.get("head", next(iter(rates.values())))


def warn_of_late_starts(optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Say what never begins to train in a run of so many epochs."""
    late = [g for g in optimizer.param_groups if g["start_epoch"] >= epochs]
    if late:
        names = ", ".join(dict.fromkeys(str(group["name"]) for group in late))
        logger.warning(
            "%s begin to train in epoch %d, and this run has %d: they stay as they are.",
            names,
            1 + min(int(group["start_epoch"]) for group in late),
            epochs,
        )
