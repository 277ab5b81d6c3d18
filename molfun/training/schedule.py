"""Learning-rate multiplier by optimizer step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from molfun.training.base import FinetuneStrategy

logger = logging.getLogger(__name__)


def warmup_of(strategy: FinetuneStrategy, total_steps: int) -> int:
    """Number of warm-up steps; says so if the run is too short for them."""
    warmup = strategy.warmup_steps or int(strategy.warmup_ratio * total_steps)
    if warmup >= total_steps > 0 and warmup > 0:
        logger.warning(
            "The warm-up of %d steps is not shorter than the run (%d optimizer steps): the "
            "learning rate stays below its peak. Lower warmup_steps or accumulation_steps.",
            warmup,
            total_steps,
        )
    return warmup


def delayed(
    factor: Callable[[int], float], first_step: int, warmup_steps: int
) -> Callable[[int], float]:
    """`factor` for parameters that begin at `first_step`, with a warm-up of their own.

    Examples
    --------
    >>> late = delayed(lambda step: 0.5, first_step=10, warmup_steps=3)
    >>> [late(step) for step in (10, 11, 13)]
    [0.125, 0.25, 0.5]
    """
    if warmup_steps == 0:
        return factor

    def risen(step: int) -> float:
        done = max(0, step - first_step) + 1
        return factor(step) * min(1.0, done / (warmup_steps + 1))

    return risen


def multiplier(
    scheduler: str, *, total_steps: int, warmup_steps: int, floor: float
) -> Callable[[int], float]:
    """Make the function from optimizer step (from 0) to the factor on every learning rate.

    Warm-up rises linearly from 0, which itself is left out because a step at rate 0 is wasted:
    step ``s`` of ``w`` has the factor ``(s + 1) / (w + 1)``. After it, with
    ``p = (s - w) / (total - w)``, cosine is ``(1 + cos(pi p)) / 2`` and linear ``1 - p``, never
    below `floor`.

    Examples
    --------
    >>> factor = multiplier("cosine", total_steps=18, warmup_steps=1, floor=1e-6)
    >>> [f"{1e-3 * factor(step):.2e}" for step in (6, 12, 18)]
    ['8.01e-04', '2.77e-04', '1.00e-09']
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if scheduler == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if scheduler == "linear":
            return max(floor, 1.0 - progress)
        return max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))

    return factor
