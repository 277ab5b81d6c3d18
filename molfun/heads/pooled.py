"""General heads: linear and multi-layer, for whole sequences or for each residue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.heads.base import Head
from molfun.nn.pooling import AttentionPool
from molfun.strict import Configured, check_choice
from molfun.trunk import Level, TrunkOutput

Pooling = Literal["mean", "cls", "attention"]


class MLPHead(Configured, Head):
    """Hidden layers, each with ReLU and dropout, then one linear layer.

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
        Dropout after each hidden layer while training.
    pooling
        For sequences: ``"mean"`` over the residues, ``"cls"`` (the token at the beginning, where
        the backbone has one) or ``"attention"`` (a learned weighted mean).
    standardize
        Whether inputs are brought to mean 0 and deviation 1 in each channel, as they are over the
        training set, where the backbone is frozen. Sequences that differ in few residues have
        nearly the same mean vector; without this a head sees what they share and learns slowly.

    Examples
    --------
    >>> head = MLPHead(single_dim=320)
    >>> sum(p.numel() for p in head.parameters())
    82433
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    inputs_fitted: torch.Tensor

    def __init__(
        self,
        *,
        single_dim: int,
        n_outputs: int = 1,
        level: Level = "sequence",
        hidden: Sequence[int] = (256,),
        dropout: float = 0.25,
        pooling: Pooling = "mean",
        standardize: bool = True,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling))
        if level == "pair":
            raise ConfigError("This head gives no pairs; use head='contact'.")
        if n_outputs < 1 or any(width < 1 for width in hidden):
            raise ConfigError(f"Widths must be at least 1, got {[*hidden, n_outputs]}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {dropout}.")
        self.keep_arguments(locals())
        self.register_buffer("input_mean", torch.zeros(single_dim))
        self.register_buffer("input_std", torch.ones(single_dim))
        self.register_buffer("inputs_fitted", torch.tensor(data=False))
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
            x = (x - self.input_mean) / self.input_std
            if self.pool is not None and self.level == "sequence":
                x = self.pool(x, trunk.mask.float())
            return self.as_outputs(self.layers(x), self.n_outputs)

    @torch.no_grad()
    def fit_inputs(self, trunks: Iterable[TrunkOutput]) -> None:
        """Take mean and deviation of each channel over the training set, the first time only."""
        if self.inputs_fitted or not self._config["standardize"]:
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


class LinearHead(MLPHead):
    """One linear layer on the pooled representation or on each residue's.

    Parameters
    ----------
    single_dim, n_outputs, level, pooling, standardize
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
        standardize: bool = True,
    ) -> None:
        super().__init__(
            single_dim=single_dim,
            n_outputs=n_outputs,
            level=level,
            hidden=(),
            pooling=pooling,
            standardize=standardize,
        )
