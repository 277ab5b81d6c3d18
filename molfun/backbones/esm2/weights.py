"""Read ESM-2 weights as Meta and Hugging Face publish them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from molfun._paths import as_path
from molfun.backbones.esm2.presets import PRESETS, ESM2Config
from molfun.backbones.language.weight_files import (
    Layout,
    compare_settings,
    read_tensors,
    take_tensors,
)

logger = logging.getLogger(__name__)

CONTACT_SUFFIX = "-contact-regression.pt"
"""Ending of the file next to the model in which Meta publishes the contact head's two weights."""

# "encoder.sentence_encoder." is Meta's, "esm.encoder." is Hugging Face's, "model." Molfun's own
_PREFIXES = re.compile(r"^(model\.|esm\.|encoder\.sentence_encoder\.|encoder\.)+")
_LAYER = re.compile(r"^layer\.(\d+)\.")
_HUGGING_FACE = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.self.rotary_embeddings": "self_attn.rot_emb",
    "attention.output.dense": "self_attn.out_proj",
    "attention.LayerNorm": "self_attn_layer_norm",
    "LayerNorm": "final_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "embeddings.word_embeddings": "embed_tokens",
    "lm_head.decoder": "lm_head",
}
"""Module of ``transformers.EsmModel`` -> module of ``esm.model.esm2.ESM2``."""
_OLD_NORMS = {"gamma": "weight", "beta": "bias"}
"""Other names of LayerNorm weights, which files saved by transformers may have."""
_SHARED_FREQUENCIES = (
    "rotary_embeddings.inv_freq",
    "layer.*.attention.self.rotary_embeddings.inv_freq",
)
_FUSED = ("attention.self.qkv", "attention.qkv", "self_attn.in_proj", "self_attn.qkv_proj")
_POINTLESS = ("embeddings.position_ids", "embeddings.position_embeddings.weight", "pooler.")
"""Weights of Hugging Face's class that ESM-2 does not use (positions are rotary)."""
# The rotary frequencies are a constant that fair-esm computes when it builds the model, and not all
# files store it.
_OPTIONAL = ("lm_head.", "contact_head.", "rot_emb.inv_freq")
"""Parts of the names of weights that a file may lack: no representation needs them."""


def load_weights(
    model: nn.Module,
    path: str | Path,
    config: ESM2Config,
    *,
    one_by_one: bool = False,
    mmap: bool = False,
) -> list[str]:
    """Load a weight file into fair-esm's ``ESM2``, in place.

    Parameters
    ----------
    model
        The stock module.
    path
        Meta's ``.pt`` (any file name; the contact-regression file next to it is read if it is
        there), ``.safetensors`` or ``.bin`` in the names of Hugging Face or of fair-esm, or a
        Hugging Face folder. ``~`` is expanded.
    config
        Architecture of `model`, for messages and to compare with ``config.json``.
    one_by_one
        Whether to forget each tensor of the file as soon as it is copied into the model, which
        then holds it in fewer bytes.
    mmap
        Whether the weights of the blocks become parts of the file (`molfun.nn.mapped`), or of
        temporary ones if they are not in float32, or not in safetensors.

    Returns
    -------
    list
        Names of weights that the file lacks and no representation needs; they stay random.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or made for another size; the text lists the weights that
        do not match. Weights of the language-model or contact head may be missing, and weights
        that ESM-2 has no place for may be present: both are logged as a warning.
    UnsafeFileError
        If the file holds anything but tensors and plain values.
    """
    path = as_path(path)
    if path.is_dir():
        # heads of another number, or another position embedding, leave all shapes as they are
        compare_settings(path / "config.json", _hugging_face_settings(config))
    read = read_tensors(path, apart=one_by_one or mmap, beside=CONTACT_SUFFIX)
    tensors = _split_fused(_share_frequencies(read, config.num_layers))
    del read
    _warn_untied(path, tensors)
    layout = Layout(
        model=f"ESM-2 ({config.num_layers} blocks, width {config.embed_dim})",
        canonical=canonical_name,
        optional=_OPTIONAL,
        pointless=_is_pointless,
        advice=_advice,
    )
    blocks = {n: p for n, p in model.named_parameters() if mmap and n.startswith("layers.")}
    return take_tensors(_untied(model), tensors, path, layout, mapping=blocks)


def _hugging_face_settings(config: ESM2Config) -> dict[str, object]:
    return {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.attention_heads,
        "token_dropout": config.token_dropout,
        "position_embedding_type": "rotary",
    }


def canonical_name(name: str) -> str:
    """Return the same name for a weight in every published layout: fair-esm's.

    Examples
    --------
    >>> canonical_name("esm.encoder.layer.3.attention.self.query.weight")
    'layers.3.self_attn.q_proj.weight'
    >>> canonical_name("encoder.sentence_encoder.layers.3.fc1.bias")
    'layers.3.fc1.bias'
    """
    name = _LAYER.sub(r"layers.\1.", _PREFIXES.sub("", name))
    block = re.match(r"layers\.\d+\.", name)
    start = block.end() if block else 0
    module, _, leaf = name[start:].rpartition(".")
    leaf = _OLD_NORMS.get(leaf, leaf)
    return f"{name[:start]}{_HUGGING_FACE.get(module, module)}.{leaf}"


def _untied(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights without the output embedding, which is tied to the input embedding."""
    return {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}


def _is_pointless(name: str) -> bool:
    plain = _PREFIXES.sub("", name)
    return canonical_name(name) == "lm_head.weight" or plain.startswith(_POINTLESS)


def _share_frequencies(
    tensors: Mapping[str, torch.Tensor], n_layers: int
) -> dict[str, torch.Tensor]:
    """Give every block the rotary frequencies that newer Hugging Face classes hold once.

    transformers 5 has them at the top of the model and saves them under ``layer.*``.
    """
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if _PREFIXES.sub("", name) in _SHARED_FREQUENCIES:
            plain |= {f"layers.{i}.self_attn.rot_emb.inv_freq": tensor for i in range(n_layers)}
        else:
            plain[name] = tensor
    return plain


def _split_fused(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Split fused weights into three projections, in the order query, key, value."""
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        # torch.nn.MultiheadAttention names it in_proj_weight, others qkv.weight
        module, _, leaf = name.replace("in_proj_", "in_proj.").rpartition(".")
        fused = next((f for f in _FUSED if module.endswith(f)), None)
        if fused is None:
            plain[name] = tensor
            continue
        block = module.removesuffix(fused)
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            plain[f"{block}self_attn.{part}_proj.{leaf}"] = piece
    return plain


def _warn_untied(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Warn of a file whose output embedding is not the input embedding, as it is in ESM-2."""
    names = {canonical_name(n): t for n, t in tensors.items()}
    own, shared = names.get("lm_head.weight"), names.get("embed_tokens.weight")
    if own is not None and shared is not None and not torch.equal(own, shared):
        logger.warning(
            "%s has an output embedding of its own, which ESM-2 has no place for: masked-residue "
            "predictions use the input embedding; representations are not affected.",
            path,
        )


def _advice(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return advice on the size that the file was made for, by the shapes of its weights."""
    names = {canonical_name(n): t for n, t in tensors.items()}
    embedding = names.get("embed_tokens.weight")
    layers = {int(m.group(1)) for n in names if (m := re.match(r"layers\.(\d+)\.", n))}
    if embedding is None or not layers:
        return "It holds no ESM-2: expected embed_tokens and layers, or Hugging Face's names."
    width, depth = embedding.shape[-1], max(layers) + 1
    for preset, size in PRESETS.items():
        if (size.embed_dim, size.num_layers) == (width, depth):
            return f"The file is of the size {preset!r}: use that as the backbone."
    return f"The file has {depth} blocks of width {width}: pass such a config."
