"""Open the model that a command names: a checkpoint folder, or a file of metatrain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molfun._paths import as_path
from molfun.errors import ConfigError
from molfun.models.ensemble import Ensemble, is_ensemble, members_of
from molfun.models.structure import MolfunStructureModel
from molfun.runs.checkpoint import read_meta

STOCK = ".ckpt"


def open_ensemble(path: str, **options: Any) -> Ensemble | None:
    """Load the ensemble in a folder; None if it holds a single model.

    Parameters
    ----------
    path
        Folder, or ``.ckpt``.
    options
        As in `Ensemble.from_checkpoints`.
    """
    return Ensemble.load(path, **options) if is_ensemble(path) else None


def open_model(
    path: str, *, weights: str | None = None, trust: bool = False, **options: Any
) -> MolfunStructureModel:
    """Load the model from a checkpoint folder of Molfun, or from a file of metatrain.

    Parameters
    ----------
    path
        Folder, or ``.ckpt``.
    weights
        Base weights of a folder, if they have moved.
    trust
        Whether the user trusts a ``.ckpt``, which is a pickle.
    options
        Further arguments of `MolfunStructureModel`.

    Raises
    ------
    ConfigError
        If the folder is that of an ensemble.
    """
    if is_ensemble(path):
        raise ConfigError(
            f"{path} is an ensemble, which molfun predict and evaluate take. Here give one model: "
            f"{Path(path) / 'member_1'}."
        )
    if not is_stock(path):
        return MolfunStructureModel.from_checkpoint(path, weights=weights, **options)
    return MolfunStructureModel("pet", weights=path, trust=trust, head="energy", **options)


def trained_as(path: str) -> tuple[str, Mapping[str, Any]]:
    """Return the backbone of a checkpoint, and the input settings of its training set."""
    if is_stock(path):
        return "pet", {"kind": "atoms"}
    # the small file alone: data is checked with it before the weights are read
    meta = read_meta(members_of(path)[0] if is_ensemble(path) else path)
    return str(meta.backbone["name"]), meta.data


def is_stock(path: str) -> bool:
    """Return whether a path is a file of metatrain, and not a folder of Molfun."""
    # a folder may have any name, x.ckpt as well
    return Path(path).suffix == STOCK and not as_path(path).is_dir()
