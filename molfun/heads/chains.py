"""Heads on the chains of a sample: two proteins that bind, or the chains of a complex.

Each chain runs through the backbone by itself (`Head.reads_chains`), so that a protein with a
hundred partners is embedded once. Symmetric heads give the same number in whatever order the chains
come.
"""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn
from torch.nn import functional

from molfun._shapes import Bool, Float, Int64
from molfun.errors import ConfigError, DataError
from molfun.heads.base import Head
from molfun.heads.pooled import Pooling, check_sizes, mlp
from molfun.heads.scaling import ScaledInputs
from molfun.nn.pooling import AttentionPool, MeanPool
from molfun.strict import Configured, check_choice
from molfun.text import counted
from molfun.trunk import ChainCheck, Level, TrunkOutput


class ChainHead(Configured, ScaledInputs, Head):
    """Base of heads that read one vector per chain; a subclass gives it in `vectors`.

    Of vectors :math:`v_i` the hidden layers read, where the order of chains does not count, their
    mean and the means of :math:`|v_i - v_j|` and :math:`v_i v_j` over all pairs; where it does, all
    vectors in their order in place of the mean.
    """

    reads_chains = True

    def __init__(
        self,
        single_dim: int,
        width: int,
        source: str,
        *,
        n_outputs: int,
        level: Level,
        hidden: Sequence[int],
        dropout: float,
        symmetric: bool,
        n_chains: int | None,
        standardize: bool,
    ) -> None:
        super().__init__()
        check_sizes(n_outputs, hidden, dropout)
        if level != "sequence":
            raise ConfigError(f"This head gives one label per sample, got the level {level!r}.")
        if n_chains is not None and n_chains < 1:
            raise ConfigError(f"n_chains must be at least 1, got {n_chains}.")
        if n_chains is None and not symmetric:
            raise ConfigError("symmetric=False needs n_chains: each place has weights of its own.")
        self.n_outputs, self.symmetric, self.n_chains = n_outputs, symmetric, n_chains
        self.needs = (source,)
        self.add_scale(single_dim, source, standardize=standardize)
        places = 1 if symmetric else n_chains or 1
        self.layers = mlp((places + 2) * width, hidden, n_outputs, dropout)

    @property
    def chains_read(self) -> ChainCheck:
        """Function of name and number of chains of a sample that refuses a wrong number."""
        return functools.partial(_check_number, self.n_chains)

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        """Give ``prediction``: (samples, n_outputs), the last left out if it is 1."""
        chains = trunk.chains
        if chains is None:  # every row is a sample of one chain
            chains = torch.arange(len(trunk.mask), device=trunk.mask.device).unsqueeze(1)
        there = chains >= 0
        if not self.symmetric and (chains.shape[1] != self.n_chains or not bool(there.all())):
            raise DataError(f"This head reads {self.n_chains} chains per sample, in their order.")
        # as in `MLPHead`: small, and float32 whatever the trunk ran in
        with torch.autocast(chains.device.type, enabled=False):
            vectors = self.vectors(trunk, chains.clamp_min(0), there)
            return self.as_outputs(self.layers(self._joined(vectors, there)), self.n_outputs)

    @abstractmethod
    def vectors(
        self,
        trunk: TrunkOutput,
        chains: Int64[torch.Tensor, "samples chains"],
        there: Bool[torch.Tensor, "samples chains"],
    ) -> Float[torch.Tensor, "samples chains width"]:
        """Return one vector per chain; those that are not `there` are not read."""

    def _joined(
        self,
        vectors: Float[torch.Tensor, "samples chains width"],
        there: Bool[torch.Tensor, "samples chains"],
    ) -> Float[torch.Tensor, "samples features"]:
        weight = there.to(vectors.dtype).unsqueeze(-1)
        vectors = vectors * weight
        own = [vectors.sum(1) / weight.sum(1)] if self.symmetric else list(vectors.unbind(1))
        distance = product = torch.zeros_like(vectors[:, 0])
        n_pairs = torch.zeros_like(weight[:, 0])
        for i, j in itertools.combinations(range(vectors.shape[1]), 2):
            both = weight[:, i] * weight[:, j]
            distance = distance + both * (vectors[:, i] - vectors[:, j]).abs()
            product = product + vectors[:, i] * vectors[:, j]
            n_pairs = n_pairs + both
        n_pairs = n_pairs.clamp_min(1)  # a single chain has no pair
        return torch.cat([*own, distance / n_pairs, product / n_pairs], dim=-1)


class PairMLPHead(ChainHead):
    """Pool each chain, then hidden layers on how the vectors agree.

    Parameters
    ----------
    single_dim
        Channels of the single representation.
    n_outputs, level, hidden, dropout, pooling, standardize
        As in `molfun.heads.pooled.MLPHead`; the level is ``"sequence"``.
    symmetric
        Whether the order of chains has no meaning, as in binding; False for pairs with roles, such
        as heavy and light chain.
    n_chains
        Chains of each sample; None for any number of them, where the order has no meaning.

    References
    ----------
    Chen et al. 2019, "Multifaceted protein-protein interaction prediction based on Siamese residual
    RCNN", Bioinformatics 35: products of the vectors of both proteins, for a symmetric prediction.

    Examples
    --------
    >>> head = PairMLPHead(single_dim=320)
    >>> mean = torch.randn(3, 320)
    >>> trunk = TrunkOutput(mask=torch.ones(3, 1), mean=mean, chains=torch.tensor([[0, 1], [2, 1]]))
    >>> head.eval()(trunk)["prediction"].shape
    torch.Size([2])
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
        symmetric: bool = True,
        n_chains: int | None = 2,
        standardize: bool = True,
    ) -> None:
        check_choice("pooling", pooling, get_args(Pooling))
        super().__init__(
            single_dim, single_dim, "single" if pooling == "attention" else pooling,
            n_outputs=n_outputs, level=level, hidden=hidden, dropout=dropout, symmetric=symmetric,
            n_chains=n_chains, standardize=standardize,
        )  # fmt: skip
        self.keep_arguments(locals())
        self.pool = AttentionPool(single_dim) if pooling == "attention" else None

    def vectors(
        self,
        trunk: TrunkOutput,
        chains: Int64[torch.Tensor, "samples chains"],
        there: Bool[torch.Tensor, "samples chains"],  # noqa: ARG002  # each chain by itself
    ) -> Float[torch.Tensor, "samples chains width"]:
        """Return the pooled representation of each chain."""
        x = self.scaled(trunk)
        if self.pool is not None:
            x = self.pool(x, trunk.mask.float())
        return x[chains]


class CrossAttentionHead(ChainHead):
    """Attend from the residues of each chain to those of the others, then pool and compare chains.

    Parameters
    ----------
    single_dim, n_outputs, level, hidden, dropout, standardize
        As in `molfun.heads.pooled.MLPHead`; the level is ``"sequence"``.
    width
        Channels of the attention, to which representations are projected.
    n_heads
        Attention heads; they divide the width.
    symmetric, n_chains
        As in `PairMLPHead`.

    References
    ----------
    Vaswani et al. 2017, "Attention is all you need", NeurIPS 30, for the attention; weights are
    shared by all chains, which makes it symmetric.

    Examples
    --------
    >>> head = CrossAttentionHead(single_dim=320)
    >>> trunk = TrunkOutput(
    ...     mask=torch.ones(2, 9), single=torch.randn(2, 9, 320), chains=torch.tensor([[0, 1]])
    ... )
    >>> head.eval()(trunk)["prediction"].shape
    torch.Size([1])
    """

    def __init__(
        self,
        *,
        single_dim: int,
        n_outputs: int = 1,
        level: Level = "sequence",
        width: int = 64,
        n_heads: int = 4,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.25,
        symmetric: bool = True,
        n_chains: int | None = 2,
        standardize: bool = True,
    ) -> None:
        super().__init__(
            single_dim, width, "single",
            n_outputs=n_outputs, level=level, hidden=hidden, dropout=dropout, symmetric=symmetric,
            n_chains=n_chains, standardize=standardize,
        )  # fmt: skip
        if width < 1 or n_heads < 1 or width % n_heads:
            raise ConfigError(f"width must be a multiple of n_heads, got {width} and {n_heads}.")
        self.keep_arguments(locals())
        self.n_heads = n_heads
        self.project = nn.Linear(single_dim, width)
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.last_norm = nn.LayerNorm(width)
        self.pool = MeanPool()

    def vectors(
        self,
        trunk: TrunkOutput,
        chains: Int64[torch.Tensor, "samples chains"],
        there: Bool[torch.Tensor, "samples chains"],
    ) -> Float[torch.Tensor, "samples chains width"]:
        """Return the mean over each chain of what its residues take from the others."""
        # each distinct chain is projected once, however many samples it is in
        x = self.project(self.scaled(trunk))[chains].flatten(1, 2)
        length = trunk.mask.shape[1]
        known = (trunk.mask[chains].bool() & there.unsqueeze(-1)).flatten(1)
        chain = torch.arange(chains.shape[1], device=x.device).repeat_interleave(length)
        seen = known[:, None, :] & (chain[:, None] != chain[None, :])
        # a chain without partners attends to itself; padding has to see something, or it is NaN
        seen = seen | (~seen.any(-1, keepdim=True) & known[:, None, :])
        q, k, v = self.queries_keys_values(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        taken = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        x = self.last_norm(x + self.out(taken.transpose(1, 2).flatten(-2)))
        by_chain = x.unflatten(1, (-1, length)).flatten(0, 1)
        pooled: torch.Tensor = self.pool(by_chain, known.view(-1, length).to(x.dtype))
        return pooled.unflatten(0, there.shape)


def _check_number(expected: int | None, name: str, n: int) -> None:
    if expected is not None and n != expected:
        advice = "Write the chains as A:B, or name their columns (--sequence-column A,B)"
        raise DataError(
            f"{name} has {counted(n, 'chain')}, and the head reads {expected}. "
            f"{advice if n == 1 else 'Set n_chains of the head'}."
        )
