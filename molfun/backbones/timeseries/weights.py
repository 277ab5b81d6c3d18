"""Read the weights of an encoder in every format that they are saved in."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun._io import is_safetensors, load_safetensors, load_torch, read_metadata
from molfun._paths import as_path
from molfun.backbones.state_dicts import match_keys, shape_conflicts, tensors_in
from molfun.errors import CheckpointError
from molfun.text import listing

logger = logging.getLogger(__name__)

ENCODER_VERSION = 3
"""Version of the ``.pt`` layout: encoder_state_dict, encoder_config, version."""
SCALE = ("input_mean", "input_std", "inputs_fitted")
"""Tensors of the backbone that are not part of the encoder."""
_PREFIXES = re.compile(r"^(model\.)?(module\.)?(backbone\.)?")


@dataclass(frozen=True)
class StoredWeights:
    """Content of a weight file, with tensors under the backbone's names.

    Parameters
    ----------
    path
        The file.
    tensors
        ``encoder.*`` and, if the file has them, mean and standard deviation of the features.
    encoder
        Name and settings of the encoder; None if the file does not have them.
    standardize
        Whether the encoder was trained on standardised values; None if the file does not say.
    features
        Names of the features the encoder was trained on; None if the file does not have them.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    encoder: dict[str, Any] | None
    standardize: bool | None = None
    features: list[str] | None = None


def read_weights(path: str | Path) -> StoredWeights:
    """Read a ``.safetensors``, an encoder's ``.pt`` or a Lightning ``.ckpt``; nothing is executed.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds no weights of an encoder.
    UnsafeFileError
        If it holds anything but tensors and plain values.
    """
    path = as_path(path)
    # three formats: Molfun's own, `save_encoder` of the Lightning modules, and a Trainer's
    # checkpoint
    if is_safetensors(path):
        tensors = load_safetensors(path)
        notes = read_metadata(path)
        config = json.loads(notes.get("config", "{}"))
        features = json.loads(notes.get("features", "null"))
        named = _named(tensors, path)
        return StoredWeights(
            path, named, config.get("encoder"), config.get("standardize"), features
        )
    content = load_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds no weights by name.")
    if "encoder_state_dict" in content:
        named = {f"encoder.{n}": t for n, t in content["encoder_state_dict"].items()}
        scale = {n: content[n] for n in SCALE if n in content}
        fitted = scale.get("inputs_fitted")
        known = None if fitted is None else bool(fitted)
        return StoredWeights(path, {**named, **scale}, content.get("encoder_config"), known)
    config = None
    hyper = content.get("hyper_parameters")
    if isinstance(hyper, Mapping):
        hyper = hyper.get("config", hyper)
        config = dict(hyper["encoder"]) if isinstance(hyper.get("encoder"), Mapping) else None
    return StoredWeights(path, _named(content.get("state_dict", content), path), config)


def _named(tensors: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Return the encoder's weights under the backbone's names; leave out those of objectives."""
    plain = tensors_in(tensors)
    named = {_PREFIXES.sub("", name): tensor for name, tensor in plain.items()}
    found = {n: t for n, t in named.items() if n.startswith("encoder.") or n in SCALE}
    # a bare state dict of an encoder has no prefix; with a head in it, it is of another model
    if not found and not any(name.startswith("head.") for name in plain):
        found = {f"encoder.{name}": tensor for name, tensor in plain.items()}
    if not found:
        raise CheckpointError(f"{path} holds no weights of an encoder.")
    return found


def load_weights(backbone: nn.Module, stored: StoredWeights) -> None:
    """Load stored weights into a backbone.

    Raises
    ------
    CheckpointError
        If weights do not match; the text names them, and the settings that differ.
    """
    differing = _differing(backbone, stored)
    own = backbone.state_dict()
    matched, report = match_keys(stored.tensors, own, lambda name: name)
    # without its scale an encoder can still train: it is then learned from the data
    missing = [n for n in report.missing if n not in SCALE]
    wrong = shape_conflicts(matched, own)
    if missing or wrong or report.unexpected:
        problems = [
            *differing,
            *[f"{n}: not in the file" for n in missing],
            *[f"{n}: has no place in this encoder" for n in report.unexpected],
            *wrong,
        ]
        raise CheckpointError(
            f"{stored.path} does not fit this encoder:\n{listing(problems, 10)}\nLeave the "
            f"encoder's settings out to take those of the file."
        )
    if differing:
        logger.warning(
            "%s was trained with other settings, which its weights do not show:\n%s",
            stored.path,
            listing(differing),
        )
    backbone.load_state_dict({**own, **matched})


def _differing(backbone: Any, stored: StoredWeights) -> list[str]:
    ours = backbone.config_dict["encoder"]
    theirs = stored.encoder or {}
    return [
        f"{key}: {theirs[key]!r} in the file, {value!r} here"
        for key, value in ours.items()
        if key in theirs and theirs[key] != value
    ]
