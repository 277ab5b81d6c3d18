"""Write ESM-2 in the layout of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from molfun._lazy import require, unlogged
from molfun.backbones.esm2.presets import ESM2Config
from molfun.backbones.esm2.weights import canonical_name
from molfun.backbones.language.alphabet import esm_words
from molfun.backbones.language.weight_files import write_folder
from molfun.backbones.state_dicts import match_keys


def write_stock(weights: Mapping[str, torch.Tensor], config: ESM2Config, folder: Path) -> None:
    """Write a Hugging Face folder that ``transformers.EsmForMaskedLM`` loads.

    Parameters
    ----------
    weights
        Weights in the names of fair-esm's ``ESM2``.
    config
        Their architecture.
    folder
        Folder to write into.
    """
    with unlogged():
        transformers: Any = require("transformers", "pip install 'molfun[esm]'")
        theirs = transformers.EsmConfig(
            vocab_size=33,
            mask_token_id=32,
            pad_token_id=1,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.attention_heads,
            intermediate_size=4 * config.embed_dim,
            token_dropout=config.token_dropout,
            position_embedding_type="rotary",
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            emb_layer_norm_before=False,
        )
        with torch.device("meta"):  # the weights are given beside it
            model = transformers.EsmForMaskedLM(theirs)
    matched, report = match_keys(weights, dict(model.state_dict()), canonical_name)
    # all blocks of fair-esm have the frequencies that transformers holds once
    frequencies = [n for n in report.missing if n.endswith("rotary_embeddings.inv_freq")]
    shared = weights["layers.0.self_attn.rot_emb.inv_freq"]
    whole = {**matched, **dict.fromkeys(frequencies, shared)}
    write_folder(folder, theirs, whole, "EsmForMaskedLM")
    (folder / "vocab.txt").write_text("\n".join(esm_words()))
    transformers.EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
