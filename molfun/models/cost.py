"""Predict the time of an epoch from the operations of the blocks and the speed of the machine."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from molfun.backbones.base import Backbone
from molfun.backbones.planning import BlockCosts
from molfun.backbones.splitting import frozen_blocks
from molfun.errors import DataError
from molfun.nn import kernels

LOOKED_AT = 8
"""Samples, evenly spread over the lengths, whose operations are counted; others lie between."""
EFFICIENCY = 0.5
"""Part of the speed of a large product that a step reaches: 0.3 for small models, 0.9 for large."""
WITHIN = 5
"""Factor within which the estimate is meant to hold."""
_ROWS, _INNER, _OUTER = 4096, 320, 1280


@dataclass(frozen=True)
class EpochCost:
    """Cost of an epoch, as estimated.

    Parameters
    ----------
    first, later
        Seconds of the first epoch, and of the next ones, for which frozen blocks need not run
        again where what they give is kept.
    flops
        Floating-point operations of the first epoch.
    rate
        Operations per second of a large product on this machine.
    """

    first: float
    later: float
    flops: float
    rate: float


def epoch_cost(
    backbone: Backbone, data: Any, device: torch.device, *, batch_size: int
) -> EpochCost | None:
    """Return the cost of an epoch of training; None for a backbone that does not know its own.

    A block that trains, or that comes after one, takes three times its forward pass: the gradients
    of its inputs and of its weights take as much each. Frozen ones before it take one.

    Parameters
    ----------
    backbone
        Set up for training by a strategy.
    data
        Training set with ``lengths``.
    device
        Device whose speed is measured, for a tenth of a second.
    batch_size
        Samples of a step.
    """
    if not isinstance(backbone, BlockCosts) or not len(data):
        return None
    n, frozen = len(backbone.blocks()), frozen_blocks(backbone)
    flops = _flops_of_samples(backbone, data)
    if flops is None:
        return None
    one = float(flops.sum())
    rate, steps = product_rate(device), math.ceil(len(data) / batch_size)
    first, later = one * (n + 2 * (n - frozen)), one * 3 * (n - frozen)
    seconds = [
        flops / (EFFICIENCY * rate) + backbone.step_seconds * steps for flops in (first, later)
    ]
    return EpochCost(seconds[0], seconds[1], first, rate)


def _flops_of_samples(backbone: BlockCosts, data: Any) -> np.ndarray | None:
    """Return the operations of one block for each sample, between those of a few of them.

    Samples that the backbone refuses are left out; None if it refuses all.
    """
    lengths = np.asarray(data.lengths, np.float64)
    order = np.argsort(lengths, kind="stable")
    looked_at = order[np.linspace(0, len(order) - 1, min(LOOKED_AT, len(order))).astype(int)]
    found: dict[float, float] = {}
    for i in looked_at.tolist():
        with contextlib.suppress(DataError):
            found.setdefault(float(lengths[i]), backbone.block_flops(data[i]))
    return np.interp(lengths, list(found), list(found.values())) if found else None


def product_rate(device: torch.device) -> float:
    """Return the operations per second of a large product in float32, the best of five.

    Examples
    --------
    >>> product_rate(torch.device("cpu")) > 1e8
    True
    """
    x = torch.randn(_ROWS, _INNER, device=device)
    weight = torch.randn(_OUTER, _INNER, device=device)
    best = math.inf
    with torch.no_grad():
        for _ in range(5):
            start = time.perf_counter()
            out = kernels.linear(x, weight)
            float(out[0, 0])  # waits for a GPU
            best = min(best, time.perf_counter() - start)
    return 2 * _ROWS * _INNER * _OUTER / best


def duration(seconds: float) -> str:
    """Return a time in the unit that people use for it.

    Examples
    --------
    >>> duration(0.4), duration(95), duration(7500)
    ('1 s', '2 min', '2.1 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
