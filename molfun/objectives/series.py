"""Base and helpers of objectives on time series."""

from __future__ import annotations

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.objectives.base import Objective, need
from molfun.strict import Configured


class SeriesObjective(Configured, Objective):
    """Base of the objectives on time series."""

    def check(self, backbone: nn.Module) -> None:
        """Need a backbone of time series."""
        names = ("encode", "scaled", "single_dim", "d_input")
        need(self.name, backbone, "a backbone of time series", names)


def two_layers(width: int, out: int) -> nn.Sequential:
    """Return a hidden layer as wide as the input, followed by a linear one."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def random_blocks(
    length: int, share: float, n_blocks: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Mark about `share` of the steps in `n_blocks` pieces that may overlap: (length,) bool.

    At least one step is marked, and at least one is not where there are two.

    Examples
    --------
    >>> marked = random_blocks(20, 0.5, 2, torch.Generator().manual_seed(0))
    >>> 5 <= int(marked.sum()) <= 10
    True
    """
    size = max(1, round(share * length / n_blocks))
    if length > 1:
        size = min(size, length - 1)
    starts = torch.randint(0, length - size + 1, (n_blocks,), generator=generator)
    steps = torch.arange(length)
    marked = ((steps >= starts[:, None]) & (steps < starts[:, None] + size)).any(0)
    if length > 1 and bool(marked.all()):
        marked[torch.randint(0, length, (), generator=generator)] = False
    return marked


def check_share(name: str, value: float) -> None:
    """Refuse what is no share between 0 and 1.

    Raises
    ------
    ConfigError
        Naming the setting.
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name} must be above 0 and below 1, got {value}.")
