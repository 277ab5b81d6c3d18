"""ESM-1b, ESM-1v and ESM-2 as transformers has them."""

from __future__ import annotations

import torch
from transformers.models.esm.configuration_esm import EsmConfig
from transformers.models.esm.modeling_esm import EsmForMaskedLM, EsmLayer
from transformers.models.esm.tokenization_esm import EsmTokenizer

from molfun.backbones.language.alphabet import ESM, esm_words
from molfun.backbones.language.packing import Packing
from molfun.backbones.transformers.backbone import TransformersBackbone
from molfun.backbones.transformers.blocks import PackedEsmLayer, embed_esm

_ESM1 = {
    "num_hidden_layers": 33,
    "hidden_size": 1280,
    "num_attention_heads": 20,
    "position_embedding_type": "absolute",
}


class EsmBackbone(TransformersBackbone):
    """ESM-1b, ESM-1v and ESM-2 in the classes of transformers: ``EsmModel``.

    See `TransformersBackbone` for the parameters. ESM-2 also runs in the classes of fair-esm
    (`molfun.backbones.esm2`), with the same numbers.

    References
    ----------
    Rives et al. 2021, PNAS 118 (ESM-1b); Meier et al. 2021, NeurIPS 34 (ESM-1v). Sizes: the
    ``config.json`` of facebook/esm1b_t33_650M_UR50S and facebook/esm1v_t33_650M_UR90S_1.

    Examples
    --------
    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> EsmBackbone(config=sizes).single_dim
    32
    """

    name = "esm"
    display_name = "ESM"
    weights_licence = "the MIT licence (ESM, Rives et al. 2021)"
    block_prefix = "model.encoder.layer"
    embedding_prefix = "model.embeddings"
    norm_prefix = "model.encoder.emb_layer_norm_after"
    rotary_name = "rotary_embeddings"
    lora_targets = ("query", "value")
    alphabet = ESM
    trained_length = 1022  # 1,024 tokens
    config_class, whole_class = EsmConfig, EsmForMaskedLM
    block_class, packed_class = EsmLayer, PackedEsmLayer
    tokenizer_class, words = EsmTokenizer, esm_words()
    root, divides = "esm.", ("hidden_size", "num_attention_heads")
    optional = ("lm_head.", "contact_head.", "inv_freq")
    # the blocks share the frequencies, of which old files have one copy per block
    renamed = ((r".*rotary_embeddings\.inv_freq", "rotary_embeddings.inv_freq"),)
    pointless = r"embeddings\.position_ids|embeddings\.position_embeddings|pooler\.|lm_head.decoder"
    presets = {"esm1b": {**_ESM1, "emb_layer_norm_before": True}, "esm1v": _ESM1}
    settings = {
        "hidden_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "intermediate_size": None,
        "vocab_size": 33,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "max_position_embeddings": 1026,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    fixed = {"is_decoder": False, "add_cross_attention": False, "is_folding_model": False}

    def build(self) -> None:
        """Build ``EsmModel``; learned positions have an end."""
        super().build()
        if self.config.position_embedding_type == "absolute":
            # the first position is the one after that of padding
            self.most_positions = self.config.max_position_embeddings - self.config.pad_token_id - 1

    def embed(self, tokens: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Return input embeddings with positions, rescaled for masked tokens as in training."""
        return embed_esm(self.model.embeddings, tokens, packing)
