"""Names of the weights of ESM-C in the files of EvolutionaryScale, and of Synthyra's ESM++."""

from __future__ import annotations

import re

from molfun.backbones.language.weight_files import Tensors

_NAMES = (
    (r"^(?:esmc\.)?(?:transformer\.blocks)\.", "layers."),
    (r"^(?:esmc\.)?transformer\.norm\.", "norm."),
    (r"^(?:esmc\.)?embed\.", "embed_tokens."),
    (r"\.attn\.layernorm_qkv\.(?:0\.|layer_norm_)", ".input_layernorm."),
    (r"\.attn\.layernorm_qkv\.(?:1\.)?weight$", ".self_attn.qkv.weight"),
    (r"\.attn\.([qk])_ln\.", r".self_attn.\1_norm."),
    (r"\.attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.ffn\.(?:0\.|layer_norm_)", ".post_attention_layernorm."),
    (r"\.ffn\.(?:1\.|fc1_)weight$", ".mlp.gate_up.weight"),
    (r"\.ffn\.(?:3\.|fc2_)weight$", ".mlp.down_proj.weight"),
    (r"^(?:sequence_head|lm_head)\.0\.", "lm_head.dense."),
    (r"^(?:sequence_head|lm_head)\.2\.", "lm_head.layer_norm."),
    (r"^(?:sequence_head|lm_head)\.3\.", "lm_head.decoder."),
)
"""Names of EvolutionaryScale's ESMC (and of Synthyra's ESM++) to those of ``EsmcForMaskedLM``."""
_JOINED = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


def translate(tensors: Tensors) -> Tensors:
    """Return weights in the names of ``EsmcForMaskedLM``, joined projections apart.

    Examples
    --------
    >>> import torch
    >>> sorted(translate({"transformer.blocks.0.ffn.1.weight": torch.zeros(4, 2)}))
    ['layers.0.mlp.gate_proj.weight', 'layers.0.mlp.up_proj.weight']
    """
    plain: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        module, _, last = name.removesuffix(".weight").rpartition(".")
        parts = _JOINED.get(last, ())
        if parts:
            pieces = zip(parts, tensor.chunk(len(parts)), strict=True)
            plain |= {f"{module}.{part}.weight": piece for part, piece in pieces}
        else:
            plain[name] = tensor
    return plain
