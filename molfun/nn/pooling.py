"""Pooling: from one vector per residue to one vector per sample."""

from __future__ import annotations

import torch
from torch import nn

from molfun._shapes import Float
from molfun.trunk import masked_mean


class MeanPool(nn.Module):
    """Mean over the residues where the mask is 1; zero where there are none.

    Examples
    --------
    >>> x = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> MeanPool()(x, torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([[2.]])
    """

    def forward(
        self,
        x: Float[torch.Tensor, "batch length channels"],
        mask: Float[torch.Tensor, "batch length"],
    ) -> Float[torch.Tensor, "batch channels"]:
        """Pool (batch, length, channels) to (batch, channels)."""
        return masked_mean(x, mask)


class AttentionPool(nn.Module):
    """Weighted mean over residues; the weights are the softmax of one learned score per residue.

    Parameters
    ----------
    dim
        Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(
        self,
        x: Float[torch.Tensor, "batch length channels"],
        mask: Float[torch.Tensor, "batch length"],
    ) -> Float[torch.Tensor, "batch channels"]:
        """Pool (batch, length, channels) to (batch, channels)."""
        # the smallest finite number, as a row that is masked throughout would be NaN with -inf
        score = self.score(x).squeeze(-1).masked_fill(mask == 0, torch.finfo(x.dtype).min)
        weight = torch.softmax(score, dim=1) * mask.to(x.dtype)
        return (x * weight.unsqueeze(-1)).sum(1)
