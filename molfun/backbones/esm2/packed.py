"""ESM-2's transformer without padding: all sequences of a batch in one token dimension.

The modules are fair-esm's, with their weights and adapters; only the computation is arranged
differently:

* linear layers run on (tokens, channels) of the whole batch, without padding;
* query, key and value come from one product, adapters included;
* attention runs over each sequence by ``scaled_dot_product_attention``;
* rotary embeddings (Su et al. 2021) are one product of complex numbers. fair-esm rotates channel i
  with channel i + D/2 of a head of size D. The rows of the query and key weights are permuted to
  the order 0, D/2, 1, D/2 + 1 ..., so that each rotated pair is one complex number. Queries and
  keys get the same permutation, so their products do not change.

docs/performance.md compares the speed with that of transformers and fair-esm.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from esm.modules import TransformerLayer
from torch import nn
from torch.nn import functional

from molfun._shapes import Float, Int64
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


class Rotation:
    """Unit complex numbers that rotate queries and keys by their positions.

    The layers share the frequencies, which come with the weights, so one set of numbers per batch
    serves all layers.

    Parameters
    ----------
    packing
        Sequences of the batch.
    heads
        Number of attention heads.
    """

    def __init__(self, packing: Packing, heads: int) -> None:
        self._packing, self._heads = packing, heads
        self._frequency: torch.Tensor | None = None
        self._turn = torch.zeros(0)

    def of(self, frequency: torch.Tensor) -> torch.Tensor:
        """Return (tokens, 1, channels / 2) complex64 for the frequencies of a layer."""
        # compared by value, since every layer holds a buffer of its own
        if self._frequency is None or not torch.equal(frequency, self._frequency):
            self._frequency = frequency
            longest = torch.arange(max(self._packing.lengths), device=frequency.device)
            angle = torch.outer(longest.to(frequency), frequency).repeat(1, self._heads)
            turn = torch.polar(torch.ones_like(angle), angle)
            self._turn = turn[self._packing.positions.to(frequency.device)].unsqueeze(1)
        return self._turn


class PackedLayer(TransformerLayer):
    """fair-esm's transformer layer, which also runs on packed tokens.

    Called with fair-esm's own arguments, it does what fair-esm's layer does. Layers get this class
    after the model is built, so that weights, adapters, hooks and names in state dicts stay those
    of the stock model.
    """

    def forward(
        self,
        x: torch.Tensor,
        packing: Packing | None = None,
        rotation: Rotation | None = None,
        **stock: Any,
    ) -> Any:
        """Map (tokens, channels) to (tokens, channels), with attention within each sequence."""
        if packing is None or rotation is None:
            return super().forward(x, **stock)
        attention = self.self_attn
        q, k, v = _project(attention, self.self_attn_layer_norm(x), rotation)
        x = x + plain_linear(attention.out_proj, _attend(q, k, v, packing).flatten(1))
        hidden = functional.gelu(plain_linear(self.fc1, self.final_layer_norm(x)))
        return x + plain_linear(self.fc2, hidden)


def use_packed_layers(model: nn.Module) -> None:
    """Make the layers of an ``esm.model.esm2.ESM2`` run on packed tokens."""
    # only the class changes, so that weights, hooks and the names in a state dict stay
    for layer in model.layers:  # type: ignore[union-attr]  # a ModuleList by its name
        layer.__class__ = PackedLayer


def attention_maps(
    layer: Any, x: Float[torch.Tensor, "tokens channels"], packing: Packing, rotation: Rotation
) -> list[Float[torch.Tensor, "heads length length"]]:
    """Return the attention weights of a layer for each sequence.

    The forward pass never holds them, so queries and keys are computed a second time here.
    """
    q, k, _ = _project(layer.self_attn, layer.self_attn_layer_norm(x), rotation)
    scale = 1 / math.sqrt(q.shape[-1])
    lengths = list(packing.lengths)
    return [
        # in float32 under autocast as well, as fair-esm does it
        torch.softmax((a.transpose(0, 1) @ b.permute(1, 2, 0)).float() * scale, dim=-1)
        for a, b in zip(q.split(lengths), k.split(lengths), strict=True)
    ]


def embed(model: Any, tokens: Int64[torch.Tensor, "tokens"], packing: Packing) -> torch.Tensor:
    """Return input embeddings (tokens, channels), rescaled for masked tokens as in training.

    In training 15 % of the tokens were chosen and 80 % of these masked, 12 % in all. Embeddings of
    masked tokens are zero, and all are scaled by 0.88 over the share of unmasked tokens, even if
    none is masked.
    """
    x = model.embed_scale * model.embed_tokens(tokens)
    if not model.token_dropout:
        return x
    masked = tokens == model.mask_idx
    lengths = torch.tensor(packing.lengths, device=tokens.device)
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    # counted per sequence, tokens for beginning and end included, as fair-esm counts them
    n_masked = torch.zeros(len(lengths), device=tokens.device).index_add_(
        0, sequence, masked.to(torch.float32)
    )
    share = (n_masked / lengths)[sequence, None].to(x.dtype)
    x = x.masked_fill(masked.unsqueeze(-1), 0.0)
    return x * (1 - 0.15 * 0.8) / (1 - share)


# --- attention -----------------------------------------------------------------------------------


def _project(
    attention: Any, x: torch.Tensor, rotation: Rotation
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rotated query and key, and value: (tokens, heads, channels per head) each."""
    heads, width = attention.num_heads, attention.embed_dim
    order = _pair_order(width, heads, x.device)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    fused = joint_linear(projections, x, [order, order, None])
    if fused is None:
        q, k, v = (plain_linear(module, x) for module in projections)
        fused = torch.cat([q[:, order], k[:, order], v], dim=1)
    # rotated in float32 whatever the precision: positions reach into the thousands, and bfloat16
    # represents integers exactly only up to 256
    qk = fused[:, : 2 * width].float().view(-1, 2, width // 2, 2)
    turned = torch.view_as_real(torch.view_as_complex(qk) * rotation.of(attention.rot_emb.inv_freq))
    q, k = turned.to(fused.dtype).view(-1, 2, heads, width // heads).unbind(1)
    return q, k, fused[:, 2 * width :].unflatten(1, (heads, -1))


@functools.lru_cache(maxsize=8)
def _pair_order(width: int, heads: int, device: torch.device) -> torch.Tensor:
    """Return the order of the channels of all heads that puts rotated pairs side by side."""
    # an inference tensor in this cache would make a later training step fail
    with torch.inference_mode(mode=False):
        rows = torch.arange(width, device=device).view(heads, 2, -1)
        return rows.transpose(1, 2).reshape(-1)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing
) -> Float[torch.Tensor, "tokens heads channels"]:
    """Attend within each sequence."""
    if q.is_cuda:
        return _attend_jagged(q, k, v, packing)
    # One call per sequence, so that no sequence is padded. On a CPU a call costs little; on a GPU
    # each would be a launch.
    lengths = list(packing.lengths)
    outputs = [
        functional.scaled_dot_product_attention(*(t.transpose(0, 1).unsqueeze(0) for t in parts))
        .squeeze(0)
        .transpose(0, 1)
        for parts in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_jagged(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing
) -> torch.Tensor:
    """Attend in one call for all sequences, by torch's variable-length kernels (nested tensors)."""
    offsets = packing.offsets.to(q.device)
    shortest, longest = min(packing.lengths), max(packing.lengths)

    def nest(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nested.nested_tensor_from_jagged(
            tensor, offsets, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)

    result = functional.scaled_dot_product_attention(nest(q), nest(k), nest(v))
    return result.transpose(1, 2).values()
