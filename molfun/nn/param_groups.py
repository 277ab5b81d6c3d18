"""Parameter groups: one learning rate each; no weight decay on biases, norms and other vectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

OUTER = ("embedder", "head", "output")
"""Groups of the first and the last layers of a model; muon leaves these to AdamW."""


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate.

    Parameters
    ----------
    name
        Name of the group in logs ("head", "block.47", ...).
    lr
        Peak learning rate.
    parameters
        Names and tensors of the parameters.
    start_epoch
        Epoch (from 0) in which they begin to train; they are frozen before.
    start_warmup
        Number of optimizer steps from that epoch on over which the learning rate rises linearly.
    """

    name: str
    lr: float
    parameters: list[tuple[str, nn.Parameter]] = field(default_factory=list)
    start_epoch: int = 0
    start_warmup: int = 0


def collect(entries: Iterable[tuple[str, float, str, nn.Parameter]]) -> list[ParameterGroup]:
    """Sort (group name, lr, parameter name, parameter) into groups, in order of appearance."""
    # the order is part of a run's state: torch stores an optimizer's moments by position
    groups: dict[str, ParameterGroup] = {}
    for group, lr, name, parameter in entries:
        groups.setdefault(group, ParameterGroup(group, lr)).parameters.append((name, parameter))
    return list(groups.values())


def for_optimizer(groups: Iterable[ParameterGroup], weight_decay: float) -> list[dict[str, object]]:
    """Return the groups as a torch optimizer takes them, each split by whether weights decay.

    Weight decay pulls weights towards zero, which makes no sense for offsets and scales: biases,
    weights of norms and all other parameters of one dimension get none. ``hidden`` says whether a
    group lies between the first and the last layers (`OUTER`), which some optimizers ask.
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
                        "hidden": group.name not in OUTER,
                        "params": [p for _, p in part],
                        "param_names": [n for n, _ in part],
                    }
                )
    return options
