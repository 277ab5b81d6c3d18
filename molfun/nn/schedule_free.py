"""Schedule-free AdamW of the package pytorch-optimizer."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from molfun._lazy import require

INSTALL = "pip install 'molfun[optimizers]'"


def schedule_free_adamw(params: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """Return an AdamW that averages the weights of all its steps in place of a schedule.

    It trains at ``y = (1 - b) z + b x`` between the weights ``z`` of its steps and their average
    ``x``, and ``b`` is the first of the betas. The model holds ``y`` while it trains; call
    ``optimizer.eval()`` for ``x``, which is what is validated and kept, and ``optimizer.train()``
    to go on. `molfun.training.ema.OwnAverage` does so in a fit.

    Parameters
    ----------
    params
        Parameters or groups of them.
    **options
        ``lr``, ``weight_decay`` and ``betas``.

    Raises
    ------
    MissingDependencyError
        If pytorch-optimizer is not installed.

    References
    ----------
    Defazio et al. 2024, "The Road Less Scheduled".
    """
    return _optimizer_class()(params, **options)


schedule_free_adamw.averages_weights = True  # type: ignore[attr-defined]  # a note on the function


@functools.cache
def _optimizer_class() -> Any:
    stock: Any = require("pytorch_optimizer", INSTALL).ScheduleFreeAdamW

    class ScheduleFreeAdamW(stock):
        param_groups: list[dict[str, Any]]

        """The stock optimizer, for which a group begins with its first gradient."""

        def step(self, closure: Any = None) -> Any:
            # a group counts its steps whether it trains or not: of one that begins to train later,
            # the average would stay at its first weights
            groups = self.param_groups
            self.param_groups = [
                group for group in groups if any(p.grad is not None for p in group["params"])
            ]
            try:
                return super().step(closure)
            finally:
                self.param_groups = groups

    return ScheduleFreeAdamW
