"""A linear map of every time step, as a baseline for other encoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from molfun.backbones.timeseries.encoders.base import BaseEncoder, EncoderConfig, complete


@dataclass
class LinearConfig(EncoderConfig):
    """Settings of the linear encoder; those of `EncoderConfig`."""

    name: str = "linear"


class LinearEncoder(BaseEncoder):
    """A linear map of the values of a time step and of their mask.

    Examples
    --------
    >>> LinearEncoder(LinearConfig(d_input=3, d_model=8))(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    config_class = LinearConfig

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        self.projection = nn.Linear(2 * config.d_input, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode (batch, time, features) to (batch, time, d_model)."""
        mask, _ = complete(x, mask, padding_mask)
        # the mask is an input as well: which values are missing often says something
        observed = mask.to(x.dtype)
        out: torch.Tensor = self.dropout(self.projection(torch.cat([x * observed, observed], -1)))
        return out
