"""Parameter groups: one learning rate each, no weight decay on biases, norms and vectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate.

    Parameters
    ----------
    name
        What to call the group in logs ("head", "block.47", ...).
    lr
        Peak learning rate.
    parameters
        Names and tensors.
    start_epoch
        Epoch (from 0) before which they are frozen.
    start_warmup
        Optimizer steps from there on over which the learning rate rises linearly.
    """

    name: str
    lr: float
    parameters: list[tuple[str, nn.Parameter]] = field(default_factory=list)
    start_epoch: int = 0
    start_warmup: int = 0


def collect(entries: Iterable[tuple[str, float, str, nn.Parameter]]) -> list[ParameterGroup]:
    """Sort (group name, lr, parameter name, parameter) into groups, in order of appearance."""
    groups: dict[str, ParameterGroup] = {}
    for group, lr, name, parameter in entries:
        groups.setdefault(group, ParameterGroup(group, lr)).parameters.append((name, parameter))
    return list(groups.values())


def for_optimizer(groups: Iterable[ParameterGroup], weight_decay: float) -> list[dict[str, object]]:
    """Options of a torch optimizer; each group is split by whether it takes weight decay.

    Weight decay pulls weights towards zero, which has no meaning for offsets and scales: biases,
    normalisation weights and all other parameters of one dimension get none.
    """
    options = []
    for group in groups:
        matrices = [(n, p) for n, p in group.parameters if p.ndim > 1]
        vectors = [(n, p) for n, p in group.parameters if p.ndim <= 1]
        for part, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if part:
                options.append(
                    {
                        "name": group.name,
                        "lr": group.lr,
                        "weight_decay": decay,
                        "start_epoch": group.start_epoch,
                        "start_warmup": group.start_warmup,
                        "params": [p for _, p in part],
                        "param_names": [n for n, _ in part],
                    }
                )
    return options
