"""ESM-2 of the fair-esm package behind the `Backbone` interface, on packed sequences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from esm.modules import TransformerLayer
from torch import nn

from molfun.backbones.esm2 import presets, writing
from molfun.backbones.esm2.weights import load_weights
from molfun.backbones.language import alphabet
from molfun.backbones.language.backbone import LanguageBackbone
from molfun.backbones.language.packing import (
    PackedAttention,
    PackedBlock,
    Packing,
    rescaled_for_masks,
    use_packed_blocks,
)
from molfun.nn.joint import gelu_linear, plain_linear


class PackedLayer(PackedBlock, TransformerLayer):
    """fair-esm's transformer layer on packed tokens."""

    def heads_of(
        self, x: torch.Tensor, attention: PackedAttention
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value."""
        own = self.self_attn
        layers = [own.q_proj, own.k_proj, own.v_proj]
        frequency = own.rot_emb.inv_freq
        return attention.project(layers, self.self_attn_layer_norm(x), frequency=frequency)

    def mixed(self, attended: torch.Tensor) -> torch.Tensor:
        """Return the output projection of the attention."""
        return plain_linear(self.self_attn.out_proj, attended)

    def transition(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feed-forward part."""
        hidden = gelu_linear(self.fc1, self.final_layer_norm(x))
        return plain_linear(self.fc2, hidden)


class ESM2Backbone(LanguageBackbone):
    """ESM-2, a protein language model, as published in the ``fair-esm`` package.

    Parameters
    ----------
    config
        Preset name (``"esm2_t6_8M_UR50D"`` ... ``"esm2_t48_15B_UR50D"``, ``"esm2_tiny"``), or a
        mapping with ``num_layers``, ``embed_dim`` and ``attention_heads``.
    **settings
        As for `molfun.backbones.language.LanguageBackbone`; `weights` are read by
        `molfun.backbones.esm2.weights.load_weights`.

    References
    ----------
    Lin et al. 2023, Science 379, 1123.

    Examples
    --------
    >>> from molfun.backbones.esm2 import ESM2Backbone
    >>> backbone = ESM2Backbone(config="esm2_tiny")
    >>> backbone.single_dim, len(backbone.blocks())
    (32, 2)
    """

    name = "esm2"
    display_name = "ESM-2"
    weights_licence = "the MIT licence (ESM-2, Lin et al. 2023)"
    block_prefix = "model.layers"
    lora_targets = ("q_proj", "v_proj")
    alphabet = alphabet.ESM
    trained_length = 1022  # 1,024 tokens
    block_class = TransformerLayer
    embedding_prefix = "model.embed_tokens"
    norm_prefix = "model.emb_layer_norm_after"

    def __init__(
        self, config: str | Mapping[str, Any] = "esm2_t6_8M_UR50D", **settings: Any
    ) -> None:
        super().__init__(config, **settings)

    @classmethod
    def architecture(cls, config: Any) -> presets.ESM2Config:
        """Return the sizes of a preset or a mapping."""
        return presets.resolve(config)

    def build(self) -> None:
        """Build fair-esm's own class."""
        from esm.model.esm2 import ESM2

        self.model = ESM2(**self.config.to_dict(), alphabet="ESM-1b")
        use_packed_blocks(self.model.layers, PackedLayer)
        self.single_dim, self.heads = self.config.embed_dim, self.config.attention_heads

    def read_weights(self, path: str | Path, *, one_by_one: bool, mmap: bool) -> list[str]:
        """Read Meta's files and those of Hugging Face."""
        lacking = load_weights(self.model, path, self.config, one_by_one=one_by_one, mmap=mmap)
        return [f"model.{name}" for name in lacking]

    def write_stock(self, folder: Path) -> None:
        """Write ``transformers.EsmForMaskedLM`` with these weights."""
        names = self.base_state_dict(whole=True).items()
        writing.write_stock({n.removeprefix("model."): t for n, t in names}, self.config, folder)

    def embed(self, tokens: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Return input embeddings, rescaled for masked tokens as in training."""
        x = self.model.embed_scale * self.model.embed_tokens(tokens)
        if not self.model.token_dropout:
            return x
        return rescaled_for_masks(x, tokens == self.model.mask_idx, packing)

    def token_head(self) -> nn.Module | None:
        """Return the head of the language model, over 33 tokens."""
        head: nn.Module | None = self.model.lm_head
        return head
