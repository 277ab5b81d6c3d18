"""Base classes of encoders of time series.

A new encoder is one file with a configuration and a class, and one line that registers it, inside
or outside of this package::

    ENCODERS.register("my_encoder", "my_package.encoders:MyEncoder")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from molfun._shapes import Bool, Float
from molfun.errors import ConfigError
from molfun.strict import wrong_counts


@dataclass
class EncoderConfig:
    """Settings that all encoders share.

    Parameters
    ----------
    name
        Registered name of the encoder.
    d_input
        Number of features of the series; taken from the data set if there is one.
    d_model
        Channels of the encoding.
    dropout
        Probability with which activations are dropped in training.
    """

    name: str = ""
    d_input: int = 0
    d_model: int = 64
    dropout: float = 0.1

    def __post_init__(self) -> None:
        problems = list(self.problems())
        if problems:
            raise ConfigError(f"{type(self).__name__}: " + " ".join(problems))

    def problems(self) -> list[str]:
        """Return a sentence per setting that is wrong."""
        found = wrong_counts(d_input=self.d_input, d_model=self.d_model)
        if not 0 <= self.dropout < 1:
            found.append(f"dropout must be in [0, 1), got {self.dropout!r}.")
        return found


class BaseEncoder(nn.Module, ABC):
    """Map a series with missing values to one vector per time step, or to one per series.

    Parameters
    ----------
    config
        The settings, kept as ``config``.
    """

    config_class: ClassVar[type[EncoderConfig]] = EncoderConfig
    lora_targets: ClassVar[tuple[str, ...]] = ("projection",)
    """Module-name suffixes that LoRA adapts by default."""
    has_cls: bool = False
    """True if a summary token precedes the time steps in the output of `forward`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self,
        x: Float[torch.Tensor, "batch time features"],
        mask: Bool[torch.Tensor, "batch time features"] | None = None,
        padding_mask: Bool[torch.Tensor, "batch time"] | None = None,
    ) -> torch.Tensor:
        """Encode a batch.

        Parameters
        ----------
        x
            (batch, time, features) standardised values; 0 where nothing was observed.
        mask
            True where a value was observed; None means everywhere.
        padding_mask
            True for time steps of the series, False for padding after it; None means no padding.

        Returns
        -------
        torch.Tensor
            (batch, time, d_model), with a summary token in front if `has_cls`; or (batch, d_model)
            from encoders with one vector per series.
        """


class LayeredEncoder(BaseEncoder):
    """An encoder that consists of an embedding, consecutive layers, and a final step.

    Strategies can train some of the layers; the frozen-prefix cache keeps the output of the others.
    """

    embedding: nn.Module
    """Module that maps values and mask to the input of the first layer."""
    layers: nn.ModuleList

    @abstractmethod
    def run_layers(
        self, hidden: torch.Tensor, padding_mask: torch.Tensor, which: range
    ) -> torch.Tensor:
        """Run some of the layers."""

    @abstractmethod
    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn the output of the last layer into that of `forward`."""

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed, run all layers, finish."""
        mask, padding_mask = complete(x, mask, padding_mask)
        hidden = self.embedding(x, mask)
        return self.finish(self.run_layers(hidden, padding_mask, range(len(self.layers))))


def complete(
    x: torch.Tensor, mask: torch.Tensor | None, padding_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both masks; one that was left out is True everywhere."""
    if mask is None:
        mask = torch.ones_like(x, dtype=torch.bool)
    if padding_mask is None:
        padding_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    # masks of zeros and ones in other types are common, and attention needs booleans
    return mask.bool(), padding_mask.bool()
