"""A transformer over the time steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from molfun.backbones.timeseries.encoders.base import EncoderConfig, LayeredEncoder
from molfun.text import unknown_name

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass
class TransformerConfig(EncoderConfig):
    """Settings of the transformer.

    Parameters
    ----------
    n_layers, n_heads
        Number of layers, and of attention heads in each.
    d_ff
        Width of the feed-forward part; None means four times `d_model`.
    activation
        ``"gelu"``, ``"relu"`` or ``"silu"``.
    prenorm
        Whether to normalise the input (True) or the output (False) of each part of a layer.
    obs_aware
        Whether to embed the mask as well. Missing values are replaced by a learned token either
        way.
    cls
        Whether to put a learned token in front, whose encoding summarises the series.
    """

    name: str = "transformer"
    n_layers: int = 2
    n_heads: int = 4
    d_ff: int | None = None
    activation: str = "gelu"
    prenorm: bool = True
    obs_aware: bool = True
    cls: bool = False

    def problems(self) -> list[str]:
        """Return a sentence per setting that is wrong."""
        found = super().problems()
        for name in ("n_layers", "n_heads"):
            if getattr(self, name) < 1:
                found.append(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not found and self.d_model % self.n_heads:
            found.append(f"d_model={self.d_model} must be a multiple of n_heads={self.n_heads}.")
        # positions are pairs of a sine and a cosine
        if not found and self.d_model % 2:
            found.append(f"d_model must be even, got {self.d_model}.")
        if self.activation not in ACTIVATIONS:
            found.append(unknown_name("activation", self.activation, ACTIVATIONS))
        return found


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection.

    torch's own layer keeps the three projections in one parameter, which adapters cannot wrap.

    References
    ----------
    Vaswani et al. 2017; Xiong et al. 2020 for the order of the norms.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, wide = config.d_model, config.d_ff or 4 * config.d_model
        self.n_heads, self.prenorm = config.n_heads, config.prenorm
        self.activation = ACTIVATIONS[config.activation]
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, wide)
        self.fc2 = nn.Linear(wide, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Run on (batch, time, channels); `keys` (batch, 1, 1, time) is False for padding."""
        if self.prenorm:
            x = x + self._attend(self.attention_norm(x), keys)
            return x + self._feed(self.feed_forward_norm(x))
        x = self.attention_norm(x + self._attend(x, keys))
        normed: torch.Tensor = self.feed_forward_norm(x + self._feed(x))
        return normed

    def _attend(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        out: torch.Tensor = self.dropout(self.out_proj(mixed.transpose(1, 2).flatten(2)))
        return out

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dropout(self.fc2(self.activation(self.fc1(x))))
        return out


class Embedding(nn.Module):
    """Embedding of values (a learned token for missing ones), their mask, and the time."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.d_model
        # starts as the mean of the data, which is 0 after standardisation
        self.missing_token = nn.Parameter(torch.zeros(config.d_input))
        self.values = nn.Linear(config.d_input, width)
        self.observed = nn.Linear(config.d_input, width, bias=False) if config.obs_aware else None
        self.cls_token = nn.Parameter(0.02 * torch.randn(width)) if config.cls else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embed (batch, time, features) to (batch, time, channels), the summary token in front."""
        hidden = self.values(torch.where(mask, x, self.missing_token))
        if self.observed is not None:
            hidden = hidden + self.observed(mask.to(hidden.dtype))
        hidden = hidden + positions(x.shape[1], hidden.shape[-1]).to(hidden)
        # after the positions, as the token has none
        if self.cls_token is not None:
            first = self.cls_token.to(hidden).expand(len(hidden), 1, -1)
            hidden = torch.cat([first, hidden], dim=1)
        embedded: torch.Tensor = self.dropout(hidden)
        return embedded


class TransformerEncoder(LayeredEncoder):
    """Transformer over time steps, with a learned token for missing values.

    Time is embedded as sines and cosines of the step number, so that any length can be encoded.
    Memory and time of attention grow with the square of the length: cut series of many thousand
    steps into windows.

    Parameters
    ----------
    config
        Settings.

    Examples
    --------
    >>> encoder = TransformerEncoder(TransformerConfig(d_input=3, d_model=8, n_heads=2))
    >>> encoder(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    config_class = TransformerConfig
    lora_targets = ("q_proj", "v_proj")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.has_cls = config.cls
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model) if config.prenorm else nn.Identity()

    def run_layers(
        self, hidden: torch.Tensor, padding_mask: torch.Tensor, which: range
    ) -> torch.Tensor:
        """Run some of the layers; no step attends to padding."""
        keys = None
        # without padding there is no mask, so that attention can use its fastest kernels
        if not bool(padding_mask.all()):
            if self.has_cls:
                padding_mask = functional.pad(padding_mask, (1, 0), value=True)
            keys = padding_mask[:, None, None, :]
        for i in which:
            hidden = self.layers[i](hidden, keys)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the last norm (pre-norm layers leave their output unnormalised)."""
        normed: torch.Tensor = self.final_norm(hidden)
        return normed


def positions(length: int, width: int) -> torch.Tensor:
    """Return sines and cosines of the step number: (length, width).

    References
    ----------
    Vaswani et al. 2017, section 3.5.

    Examples
    --------
    >>> positions(2, 4)[0]
    tensor([0., 1., 0., 1.])
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
