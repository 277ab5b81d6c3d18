"""Digests that identify weights, architectures and labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def digest(parts: Iterable[str]) -> str:
    """Return a short sha256 over texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def tensor_digests(
    tensors: Mapping[str, torch.Tensor], *, of_source: bool = False
) -> dict[str, str]:
    """Return the sha256 of each tensor's type, shape and bytes.

    A weight in int8 (`molfun.nn.int8_weight`) holds the digest of the floats that it was made of.
    With `of_source` that is its own, so that it counts as the same weight; else it counts as
    another one, with other outputs.
    """
    import torch

    digests = {}
    for name, tensor in tensors.items():
        source = getattr(tensor, "source", None)
        if source is not None:
            of_floats = bytes(source.tolist()).hex()
            digests[name] = of_floats if of_source else digest(["int8", of_floats])
            continue
        plain = tensor.detach().cpu().contiguous()
        content = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
        content.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        digests[name] = content.hexdigest()
    return digests


def combine_digests(config: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """Return one sha256 over a configuration and the digests of its weights."""
    # sorted, so that the order of modules and settings does not matter
    text = json.dumps([dict(config), sorted(digests.items())], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
