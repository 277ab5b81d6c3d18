"""ProtT5: the encoder of a T5 for proteins, by transformers' modules."""

from __future__ import annotations

from typing import Any

from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Block, T5EncoderModel

from molfun.backbones.language.alphabet import Alphabet, in_order
from molfun.backbones.language.packing import PackedAttention, Packing
from molfun.backbones.transformers.backbone import TransformersBackbone
from molfun.backbones.transformers.blocks import PackedT5Block

LETTERS = {**in_order("ALGVSREDTIPKFQNYMHWCX", 3), **dict.fromkeys("UZOB", 23)}
"""Tokens of the letters; the authors replace the rare U, Z, O and B by X before they embed."""


class ProtT5Backbone(TransformersBackbone):
    """ProtT5-XL, the encoder alone. It predicts no residues, so it gives no zero-shot scores.

    See `TransformersBackbone` for the parameters.

    References
    ----------
    Elnaggar et al. 2022, "ProtTrans", IEEE TPAMI 44. Sizes: the ``config.json`` of
    Rostlab/prot_t5_xl_half_uniref50-enc. Letters: agemagician/ProtTrans, issue 42.

    Examples
    --------
    >>> sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    >>> ProtT5Backbone(config=sizes).single_dim
    32
    """

    name = "prott5"
    display_name = "ProtT5"
    weights_licence = "the Academic Free License 3.0 (ProtT5, Elnaggar et al. 2022)"
    block_prefix = "model.encoder.block"
    embedding_prefix = "model.shared"
    norm_prefix = "model.encoder.final_layer_norm"
    lora_targets = ("q", "v")
    alphabet = Alphabet(LETTERS, padding=0, after=(1,))
    trained_length = 512
    config_class, whole_class = T5Config, T5EncoderModel
    block_class, packed_class = T5Block, PackedT5Block
    pointless = r"decoder\.|lm_head\.|encoder\.embed_tokens\."
    presets = {
        "prott5_xl": {
            "d_model": 1024,
            "d_ff": 16384,
            "d_kv": 128,
            "num_heads": 32,
            "num_layers": 24,
        }
    }
    settings = {
        "d_model": None,
        "d_ff": None,
        "d_kv": None,
        "num_heads": None,
        "num_layers": None,
        "vocab_size": 128,
        "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
    }
    why_whole = "its blocks share the weights of the position bias"

    def attention(self, packing: Packing) -> PackedAttention:
        """Return attention with T5's bias by relative position, and without a scale."""
        own: Any = self.blocks()[0].layer[0].SelfAttention  # type: ignore[index,union-attr]  # a T5Block
        longest = max(packing.lengths)
        bias = own.compute_bias(longest, longest)[0]
        return PackedAttention(packing, self.heads, bias=bias, scale=1.0)
