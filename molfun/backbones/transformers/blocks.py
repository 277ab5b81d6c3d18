"""transformers' blocks and embeddings of protein language models, on packed tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.esm.modeling_esm import EsmLayer
from transformers.models.esmc.modeling_esmc import EsmcLayer
from transformers.models.t5.modeling_t5 import T5Block

from molfun.backbones.language.packing import (
    PackedAttention,
    PackedBlock,
    Packing,
    rescaled_for_masks,
)
from molfun.nn.joint import gelu_linear, joint_linear, plain_linear


class PackedEsmLayer(PackedBlock, EsmLayer):
    """transformers' block of ESM on packed tokens."""

    def heads_of(
        self, x: torch.Tensor, attention: PackedAttention
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value."""
        own, normed = self.attention.self, self.attention.LayerNorm(x)
        return attention.project([own.query, own.key, own.value], normed)

    def mixed(self, attended: torch.Tensor) -> torch.Tensor:
        """Return the output projection of the attention."""
        output = self.attention.output
        return output.dropout(plain_linear(output.dense, attended))

    def transition(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward part."""
        hidden = gelu_linear(self.intermediate.dense, self.LayerNorm(x))
        return self.output.dropout(plain_linear(self.output.dense, hidden))

    @property
    def dropout_of_heads(self) -> float:
        """Share of the attention weights that is dropped in training."""
        own = self.attention.self
        return own.dropout if own.training else 0.0


class PackedEsmcLayer(PackedBlock, EsmcLayer):
    """transformers' block of ESM-C on packed tokens."""

    def heads_of(
        self, x: torch.Tensor, attention: PackedAttention
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value; queries and keys are normalised over all heads."""
        own = self.self_attn
        return attention.project(
            [own.q_proj, own.k_proj, own.v_proj],
            self.input_layernorm(x),
            norms=[own.q_norm, own.k_norm],
        )

    def mixed(self, attended: torch.Tensor) -> torch.Tensor:
        """Return the output projection of the attention, scaled for the depth of the model."""
        return plain_linear(self.self_attn.o_proj, attended) / self.scaling_factor

    def transition(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gated feed-forward part."""
        mlp, normed = self.mlp, self.post_attention_layernorm(x)
        gate, up = _two(mlp.gate_proj, mlp.up_proj, normed)
        return plain_linear(mlp.down_proj, functional.silu(gate) * up) / self.scaling_factor


class PackedT5Block(PackedBlock, T5Block):
    """transformers' block of a T5 encoder on packed tokens."""

    def heads_of(
        self, x: torch.Tensor, attention: PackedAttention
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value."""
        own = self.layer[0].SelfAttention
        return attention.project([own.q, own.k, own.v], self.layer[0].layer_norm(x))

    def mixed(self, attended: torch.Tensor) -> torch.Tensor:
        """Return the output projection of the attention."""
        return self.layer[0].dropout(plain_linear(self.layer[0].SelfAttention.o, attended))

    def transition(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward part, gated or not."""
        outer, inner = self.layer[1], self.layer[1].DenseReluDense
        normed = outer.layer_norm(x)
        if hasattr(inner, "wi"):
            hidden = inner.act(plain_linear(inner.wi, normed))
        else:
            gate, up = _two(inner.wi_0, inner.wi_1, normed)
            hidden = inner.act(gate) * up
        return outer.dropout(plain_linear(inner.wo, inner.dropout(hidden)))

    @property
    def dropout_of_heads(self) -> float:
        """Share of the attention weights that is dropped in training."""
        own = self.layer[0].SelfAttention
        return own.dropout if own.training else 0.0


def embed_esm(own: Any, tokens: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return what ``EsmEmbeddings`` makes of packed tokens: (tokens, channels).

    With positions, and rescaled for masked tokens, as in training.
    """
    x = own.word_embeddings(tokens)
    if own.token_dropout:
        x = rescaled_for_masks(x, tokens == own.mask_token_id, packing)
    if own.position_embedding_type == "absolute":
        positions = packing.positions.to(tokens.device) + own.padding_idx + 1
        x = x + own.position_embeddings(positions)
    return x if own.layer_norm is None else own.layer_norm(x)


def _two(gate: nn.Module, up: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of two layers of one input, by one product where that is possible."""
    both = joint_linear([gate, up], x)
    if both is None:
        return plain_linear(gate, x), plain_linear(up, x)
    first, second = both.chunk(2, dim=1)
    return first, second
