"""Run transformer blocks without padding: all sequences of a batch in one token dimension.

The modules are those of the package that a model comes from, with their weights and adapters; only
the computation is arranged differently:

* linear layers run on (tokens, channels) of the whole batch, without padding;
* query, key and value come from one product, adapters included;
* attention runs over each sequence by ``scaled_dot_product_attention``;
* rotary embeddings (Su et al. 2021) are one product of complex numbers. The packages rotate channel
  i with channel i + D/2 of a head of size D. The rows of the query and key weights are permuted to
  the order 0, D/2, 1, D/2 + 1 ..., so that each rotated pair is one complex number. Queries and
  keys get the same permutation, so their products do not change.

docs/performance.md compares the speed with that of transformers and fair-esm.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from molfun._shapes import Float, Int64
from molfun.nn import packed_attention
from molfun.nn.joint import joint_linear, plain_linear


@dataclass(frozen=True)
class Packing:
    """Positions of the sequences in the token dimension.

    Parameters
    ----------
    lengths
        Number of tokens of each sequence, those for beginning and end included.
    """

    lengths: tuple[int, ...]

    @functools.cached_property
    def positions(self) -> Int64[torch.Tensor, "tokens"]:
        """Position of each token in its sequence, on the CPU."""
        return torch.cat([torch.arange(n) for n in self.lengths])

    @functools.cached_property
    def offsets(self) -> Int64[torch.Tensor, "sequences_plus_1"]:
        """First token of each sequence, and the number of tokens at the end, on the CPU."""
        return torch.tensor([0, *self.lengths]).cumsum(0)

    def sequence_of(self, device: torch.device) -> Int64[torch.Tensor, "tokens"]:
        """Return the number of the sequence of each token."""
        lengths = torch.tensor(self.lengths, device=device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)


class PackedAttention:
    """Attention within each sequence of a batch, as all blocks of a forward pass have it.

    Parameters
    ----------
    packing
        Sequences of the batch.
    heads
        Number of attention heads.
    frequency
        (channels per head / 2,) of rotary embeddings that all blocks share; None without any.
    bias
        (heads, longest, longest), added to the products of queries and keys by position; None
        without one. A shorter sequence takes the corner at 0, 0.
    scale
        Factor of the products of queries and keys; None is ``1 / sqrt(channels per head)``.
    """

    def __init__(
        self,
        packing: Packing,
        heads: int,
        *,
        frequency: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> None:
        self.packing, self.heads, self.frequency = packing, heads, frequency
        self.bias, self.scale = bias, scale
        self._frequency: torch.Tensor | None = None
        self._turn = torch.zeros(0)

    def project(
        self,
        layers: Sequence[nn.Module],
        x: Float[torch.Tensor, "tokens channels"],
        *,
        frequency: torch.Tensor | None = None,
        norms: Sequence[Any] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value: (tokens, heads, channels per head) each.

        Parameters
        ----------
        layers
            Projections to query, key and value, with or without adapters.
        x
            Their common input.
        frequency
            Rotary frequencies of this block, where it has its own.
        norms
            Layer norms over all channels of the queries, and of the keys.
        """
        frequency = self.frequency if frequency is None else frequency
        order = None if frequency is None else self._order(layers[0], x)
        fused = joint_linear(layers, x, [order, order, None])
        if fused is None:
            q, k, v = (plain_linear(module, x) for module in layers)
            fused = torch.cat([_take(q, order), _take(k, order), v], dim=1)
        width = fused.shape[1] // 3
        qk, v = fused[:, : 2 * width], fused[:, 2 * width :].unflatten(1, (self.heads, -1))
        if norms:
            parts = zip(norms, qk.chunk(2, dim=1), strict=True)
            qk = torch.cat([_norm(norm, part, order) for norm, part in parts], dim=1)
        if frequency is not None:
            # rotated in float32 whatever the precision: positions reach into the thousands, and
            # bfloat16 represents integers exactly only up to 256
            pairs = torch.view_as_complex(qk.float().view(-1, 2, width // 2, 2))
            qk = torch.view_as_real(pairs * self._rotation(frequency))
            # attention in bfloat16 of our own takes the scores in float32
            if not packed_attention.takes(qk, width, dropout=0.0, bias=self.bias):
                qk = qk.to(fused.dtype)
        q, k = qk.view(-1, 2, self.heads, width // self.heads).unbind(1)
        return q, k, v

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, dropout: float = 0.0
    ) -> Float[torch.Tensor, "tokens channels"]:
        """Attend within each sequence."""
        if q.is_cuda and self.bias is None:
            return self._jagged(q, k, v, dropout).flatten(1)
        lengths = list(self.packing.lengths)
        if packed_attention.takes(q, q[0].numel(), dropout=dropout, bias=self.bias):
            own = self._blocks
            return packed_attention.attend(q, k, v, own, own, bias=self.bias, scale=self.scale)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if len(set(lengths)) == 1:
            q, k, v = (t.unflatten(0, (len(lengths), -1)) for t in (q, k, v))
            return self._one(q, k, v, dropout)
        # One call per sequence, so that no sequence is padded. On a CPU a call costs little; on a
        # GPU each would be a launch.
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        outputs = [self._one(a[None], b[None], c[None], dropout) for a, b, c in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _one(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        """Attend within sequences of one length: (sequences, length, heads, channels per head)."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=self._bias(q.shape[2], q.dtype),
            dropout_p=dropout,
            scale=self.scale,
        )
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)

    def at(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        selected: Int64[torch.Tensor, "selected"],
        *,
        dropout: float = 0.0,
    ) -> Float[torch.Tensor, "selected channels"]:
        """Attend from the `selected` tokens alone, to all tokens of their sequences.

        Raises
        ------
        ValueError
            If the attention has a bias by position, whose rows are those of all tokens.
        """
        if self.bias is not None:
            raise ValueError("attention with a bias by position runs at all tokens")
        order = torch.argsort(selected, stable=True)
        ends = self.packing.offsets[1:].to(selected.device)
        sequence = torch.searchsorted(ends, selected[order], right=True)
        counts = torch.bincount(sequence, minlength=len(ends)).tolist()
        chosen, lengths = q[selected[order]], list(self.packing.lengths)
        if packed_attention.takes(q, q[0].numel(), dropout=dropout, bias=None):
            asking = packed_attention.Blocks(counts, self.heads)
            found = packed_attention.attend(chosen, k, v, asking, self._blocks, scale=self.scale)
            return found[torch.argsort(order)]
        queries, k = chosen.to(v.dtype).split(counts), k.to(v.dtype)
        parts = zip(queries, k.split(lengths), v.split(lengths), strict=True)
        outputs = [self._one(a[None], b[None], c[None], dropout) for a, b, c in parts if len(a)]
        nothing = v[:0].flatten(1)  # it may be that no token is selected
        return torch.cat([*outputs, nothing])[torch.argsort(order)]

    def maps(
        self, q: torch.Tensor, k: torch.Tensor
    ) -> list[Float[torch.Tensor, "heads length length"]]:
        """Return the attention weights of each sequence, which a forward pass never holds."""
        scale = 1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
        lengths = list(self.packing.lengths)
        found = []
        for n, a, b in zip(lengths, q.split(lengths), k.split(lengths), strict=True):
            # in float32 under autocast as well, as fair-esm does it
            scores = (a.transpose(0, 1) @ b.permute(1, 2, 0)).float() * scale
            bias = self._bias(n, torch.float32)
            found.append(torch.softmax(scores if bias is None else scores + bias[0], dim=-1))
        return found

    @functools.cached_property
    def _blocks(self) -> packed_attention.Blocks:
        return packed_attention.Blocks(self.packing.lengths, self.heads)

    def _bias(self, n: int, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.bias is None else self.bias[None, :, :n, :n].to(dtype)

    def _order(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return _pair_order(int(layer.out_features), self.heads, x.device)  # type: ignore[arg-type]  # a linear layer has it

    def _rotation(self, frequency: torch.Tensor) -> torch.Tensor:
        """Return (tokens, 1, channels / 2) complex64 unit numbers that turn by the positions.

        The layers share the frequencies, which come with the weights, so one set of numbers serves
        all of them.
        """
        # compared by value, since every layer of fair-esm holds a buffer of its own
        if self._frequency is None or not torch.equal(frequency, self._frequency):
            self._frequency = frequency
            longest = torch.arange(max(self.packing.lengths), device=frequency.device)
            angle = torch.outer(longest.to(frequency), frequency).repeat(1, self.heads)
            turn = torch.polar(torch.ones_like(angle), angle)
            self._turn = turn[self.packing.positions.to(frequency.device)].unsqueeze(1)
        return self._turn

    def _jagged(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        """Attend in one call for all sequences, by torch's variable-length kernels."""
        offsets = self.packing.offsets.to(q.device)
        shortest, longest = min(self.packing.lengths), max(self.packing.lengths)

        def nest(tensor: torch.Tensor) -> torch.Tensor:
            return torch.nested.nested_tensor_from_jagged(
                tensor, offsets, min_seqlen=shortest, max_seqlen=longest
            ).transpose(1, 2)

        result = functional.scaled_dot_product_attention(
            nest(q), nest(k), nest(v), dropout_p=dropout, scale=self.scale
        )
        return result.transpose(1, 2).values()


class PackedBlock:
    """Mix-in for a transformer block of a package, which then also runs on packed tokens.

    Called with the package's own arguments, a block does what it did. Blocks get the class after
    the model is built (`use_packed_blocks`), so that weights, adapters, hooks and names in state
    dicts stay those of the stock model.
    """

    def forward(self, x: torch.Tensor, *arguments: Any, **stock: Any) -> Any:
        """Map (tokens, channels) to (tokens, channels), with attention within each sequence.

        Given a `PackedAttention` and the indices of some tokens, it returns the output at these
        alone, which is all that is needed of a last block.
        """
        if not arguments or not isinstance(arguments[0], PackedAttention):
            return super().forward(x, *arguments, **stock)  # type: ignore[misc]  # the stock block's
        attention, drop = arguments[0], self.dropout_of_heads
        heads = self.heads_of(x, attention)
        if len(arguments) == 1:
            x = x + self.mixed(attention(*heads, dropout=drop))
        else:
            selected = arguments[1]
            x = x[selected] + self.mixed(attention.at(*heads, selected, dropout=drop))
        return x + self.transition(x)

    @abstractmethod
    def heads_of(
        self, x: torch.Tensor, attention: PackedAttention
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value of normalised `x`, by `PackedAttention.project`."""

    @abstractmethod
    def mixed(self, attended: torch.Tensor) -> torch.Tensor:
        """Return what the attention adds to the residual stream: the output projection."""

    @abstractmethod
    def transition(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the feed-forward part adds to the residual stream."""

    @property
    def dropout_of_heads(self) -> float:
        """Share of the attention weights that is dropped now."""
        return 0.0


def use_packed_blocks(blocks: Sequence[nn.Module], packed: type[nn.Module]) -> None:
    """Make blocks of a stock model run on packed tokens, by their new class."""
    for block in blocks:
        block.__class__ = packed


def rescaled_for_masks(
    x: Float[torch.Tensor, "tokens channels"],
    masked: torch.Tensor,
    packing: Packing,
) -> torch.Tensor:
    """Return input embeddings as ESM has them where tokens are masked.

    In training 15 % of the tokens were chosen and 80 % of these masked, 12 % in all. Embeddings of
    masked tokens are zero, and all are scaled by 0.88 over the share of unmasked tokens, even if
    none is masked.
    """
    sequence = packing.sequence_of(x.device)
    lengths = torch.tensor(packing.lengths, device=x.device)
    # counted per sequence, tokens for beginning and end included, as fair-esm counts them
    n_masked = torch.zeros(len(lengths), device=x.device).index_add_(
        0, sequence, masked.to(torch.float32)
    )
    share = (n_masked / lengths)[sequence, None].to(x.dtype)
    x = x.masked_fill(masked.unsqueeze(-1), 0.0)
    return x * (1 - 0.15 * 0.8) / (1 - share)


def _take(x: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    return x if order is None else x[:, order]


def _norm(norm: Any, x: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Apply a layer norm over channels that stand in another order than its weights."""
    weight, bias = (t if t is None or order is None else t[order] for t in (norm.weight, norm.bias))
    return functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


@functools.lru_cache(maxsize=8)
def _pair_order(width: int, heads: int, device: torch.device) -> torch.Tensor:
    """Return the order of the channels of all heads that puts rotated pairs side by side."""
    # an inference tensor in this cache would make a later training step fail
    with torch.inference_mode(mode=False):
        rows = torch.arange(width, device=device).view(heads, 2, -1)
        return rows.transpose(1, 2).reshape(-1)
