"""Read OpenFold and AlphaFold weights in every published layout."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molfun._io import is_safetensors, load_safetensors, load_torch
from molfun._paths import as_path
from molfun.backbones.openfold._versions import canonical_key
from molfun.backbones.state_dicts import KeyReport, match_keys, shape_conflicts, tensors_in
from molfun.errors import CheckpointError
from molfun.text import listing

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: str | Path, *, jax_version: str) -> None:
    """Load a weight file into an openfold ``AlphaFold``, in place.

    Parameters
    ----------
    model
        The stock module, 1.x or 2.x.
    path
        ``.pt``/``.ckpt`` (plain, or under "ema"/"params", "model", "module" or "state_dict"),
        ``.safetensors``, AlphaFold ``.npz``, or the folder of a DeepSpeed checkpoint. ``~`` is
        expanded.
    jax_version
        AlphaFold's name of the architecture, for ``.npz``.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or made for another architecture; the text lists the
        names that do not match.
    UnsafeFileError
        If the file holds anything but tensors and plain values.
    """
    path = as_path(path)
    if path.suffix == ".npz":
        _load_npz(model, path, jax_version)
        return
    tensors = _read(path)
    matched, report = match_keys(tensors, model.state_dict(), canonical_key)
    if report:
        raise CheckpointError(
            f"{path} does not fit this architecture ({len(matched)} of {len(model.state_dict())} "
            f"weights match). {report}\nChoose the preset the file was trained with."
        )
    wrong = shape_conflicts(matched, model.state_dict())
    if wrong:
        raise CheckpointError(
            f"{path} holds weights of other shapes:\n{listing(wrong, 5)}\n"
            f"Choose the preset the file was trained with."
        )
    model.load_state_dict(matched)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        path = _deepspeed_file(path)
    content = load_safetensors(path) if is_safetensors(path) else load_torch(path)
    tensors = _unwrap(content)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict of tensors (looked at the top level and under ema.params, "
            f"model, module and state_dict)."
        )
    return tensors


def _deepspeed_file(folder: Path) -> Path:
    """Return the file with all model weights in a DeepSpeed checkpoint folder."""
    latest = folder / "latest"
    inner = folder / latest.read_text().strip() if latest.is_file() else folder
    if inner.resolve().parent not in (folder.resolve(), folder.resolve().parent):
        raise CheckpointError(f"{latest} points outside of {folder}.")
    states = sorted(inner.glob("*model_states.pt"))
    if len(states) != 1:
        raise CheckpointError(
            f"{inner} holds {len(states)} files named *model_states.pt; expected one. Sharded "
            f"ZeRO-3 checkpoints have to be joined first with DeepSpeed's zero_to_fp32.py."
        )
    return states[0]


def _unwrap(content: Any) -> dict[str, torch.Tensor]:
    """Return the state dict inside the usual wrappings, EMA weights before others."""
    if not isinstance(content, Mapping):
        return {}
    # openfold's training writes the EMA beside the last weights, and evaluates the EMA
    ema = content.get("ema")
    candidates = [ema.get("params") if isinstance(ema, Mapping) else None, ema]
    candidates += [content.get(key) for key in ("module", "model", "state_dict")]
    candidates.append(content)
    for candidate in candidates:
        if tensors := tensors_in(candidate):
            return tensors
    return {}


def _load_npz(model: nn.Module, path: Path, version: str) -> None:
    import numpy as np
    from openfold.utils import import_weights

    if not path.is_file():
        raise CheckpointError(f"No such file: {path}.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = set(archive.files)
    except Exception as error:  # damaged bytes can make the zip reader fail in any way
        raise CheckpointError(f"{path} is damaged or no npz archive: {error}") from error
    # compared before the import, which would stop at the first wrong name with the model half
    # filled
    places = import_weights.process_translation_dict(
        import_weights.generate_translation_dict(model, version)
    )
    missing = tuple(name for name in places if name not in names)
    if missing:
        report = KeyReport(missing=missing, unexpected=tuple(sorted(names - set(places))))
        raise CheckpointError(f"{path} does not fit {version}. {report}")
    unused = sorted(names - set(places))
    if unused:
        logger.warning("%s: %d arrays have no place in %s: %s", path, len(unused), version, unused)
    printed = io.StringIO()  # the importer prints the name of an array that does not fit
    try:
        with contextlib.redirect_stdout(printed):
            import_weights.import_jax_weights_(model, str(path), version=version)
    except Exception as error:  # the importer asserts, indexes and copies; each fails its own way
        name = printed.getvalue().partition("\n")[0]
        raise CheckpointError(f"{path} does not fit {version}: {name} {error}") from error
