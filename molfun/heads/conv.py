"""Convolutions along the chain, for a label on each residue."""

from __future__ import annotations

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.strict import Configured
from molfun.trunk import Level, TrunkOutput


class ConvHead(Configured, Head):
    """Two convolutions over neighbouring residues with ReLU and dropout between them.

    Padding is zero before each convolution, so the rest of a batch changes nothing.

    Parameters
    ----------
    single_dim
        Channels of the single representation.
    n_outputs
        Numbers for each residue; the facade takes it from the task.
    level
        Only ``"residue"``.
    width
        Channels between the two convolutions.
    kernel_size
        Residues each convolution sees, odd.
    dropout
        Dropout between the convolutions while training.

    Examples
    --------
    >>> head = ConvHead(single_dim=320, n_outputs=3)
    >>> out = head(TrunkOutput(mask=torch.ones(1, 9), single=torch.zeros(1, 9, 320)))
    >>> out["prediction"].shape
    torch.Size([1, 9, 3])
    """

    default_task = "multiclass"
    default_level = "residue"

    def __init__(
        self,
        *,
        single_dim: int,
        n_outputs: int = 1,
        level: Level = "residue",
        width: int = 32,
        kernel_size: int = 7,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if level != "residue":
            raise ConfigError(
                f"The head 'conv' gives a label for each residue, the task wants one for each "
                f"{level}. Use head='mlp', or task_config={{'level': 'residue'}}."
            )
        if width < 1 or n_outputs < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(
                f"width must be at least 1 and kernel_size odd, got {width} and {kernel_size}."
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {dropout}.")
        self.keep_arguments(locals())
        self.n_outputs = n_outputs
        padding = kernel_size // 2
        self.first = nn.Conv1d(single_dim, width, kernel_size, padding=padding)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv1d(width, n_outputs, kernel_size, padding=padding)

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Give ``prediction``: (batch, length, n_outputs), the last left out if it is 1."""
        x = trunk.need("single").float()
        with torch.autocast(x.device.type, enabled=False):
            mask = trunk.mask.float().unsqueeze(1)
            hidden = torch.relu(self.first(x.transpose(1, 2) * mask))
            raw = self.second(self.dropout(hidden) * mask).transpose(1, 2)
            return self.as_outputs(raw, self.n_outputs)
