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


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the sha256 of each tensor's type, shape and bytes."""
    import torch

    digests = {}
    for name, tensor in tensors.items():
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
