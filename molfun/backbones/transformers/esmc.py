"""ESM-C, by transformers' modules; ESM++ and the files of EvolutionaryScale by their names."""

from __future__ import annotations

from typing import Any

from transformers.models.esmc.configuration_esmc import EsmcConfig
from transformers.models.esmc.modeling_esmc import EsmcForMaskedLM, EsmcLayer
from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

from molfun.backbones.language.alphabet import ESM
from molfun.backbones.language.weight_files import Tensors
from molfun.backbones.transformers import esmc_names
from molfun.backbones.transformers.backbone import TransformersBackbone
from molfun.backbones.transformers.blocks import PackedEsmcLayer


class EsmcBackbone(TransformersBackbone):
    """ESM Cambrian, as published by EvolutionaryScale and Biohub.

    See `TransformersBackbone` for the parameters. Files in the names of EvolutionaryScale and of
    Synthyra's ESM++ are read as well; none of their code runs.

    References
    ----------
    ESM Team 2024, "ESM Cambrian". Sizes: esm/pretrained.py of Biohub/esm@b6b0e88.

    Examples
    --------
    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> EsmcBackbone(config=sizes).single_dim
    32
    """

    name = "esmc"
    display_name = "ESM-C"
    weights_licence = (
        "the MIT licence if they are Biohub's; EvolutionaryScale's of 2024 have the Cambrian "
        "Open (300M) and the Cambrian Non-Commercial licence (600M)"
    )
    block_prefix = "model.layers"
    embedding_prefix = "model.embed_tokens"
    norm_prefix = "model.norm"
    rotary_name = "rotary_emb"
    lora_targets = ("q_proj", "v_proj")
    alphabet = ESM
    trained_length = 2046  # 2,048 tokens
    config_class, whole_class = EsmcConfig, EsmcForMaskedLM
    block_class, packed_class = EsmcLayer, PackedEsmcLayer
    tokenizer_class = EsmcTokenizer
    root, divides = "esmc.", ("hidden_size", "num_attention_heads")
    pointless = r".*(_extra_state|rotary\w*\.(original_)?inv_freq)$"
    presets = {
        "esmc_300m": {"num_hidden_layers": 30, "hidden_size": 960, "num_attention_heads": 15},
        "esmc_600m": {"num_hidden_layers": 36, "hidden_size": 1152, "num_attention_heads": 18},
    }
    settings = {
        "hidden_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "intermediate_size": None,
        "vocab_size": 64,
        "mask_token_id": 32,
        "pad_token_id": 1,
    }
    fixed = {
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }

    @staticmethod
    def feed_forward_width(width: int) -> int:
        """Return 8/3 of the width of the model, in steps of 256."""
        return int((8 / 3 * width + 255) // 256 * 256)

    @classmethod
    def from_hugging_face(cls, content: Any) -> dict[str, Any]:
        """Return all settings; a config of ESM++ says nothing of the feed-forward part."""
        read = super().from_hugging_face({**content, "model_type": "esmc"})
        return read if "intermediate_size" in content else {**read, "intermediate_size": None}

    def translate(self, tensors: Tensors) -> Tensors:
        """Return weights in the names of transformers, joined projections apart."""
        return esmc_names.translate(tensors)
