"""Contacts between residues from attention or pair representations."""

from __future__ import annotations

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.strict import Configured
from molfun.trunk import Level, TrunkOutput


class ContactHead(Configured, Head):
    r"""Logistic regression on symmetric, average-product-corrected pair representations.

    For each channel of the pair representation

    .. math:: s_{ij} = p_{ij} + p_{ji}, \quad f_{ij} = s_{ij} - s_{i.} s_{.j} / s_{..}

    and the logits are a weighted sum of all channels. With ESM-2 the channels are its attention
    maps and this is the contact head of the released models.

    Parameters
    ----------
    pair_dim
        Channels of the pair representation.
    n_outputs
        Numbers for each pair; the facade takes it from the task.
    level
        Only ``"pair"``.

    References
    ----------
    Dunn, Wahl and Gloor 2008, Bioinformatics 24, 333 (the correction); Rao et al. 2020,
    "Transformer protein language models are unsupervised structure learners".

    Examples
    --------
    >>> head = ContactHead(pair_dim=8)
    >>> out = head(TrunkOutput(mask=torch.ones(1, 5), pair=torch.rand(1, 5, 5, 8)))
    >>> out["prediction"].shape
    torch.Size([1, 5, 5])
    """

    needs = ("pair",)
    default_task = "contact"
    default_level = "pair"

    def __init__(self, *, pair_dim: int, n_outputs: int = 1, level: Level = "pair") -> None:
        super().__init__()
        if level != "pair":
            raise ConfigError(
                f"The head 'contact' gives a label for each pair of residues, the task wants one "
                f"for each {level}. Set task_config={{'level': 'pair'}}."
            )
        self.keep_arguments(locals())
        self.n_outputs = n_outputs
        self.regression = nn.Linear(pair_dim, n_outputs)

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Give ``prediction``: (batch, length, length, n_outputs), the last left out if it is 1."""
        pair = trunk.need("pair").float()
        with torch.autocast(pair.device.type, enabled=False):
            mask = trunk.mask.float()
            pair = pair * (mask[:, :, None] * mask[:, None, :]).unsqueeze(-1)
            symmetric = pair + pair.transpose(1, 2)
            rows, columns = symmetric.sum(1, keepdim=True), symmetric.sum(2, keepdim=True)
            total = symmetric.sum((1, 2), keepdim=True)
            safe = torch.where(total == 0, torch.ones_like(total), total)
            corrected = symmetric - rows * columns / safe
            return self.as_outputs(self.regression(corrected), self.n_outputs)
