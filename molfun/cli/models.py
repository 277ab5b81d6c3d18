"""Models that a command is given: a checkpoint folder, or a file of metatrain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molfun._paths import as_path
from molfun.models.structure import MolfunStructureModel
from molfun.runs.checkpoint import read_meta

STOCK = ".ckpt"


def open_model(
    path: str, *, weights: str | None = None, trust: bool = False, **options: Any
) -> MolfunStructureModel:
    """The model in a checkpoint folder, or the one that metatrain wrote.

    Parameters
    ----------
    path
        Folder, or ``.ckpt``.
    weights
        Base weights of a folder, if they have moved.
    trust
        Whether the user vouches for a ``.ckpt``.
    options
        Of `MolfunStructureModel`.
    """
    if not is_stock(path):
        return MolfunStructureModel.from_checkpoint(path, weights=weights, **options)
    return MolfunStructureModel("pet", weights=path, trust=trust, head="energy", **options)


def trained_as(path: str) -> tuple[str, Mapping[str, Any]]:
    """Backbone of a checkpoint, and how its training set prepared its inputs."""
    if is_stock(path):
        return "pet", {"kind": "atoms"}
    meta = read_meta(path)
    return str(meta.backbone["name"]), meta.data


def is_stock(path: str) -> bool:
    """Return whether this is a file of metatrain's rather than a folder of ours."""
    return Path(path).suffix == STOCK and not as_path(path).is_dir()
