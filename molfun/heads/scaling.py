"""Scale of the inputs of heads: mean 0 and deviation 1 in each channel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from molfun.trunk import TrunkOutput


class ScaledInputs(nn.Module):
    """Mix-in for a `molfun.heads.base.Head`: scale of each channel over the training set.

    The scale is part of the weights. Until `fit_inputs` ran, and for ever where the backbone
    trains, inputs stay as they are.
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    inputs_fitted: torch.Tensor

    def add_scale(self, dim: int, source: str, *, standardize: bool) -> None:
        """Make room for the scale of `dim` channels of the representation `source`."""
        self.register_buffer("input_mean", torch.zeros(dim))
        self.register_buffer("input_std", torch.ones(dim))
        self.register_buffer("inputs_fitted", torch.tensor(data=False))
        self._source, self._standardize = source, standardize

    def scaled(self, trunk: TrunkOutput) -> torch.Tensor:
        """Return the representation in float32, scaled."""
        return (trunk.need(self._source).float() - self.input_mean) / self.input_std

    @torch.no_grad()
    def fit_inputs(self, trunks: Iterable[TrunkOutput]) -> None:
        """Take mean and deviation of each channel over the training set, the first time only."""
        if self.inputs_fitted or not self._standardize:
            return
        count = 0
        shift = total = squares = self.input_mean.double()
        for trunk in trunks:
            x = trunk.need(self._source).double()
            x = x[trunk.mask.bool()] if self._source == "single" else x
            if count == 0:
                shift = x[:1]  # the mean may be far larger than the deviations
            count, total = count + len(x), total + (x - shift).sum(0)
            squares = squares + (x - shift).square().sum(0)
        if count < 2:
            return
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        # a channel that is the same everywhere tells nothing and gets no say
        std = torch.where(std > 1e-4 * std.max(), std, torch.inf)
        self.input_mean.copy_(shift[0] + mean)
        self.input_std.copy_(std)
        self.inputs_fitted.fill_(value=True)
