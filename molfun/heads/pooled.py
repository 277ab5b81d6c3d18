"""General heads: linear and multi-layer, for whole sequences or for each residue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import nn

from molfun.errors import ConfigError, unknown_name
from molfun.heads.base import Head
from molfun.nn.pooling import AttentionPool
from molfun.trunk import Level, TrunkOutput

Pooling = Literal["mean", "cls", "attention"]


class MLPHead(Head):
    """Hidden layers with ReLU and dropout behind each, then one linear layer.

    Parameters
    ----------
    single_dim
        Channels of the single representation.
    n_outputs
        Numbers for each label; the facade takes it from the task.
    level
        Whether there is one label for each ``"sequence"`` or ``"residue"``; from the task too.
    hidden
        Widths of the hidden layers.
    dropout
        Dropout behind each hidden layer while training.
    pooling
        For sequences: ``"mean"`` over the residues, ``"cls"`` (the token at the beginning, where
        the backbone has one) or ``"attention"`` (a learned weighted mean).

    Examples
    --------
    >>> head = MLPHead(single_dim=320)
    >>> sum(p.numel() for p in head.parameters())
    82433
    """

    def __init__(
        self,
        *,
        single_dim: int,
        n_outputs: int = 1,
        level: Level = "sequence",
        hidden: Sequence[int] = (256,),
        dropout: float = 0.25,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ConfigError(unknown_name("pooling", pooling, get_args(Pooling)))
        if level == "pair":
            raise ConfigError("This head gives no pairs; use head='contact'.")
        if n_outputs < 1 or any(width < 1 for width in hidden):
            raise ConfigError(f"Widths must be at least 1, got {[*hidden, n_outputs]}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {dropout}.")
        self._config = {
            "single_dim": single_dim,
            "n_outputs": n_outputs,
            "level": level,
            "hidden": list(hidden),
            "dropout": dropout,
            "pooling": pooling,
        }
        self.level, self.n_outputs = level, n_outputs
        # the pooled vector alone is computed and cached where nothing in between has weights
        self._source = "single" if level == "residue" or pooling == "attention" else pooling
        self.needs = (self._source,)
        self.pool = AttentionPool(single_dim) if pooling == "attention" else None
        widths = [single_dim, *hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs))

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Give ``prediction``: (batch, [length,] n_outputs), the last left out if it is 1."""
        x = trunk.need(self._source).float()
        # the head is small and its pooling a long sum: float32, whatever the trunk ran in
        with torch.autocast(x.device.type, enabled=False):
            if self.pool is not None and self.level == "sequence":
                x = self.pool(x, trunk.mask.float())
            return self.as_outputs(self.layers(x), self.n_outputs)

    @property
    def config_dict(self) -> Mapping[str, Any]:
        """Constructor arguments."""
        return dict(self._config)


class LinearHead(MLPHead):
    """One linear layer on the pooled representation or on each residue's.

    Parameters
    ----------
    single_dim, n_outputs, level, pooling
        As in `MLPHead`.

    Examples
    --------
    >>> sum(p.numel() for p in LinearHead(single_dim=320, n_outputs=3).parameters())
    963
    """

    def __init__(
        self,
        *,
        single_dim: int,
        n_outputs: int = 1,
        level: Level = "sequence",
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__(
            single_dim=single_dim, n_outputs=n_outputs, level=level, hidden=(), pooling=pooling
        )
        for key in ("hidden", "dropout"):
            del self._config[key]
