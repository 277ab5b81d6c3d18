"""Build the optimizer of a strategy, and unfreeze its groups of parameters epoch by epoch."""

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
    """Return the optimizer over the strategy's groups, and its parameters by name."""
    groups = strategy.groups(model)
    parameters = {name: p for group in groups for name, p in group.parameters}
    optimizer = build_optimizer(
        strategy.optimizer,
        for_optimizer(groups, strategy.weight_decay),
        momentum=strategy.momentum,
    )
    return optimizer, parameters


def let_train(optimizer: torch.optim.Optimizer, epoch: int) -> bool:
    """Freeze groups that begin after `epoch` (from 0), unfreeze others; return if any changed.

    A frozen parameter gets no gradient, so that no optimizer, weight decay or average moves it,
    although it is in the optimizer from the start.
    """
    changed = False
    for group in optimizer.param_groups:
        active = epoch >= group["start_epoch"]
        for parameter in group["params"]:
            changed |= parameter.requires_grad != active
            parameter.requires_grad_(active)
    return changed


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rate of the next step of each group of parameters, by its name."""
    # matrices and vectors of a group are apart for weight decay, with the same rate
    return {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}


def shown_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of the next step: of the head, or of the first group without one."""
    # logs have one column for the rate, and the head is in nearly every strategy
    rates = rates_of(optimizer)
    return rates.get("head", next(iter(rates.values())))


def warn_of_late_starts(optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Warn of parameters that begin to train only after the last epoch."""
    late = [g for g in optimizer.param_groups if g["start_epoch"] >= epochs]
    if late:
        names = ", ".join(dict.fromkeys(str(group["name"]) for group in late))
        logger.warning(
            "%s begin to train in epoch %d, and this run has %d: they do not change.",
            names,
            1 + min(int(group["start_epoch"]) for group in late),
            epochs,
        )
