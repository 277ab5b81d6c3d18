"""Build openfold's ``AlphaFold`` with random weights from a seed, faster than openfold does."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from molfun.nn.process import seeded

STD_OF_TRUNCATED_NORMAL = 0.8796256610342398
"""Standard deviation of a standard normal distribution cut off at -2 and 2."""
RANDOM_FILL = 0.005
"""Standard deviation of the weights that AlphaFold starts at zero, if there are no pretrained ones.
With zeros in the last layer of every residual branch, adapters on a random trunk get no gradient.
"""


def build_model(config: Any, *, seed: int, draw: bool, fill: float | None) -> nn.Module:
    """Build the stock model.

    Parameters
    ----------
    config
        A whole openfold config.
    seed
        Seed of the weights.
    draw
        Whether weights are drawn; False if a weight file is read afterwards.
    fill
        Standard deviation of the weights that AlphaFold starts at zero; None takes `RANDOM_FILL` if
        weights are drawn, and 0 otherwise.
    """
    from openfold.model.model import AlphaFold

    if fill is None:
        fill = RANDOM_FILL if draw else 0.0
    with seeded(seed), _quick_initialisation(draw=draw):
        model: nn.Module = AlphaFold(config)
        if fill:
            _fill_zeros(model, fill)
    return model


@contextlib.contextmanager
def _quick_initialisation(*, draw: bool) -> Iterator[None]:
    """Draw the truncated normals with torch instead of SciPy, or draw none.

    The distribution is the same; SciPy takes four seconds for the full model.
    """
    from openfold.model import primitives

    original = primitives.trunc_normal_init_

    def initialise(weights: torch.Tensor, scale: float = 1.0, fan: str = "fan_in") -> None:
        if draw:
            size = primitives._calculate_fan(weights.shape, fan)
            # divided, so that the deviation after the cut is sqrt(scale / fan)
            std = math.sqrt(scale / max(1, size)) / STD_OF_TRUNCATED_NORMAL
            nn.init.trunc_normal_(weights, std=std, a=-2 * std, b=2 * std)

    primitives.trunc_normal_init_ = initialise
    try:
        yield
    finally:
        primitives.trunc_normal_init_ = original


def _fill_zeros(model: nn.Module, std: float) -> None:
    for parameter in model.parameters():
        # matrices only: a bias of zero stops no gradient
        if parameter.ndim > 1 and not parameter.is_meta and not parameter.any():
            nn.init.normal_(parameter, std=std)
