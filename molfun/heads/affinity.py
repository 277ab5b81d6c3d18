"""One number a complex: binding affinity from the single representation."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from molfun._shapes import Float
from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.nn.pooling import AttentionPool, MeanPool
from molfun.strict import Configured, check_choice
from molfun.trunk import TrunkOutput

Pooling = Literal["mean", "attention"]


class AffinityHead(Configured, Head):
    """Pooled residues through one hidden layer: ``w2 relu(W1 pool(norm(single)) + b1) + b2``.

    ``norm`` brings each residue's vector to mean 0 and variance 1 over its channels, without
    weights of its own: trunks differ in the scale of their representation by orders of magnitude.

    Parameters
    ----------
    single_dim
        Channels of the single representation.
    hidden_dim
        Width of the hidden layer; 384 and 128 give 49,409 parameters.
    pooling
        ``"mean"`` over the residues, or ``"attention"`` (a learned weighted mean).
    dropout
        Dropout before the last layer while training.

    Examples
    --------
    >>> head = AffinityHead(single_dim=384)
    >>> sum(p.numel() for p in head.parameters())
    49409
    """

    def __init__(
        self,
        *,
        single_dim: int,
        hidden_dim: int = 128,
        pooling: Pooling = "mean",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling))
        if hidden_dim < 1:
            raise ConfigError(f"hidden_dim must be at least 1, got {hidden_dim}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {dropout}.")
        self.keep_arguments(locals())
        self.pool = MeanPool() if pooling == "mean" else AttentionPool(single_dim)
        self.hidden = nn.Linear(single_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, 1)

    def forward(self, trunk: TrunkOutput) -> dict[str, Float[torch.Tensor, "batch"]]:
        """Give ``{"prediction": (batch,)}`` in standardised units."""
        # the head is small and its pooling a long sum: float32, whatever the trunk ran in
        single = trunk.need("single").float()
        with torch.autocast(single.device.type, enabled=False):
            single = torch.nn.functional.layer_norm(single, single.shape[-1:])
            pooled = self.pool(single, trunk.mask.float())
            hidden = torch.relu(self.hidden(pooled))
            return {"prediction": self.output(self.dropout(hidden)).squeeze(-1)}
