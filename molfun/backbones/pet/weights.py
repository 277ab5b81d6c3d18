"""Read and write metatrain's own checkpoints, which are pickles, without executing their content.

metatrain reads them with ``weights_only=False``, which runs whatever code a file holds.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun._io import load_torch, save_torch, sha256_of
from molfun._paths import as_path
from molfun.errors import CheckpointError, ConfigError, UnsafeFileError

TRUSTED = "MOLFUN_TRUSTED_FILES"
"""Environment variable with the path of a list of trusted checkpoints: one sha256 per line."""


def read_checkpoint(path: str | Path, *, trust: bool) -> dict[str, Any]:
    """Read a ``.ckpt`` of metatrain with torch's restricted unpickler.

    Only tensors, plain containers, metatensor's own data and the two classes that describe data
    sets are created; a file that asks for anything else is refused, trusted or not.

    Parameters
    ----------
    path
        The file.
    trust
        Whether the user trusts the file. If not, its sha256 has to be in the list at the path in
        the environment variable MOLFUN_TRUSTED_FILES.

    Raises
    ------
    UnsafeFileError
        If the file is not trusted, or asks for more than a checkpoint needs.
    CheckpointError
        If the file is missing, damaged, or no checkpoint of PET.
    """
    path = as_path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder. To go on from a checkpoint of Molfun, make a file of it: molfun "
            f"export {path} model.ckpt"
        )
    if not path.is_file():
        raise CheckpointError(f"No such file: {path}.")
    if _is_exported(path):
        raise CheckpointError(
            f"{path} is a model that was exported to run (TorchScript), not one to train. Give the "
            f".ckpt that metatrain wrote next to it."
        )
    if not (trust or _is_listed(path)):
        raise UnsafeFileError(
            f"{path} is a pickle, a kind of file that can run code when it is read. If you know "
            f"where it comes from, pass trust=True (--trust), or add its sha256 "
            f"{sha256_of(path)} to the file that the environment variable {TRUSTED} names."
        )
    from metatrain.utils.data import DatasetInfo
    from metatrain.utils.data.target_info import TargetInfo

    # In addition to tensors and containers. torch.ScriptObject is metatensor's data, which its own
    # C++ code reads; the oldest checkpoints spell `set` with "__builtin__".
    allowed: list[Any] = [DatasetInfo, TargetInfo, torch.ScriptObject, (set, "__builtin__.set")]
    content = load_torch(path, allow=allowed)
    kind = content.get("architecture_name") if isinstance(content, dict) else None
    if kind != "pet":
        found = f"but of {kind!r}" if kind else "it names no architecture"
        raise CheckpointError(f"{path} is no checkpoint of PET: {found}.")
    assert isinstance(content, dict)
    return content


def _is_exported(path: Path) -> bool:
    """Return whether a file holds code as well as tensors, as TorchScript does."""
    # torch.save and torch.jit.save both write zip archives; only the second holds code
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _is_listed(path: Path) -> bool:
    listed = os.environ.get(TRUSTED)
    if not listed:
        return False
    try:
        lines = as_path(listed).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{TRUSTED} names {listed}, which cannot be read: {error}") from error
    return sha256_of(path) in {line.split()[0].lower() for line in lines if line.strip()}


def model_of(content: Mapping[str, Any], path: str | Path) -> Any:
    """Build the model in a checkpoint, upgraded to the installed version, adapters folded in.

    Raises
    ------
    CheckpointError
        If the installed metatrain cannot read that version.
    """
    from metatrain.utils.io import model_from_checkpoint

    try:
        # "finetune" is metatrain's context for a module that trains, with the best weights
        model = model_from_checkpoint(dict(content), context="finetune")
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not fit the installed metatrain: {' '.join(str(error).split())[:300]}"
        ) from error
    fold_adapters(model)
    return model


@torch.no_grad()
def fold_adapters(model: nn.Module) -> None:
    """Merge metatrain's own low-rank adapters into the weights they adapt.

    metatrain cannot merge them, and a model with them does not load again (its state dict lacks the
    configuration of the adapters).
    """
    from metatrain.pet.modules.finetuning import LoRALinear

    found = [(n, m) for n, m in model.named_modules() if isinstance(m, LoRALinear)]
    for name, adapter in found:
        linear: Any = adapter.linear
        linear.weight += adapter.scaling * adapter.lora_B.weight @ adapter.lora_A.weight
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, linear)
    model.finetune_config = {}  # type: ignore[assignment]  # metatrain's note of them


def write_checkpoint(model: Any, path: str | Path) -> None:
    """Write a ``.ckpt`` that metatrain itself loads, exports and trains on."""
    # metatrain needs both numbers: it logs on loading from which epoch the weights are
    save_torch(path, {**model.get_checkpoint(), "epoch": 0, "best_epoch": 0})
