"""Read ESM-2 weights as Meta and Hugging Face publish them."""

from __future__ import annotations

import json
import logging
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun._io import is_safetensors, load_safetensors, load_torch
from molfun._paths import as_path
from molfun.backbones.esm2.presets import PRESETS, ESM2Config
from molfun.backbones.state_dicts import match_keys, shape_conflicts, tensors_in
from molfun.errors import CheckpointError
from molfun.text import listing

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
    model: nn.Module, path: str | Path, config: ESM2Config, *, one_by_one: bool = False
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
        then holds it in fewer bytes. A ``.pt`` file is held as a whole at first.

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
    read = _read(path, config, apart=one_by_one)
    tensors = _split_fused(_share_frequencies(read, config.num_layers))
    del read
    own = _untied(model)
    matched, report = match_keys(tensors, own, canonical_name)
    unexpected = [n for n in report.unexpected if not _is_pointless(n)]
    optional = [n for n in report.missing if any(part in n for part in _OPTIONAL)]
    missing = sorted(set(report.missing) - set(optional))
    wrong = shape_conflicts(matched, own)
    if missing or wrong:
        problems = [*missing[:5], *wrong[:5]]
        raise CheckpointError(
            f"{path} does not fit this ESM-2 ({config.num_layers} blocks, width "
            f"{config.embed_dim}): {len(missing)} weights missing, {len(wrong)} of another "
            f"shape:\n{listing(problems, 10)}\n{_advice(tensors)}"
        )
    if unexpected:
        logger.warning(
            "%s: %d weights have no place in ESM-2 and are left out:\n%s",
            path,
            len(unexpected),
            listing(unexpected, 5),
        )
    _warn_random_heads(path, optional)
    _warn_untied(path, tensors)
    # files in half precision are loaded as float32, in which the weights train
    tensors.clear()
    _copy_in(own, matched)
    return optional


@torch.no_grad()
def _copy_in(own: Mapping[str, torch.Tensor], matched: dict[str, torch.Tensor]) -> None:
    """Copy tensors into those of the model, and let go of each."""
    for name in list(matched):
        own[name].copy_(matched.pop(name).float())


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


def _warn_random_heads(path: Path, missing: list[str]) -> None:
    heads = sorted({n.split(".")[0] for n in missing if "_head" in n})
    if heads:
        logger.warning(
            "%s has no weights for %s: masked-residue or contact predictions start from random "
            "ones; representations are not affected.",
            path,
            " and ".join(heads),
        )


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


# --- reading -------------------------------------------------------------------------------------


def _read(path: Path, config: ESM2Config, *, apart: bool) -> dict[str, torch.Tensor]:
    if path.is_dir():
        return _read_folder(path, config, apart=apart)
    if is_safetensors(path):
        return load_safetensors(path, apart=apart)
    # Meta's files hold their settings as an argparse.Namespace, which runs nothing when it is made
    content = load_torch(path, allow=[Namespace])
    state = content.get("model", content) if isinstance(content, Mapping) else {}
    tensors = tensors_in(state)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict of tensors (looked at the top level and under 'model')."
        )
    contact = path.with_name(path.stem + CONTACT_SUFFIX)
    if contact.is_file():
        tensors.update(tensors_in(load_torch(contact, allow=[Namespace]).get("model", {})))
    return tensors


def _read_folder(folder: Path, config: ESM2Config, *, apart: bool) -> dict[str, torch.Tensor]:
    """Read the weights of a Hugging Face folder, from one file or from shards."""
    _compare_settings(folder / "config.json", config)
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            shards = _read_json(folder / index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CheckpointError(f"{folder / index} has no weight_map of names and files.")
            return _read_shards(folder, sorted(set(map(str, shards.values()))), apart=apart)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_shards(folder, [name], apart=apart)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    raise CheckpointError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin (found: {found})."
    )


def _read_shards(folder: Path, names: list[str], *, apart: bool) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        # a name with a path could read any file of the machine
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{folder}: the index names {name!r}, which is no file in it.")
        file = folder / name
        content = load_safetensors(file, apart=apart) if is_safetensors(file) else load_torch(file)
        tensors.update(tensors_in(content))
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return content if isinstance(content, dict) else {}


def _compare_settings(path: Path, config: ESM2Config) -> None:
    """Refuse a folder whose settings would give other numbers with the same weights."""
    if not path.is_file():
        return
    # heads of another number, or another position embedding, leave all shapes as they are
    theirs = _read_json(path)
    names = {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.attention_heads,
        "token_dropout": config.token_dropout,
        "position_embedding_type": "rotary",
    }
    wrong = [
        f"{name}: {theirs[name]!r} there, {ours!r} in this model"
        for name, ours in names.items()
        if name in theirs and theirs[name] != ours
    ]
    if wrong:
        raise CheckpointError(f"{path} is of another model:\n{listing(wrong)}")
