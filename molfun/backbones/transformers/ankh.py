"""Ankh: the encoder of a gated T5 for proteins."""

from __future__ import annotations

from molfun.backbones.language.alphabet import Alphabet, in_order
from molfun.backbones.transformers.prott5 import ProtT5Backbone

_SIZES = {"d_kv": 64, "num_layers": 48}


class AnkhBackbone(ProtT5Backbone):
    """Ankh, the encoder alone. It predicts no residues, so it gives no zero-shot scores.

    See `TransformersBackbone` for the parameters. Its weights must not be used commercially.

    References
    ----------
    Elnaggar et al. 2023, "Ankh: Optimized Protein Language Model Unlocks General-Purpose
    Modelling". Letters: the examples of agemagician/Ankh@02b4e25 and the token ids in the tests of
    Synthyra/FastPLMs@1f78282; those of X, B, O, U and Z are in no public text, so they follow
    ProtT5's and are compared with ``tokenizer.json`` where it lies beside the weights.
    """

    name = "ankh"
    display_name = "Ankh"
    weights_licence = "CC BY-NC-SA 4.0, which allows no commercial use (Ankh, Elnaggar et al. 2023)"
    alphabet = Alphabet(in_order("ALGVSREDTIPKFQNYMHWCXBOUZ", 3), padding=0, after=(1,))
    presets = {
        "ankh_base": {**_SIZES, "d_model": 768, "d_ff": 3072, "num_heads": 12},
        "ankh_large": {**_SIZES, "d_model": 1536, "d_ff": 3840, "num_heads": 16},
    }
    settings = {
        **ProtT5Backbone.settings,
        "vocab_size": 144,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 64,
        "dropout_rate": 0.0,
    }
