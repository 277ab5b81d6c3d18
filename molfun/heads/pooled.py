"""General heads: linear and multi-layer, for whole sequences or for each residue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import nn

from molfun.errors import ConfigError, DataError
from molfun.heads.base import Head
from molfun.heads.scaling import ScaledInputs
from molfun.nn.pooling import AttentionPool
from molfun.nn.substitutions import SubstitutionScores
from molfun.sample import Sample, sequence_of
from molfun.strict import Configured, check_choice
from molfun.trunk import Level, TrunkOutput

Pooling = Literal["mean", "cls", "attention"]
Augment = Literal["zero_shot"]


def check_sizes(n_outputs: int, hidden: Sequence[int], dropout: float) -> None:
    """Refuse widths and a dropout that are out of range.

    Raises
    ------
    ConfigError
        In one line.
    """
    if n_outputs < 1 or any(width < 1 for width in hidden):
        raise ConfigError(f"Widths must be at least 1, got {[*hidden, n_outputs]}.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout}.")


def mlp(width: int, hidden: Sequence[int], n_outputs: int, dropout: float) -> nn.Sequential:
    """Return hidden layers, each with ReLU and dropout, and a linear layer."""
    widths = [width, *hidden]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs))


class MLPHead(Configured, ScaledInputs, Head):
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
    augment
        ``"zero_shot"`` puts the score that the language model gave a variant before it was trained
        beside the pooled vector, standardised over the training set (Hsu et al. 2022, "Learning
        protein fitness models from evolutionary and assay-labeled data").

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
        standardize: bool = True,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling))
        self.scores = _scores(augment, level)
        if level == "pair":
            raise ConfigError("This head gives no pairs; use head='contact'.")
        check_sizes(n_outputs, hidden, dropout)
        self.keep_arguments(locals())
        self.level, self.n_outputs = level, n_outputs
        # the pooled vector alone is computed and cached where nothing in between has weights
        source = "single" if level == "residue" or pooling == "attention" else pooling
        self.needs = (source,)
        self.add_scale(single_dim, source, standardize=standardize)
        self.pool = AttentionPool(single_dim) if pooling == "attention" else None
        self.layers = mlp(single_dim + (self.scores is not None), hidden, n_outputs, dropout)

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Give ``prediction``: (batch, [length,] n_outputs), the last left out if it is 1."""
        # the head is small and its pooling a long sum: float32, whatever the trunk ran in
        with torch.autocast(trunk.mask.device.type, enabled=False):
            x = self.scaled(trunk)
            if self.pool is not None and self.level == "sequence":
                x = self.pool(x, trunk.mask.float())
            if self.scores is not None:
                x = torch.cat([x, trunk.need("score").to(x).unsqueeze(-1)], -1)
            return self.as_outputs(self.layers(x), self.n_outputs)

    def with_samples(self, trunk: TrunkOutput, samples: Sequence[Sample]) -> TrunkOutput:
        """Add the zero-shot score of each sample, if the head reads it.

        Raises
        ------
        ConfigError
            If the head was never trained, and so knows no wild type.
        DataError
            If there are no samples, or they are no variants of the wild type.
        """
        if self.scores is None:
            return trunk
        if self.scores.known is None:
            raise ConfigError(
                "The head reads the zero-shot score of variants, and knows no wild type yet: fit "
                "the model, or load a checkpoint."
            )
        if not samples:
            raise DataError(
                "The head reads the zero-shot score of each variant, which is looked up by its "
                "sequence. Give samples or sequences in place of tensors."
            )
        names = [sample.shown for sample in samples]
        return replace(trunk, score=self.scores(list(map(sequence_of, samples)), names))

    @property
    def config_dict(self) -> dict[str, Any]:
        """Constructor arguments; without `augment` where it is None, as before there was one."""
        return {k: v for k, v in super().config_dict.items() if (k, v) != ("augment", None)}


def _scores(augment: Augment | None, level: Level) -> SubstitutionScores | None:
    """Return what looks up the scores that a head reads; None for a head that reads none."""
    if augment is None:
        return None
    check_choice("augment", augment, get_args(Augment))
    if level != "sequence":
        raise ConfigError(
            f"augment='zero_shot' is one score per variant, and these labels are those of a "
            f"{level}. Leave it out."
        )
    return SubstitutionScores()


class LinearHead(MLPHead):
    """One linear layer on the pooled representation or on each residue's.

    Parameters
    ----------
    single_dim, n_outputs, level, pooling, standardize, augment
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
        augment: Augment | None = None,
    ) -> None:
        super().__init__(
            single_dim=single_dim,
            n_outputs=n_outputs,
            level=level,
            hidden=(),
            pooling=pooling,
            standardize=standardize,
            augment=augment,
        )
