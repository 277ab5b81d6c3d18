"""Portable checkpoint: a folder with all that prediction needs, and no pickled code.

::

    checkpoint/
      meta.pt, meta.json   description: backbone, heads, strategy, result (the same content twice)
      head.pt              weights of the head
      peft_adapter/        adapters in the PEFT format (LoRA only)
      training_inputs.safetensors  digests of the training inputs, 8 bytes per sample
      training_record.safetensors  keyed hashes of the training sequences, and vectors of some rows
      trunk.safetensors    backbone weights that differ from the base file; all weights if there
                           is no base file
      manifest.json        size and sha256 of every file
      README.md            model card
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molfun import __version__, _seals
from molfun._io import (
    atomic_directory,
    format_of,
    load_safetensors,
    load_torch,
    save_safetensors,
    save_torch,
    sha256_of,
    write_json,
    write_text,
)
from molfun._paths import as_path
from molfun.errors import CheckpointError, MolfunError
from molfun.fingerprint import tensor_digests
from molfun.nn.allocation_cap import AllocationCap
from molfun.runs.card import card_text
from molfun.text import listing

logger = logging.getLogger(__name__)

FORMAT, FORMAT_OF_SEVERAL = 1, 2
"""Formats 1 (entries ``head`` and ``task`` of a single head) and 2 (``heads``, a list)."""
META, META_JSON, HEAD, TRUNK = "meta.pt", "meta.json", "head.pt", "trunk.safetensors"
ADAPTER, MANIFEST, CARD = "peft_adapter", "manifest.json", "README.md"
SEEN, RECORD = "training_inputs.safetensors", "training_record.safetensors"


@dataclass(frozen=True, kw_only=True)
class HeadMeta:
    """Description of one head in a checkpoint; plain values only.

    Parameters
    ----------
    head, task
        ``name``, ``config``, and for the task ``state`` (label statistics).
    name, weight
        Name among several heads, and weight of its loss; a single head has defaults for both.
    """

    head: dict[str, Any]
    task: dict[str, Any]
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Description of a checkpoint; plain values only.

    Parameters
    ----------
    backbone
        ``name``, ``config`` (rebuilds the architecture), ``weights`` (path of the base file as the
        user gave it, or None), further paths that help to find it, and ``fingerprint`` of the base.
    heads
        Each head with its task.
    strategy
        Result of `FinetuneStrategy.to_dict`, or None.
    whole_trunk
        Whether ``trunk.safetensors`` holds the whole backbone.
    result
        Row of the history from the epoch of the weights.
    data
        Settings with which the training set prepared its inputs (``max_length``, ``crop``).
    """

    backbone: dict[str, Any]
    heads: list[HeadMeta]
    strategy: dict[str, Any] | None
    whole_trunk: bool
    result: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    molfun_version: str = __version__

    def to_content(self) -> dict[str, Any]:
        """Return the entries of the file.

        A single head is written in format 1, so that older versions of Molfun can read it.
        """
        entries = dict(vars(self))
        heads = [dict(vars(one)) for one in entries.pop("heads")]
        if [one.name for one in self.heads] == [""]:
            parts = {"head": heads[0]["head"], "task": heads[0]["task"], "format": FORMAT}
        else:
            parts = {"heads": heads, "format": FORMAT_OF_SEVERAL}
        return {"backbone": entries.pop("backbone"), **parts, **entries}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Meta:
        """Build the description from entries of either format.

        Raises
        ------
        TypeError
            If an entry is missing or unknown.
        """
        entries = {name: value for name, value in content.items() if name != "format"}
        several = entries.pop("heads", None)
        if several is None:
            found = {name: entries.pop(name) for name in ("head", "task") if name in entries}
            several = [found]
        return cls(heads=[HeadMeta(**one) for one in several], **entries)


def write_checkpoint(
    path: str | Path,
    meta: Meta,
    *,
    head: Mapping[str, torch.Tensor],
    trunk: Mapping[str, torch.Tensor],
    save_adapter: Any = None,
    training_inputs: np.ndarray | None = None,
    training_record: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint folder; the old one stays until the new one is complete.

    Parameters
    ----------
    path
        The folder.
    meta
        Description.
    head, trunk
        Weights; with several heads, keys begin with their names. An empty `trunk` writes no file.
    save_adapter
        Function that writes the adapters into a folder; None without adapters.
    training_inputs
        Digests of the training inputs, int64; None or empty writes no file.
    training_record
        What tells how far samples are from the training rows; None or empty writes no file.
    """
    content = meta.to_content()
    _refuse_other_folders(Path(path))
    with atomic_directory(path) as folder:
        save_torch(folder / META, content)
        write_json(folder / META_JSON, content)
        # on the CPU, so that a machine without a GPU can load it
        save_torch(folder / HEAD, {k: v.detach().cpu() for k, v in head.items()})
        if trunk:
            _write_trunk(folder / TRUNK, trunk, Path(path) / TRUNK)
        if training_inputs is not None and len(training_inputs):
            save_safetensors(folder / SEEN, {"inputs": torch.from_numpy(training_inputs)})
        if training_record:
            save_safetensors(folder / RECORD, training_record)
        if save_adapter is not None:
            save_adapter(folder / ADAPTER)
        write_json(folder / MANIFEST, _measure(folder))
        # after the manifest, which leaves it out: users edit the card
        write_text(folder / CARD, card_text(content))


def put_record(path: Path, record: Mapping[str, torch.Tensor]) -> None:
    """Replace the record of the training rows in a checkpoint; all else stays as it is."""
    entries = json.loads(_manifest_of(path).read_text(encoding="utf-8"))
    with atomic_directory(path) as folder:
        shutil.copytree(path, folder, copy_function=_link, dirs_exist_ok=True)
        # links: the files of the old folder must not change
        for name in (RECORD, MANIFEST):
            (folder / name).unlink(missing_ok=True)
        save_safetensors(folder / RECORD, record)
        entries[RECORD] = _measured(folder / RECORD)
        write_json(folder / MANIFEST, dict(sorted(entries.items())))


def foreign_files(path: Path) -> list[str]:
    """Return names of files that do not belong to a checkpoint, and that a new one would remove."""
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    own = {META, META_JSON, HEAD, TRUNK, SEEN, RECORD, ADAPTER, MANIFEST, CARD}
    # a folder without any of these is not a checkpoint, whatever else it holds: README.md, say
    if names and not {MANIFEST, META, META_JSON} & set(names):
        return names
    return [name for name in names if name not in own]


def _refuse_other_folders(path: Path) -> None:
    """Refuse to replace a file, or a folder that holds anything but a checkpoint."""
    if os.path.lexists(path) and not path.is_dir():
        raise CheckpointError(
            f"{path} is a file, which a checkpoint folder would replace. Choose a new folder, for "
            f"example {path.with_name('checkpoint')}."
        )
    foreign = foreign_files(path)
    if foreign:
        raise CheckpointError(
            f"{path} holds other files ({', '.join(foreign[:4])}) "
            f"that do not belong to a checkpoint; saving would replace them. Move them, or choose "
            f"a new folder, for example {path / 'checkpoint'}."
        )


def _write_trunk(path: Path, trunk: Mapping[str, torch.Tensor], previous: Path) -> None:
    """Write the backbone's weights, or hard-link the equal file of the replaced checkpoint.

    A run writes a checkpoint at every improvement, and a frozen trunk of several hundred MB does
    not change in between.
    """
    content = hashlib.sha256(repr(sorted(tensor_digests(trunk).items())).encode()).hexdigest()
    if _stored_content(previous) == content and _is_intact(previous):
        # the folder is exchanged as a whole afterwards; the link keeps the content alive
        _link(previous, path)
        return
    save_safetensors(path, trunk, {"content": content})


def _link(source: str | Path, target: str | Path) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _stored_content(path: Path) -> str | None:
    """Return the digest of the tensors from the file's header; None if there is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("content")
    except (SafetensorError, OSError):
        return None


def _is_intact(path: Path) -> bool:
    """Return whether a file agrees with the manifest in its folder."""
    try:
        # a damaged file must not be linked into the new checkpoint
        entries = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))
        return sha256_of(path) == entries[path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _measure(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        file.relative_to(folder).as_posix(): _measured(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def _measured(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}


def read_meta(path: str | Path) -> Meta:
    """Verify a checkpoint folder against its manifest, and read its description.

    Raises
    ------
    CheckpointError
        If the folder is missing or incomplete, a file is damaged, or the format is another one.
    """
    folder = as_path(path)
    # first: a folder that was copied in part is named as such, and not by what fails later
    verify(folder)
    content = load_torch(folder / META)
    found = format_of(content)
    if found not in (FORMAT, FORMAT_OF_SEVERAL):
        raise CheckpointError(
            f"{folder} has checkpoint format {found}; this version of Molfun reads {FORMAT} and "
            f"{FORMAT_OF_SEVERAL}. "
            f"Update Molfun, or save the checkpoint again with the version that wrote it."
        )
    try:
        meta = Meta.from_content(content)
    except TypeError as error:
        raise CheckpointError(f"{folder / META} lacks entries: {error}") from error
    # weights_only=True guarantees plain values, not the right ones
    wrong = [*_mistyped(meta, _KINDS)]
    for one in meta.heads:
        wrong += _mistyped(one, _HEAD_KINDS, of=f" of the head {one.name}" if one.name else "")
    if wrong:
        kinds = ", ".join(wrong)
        raise CheckpointError(f"{folder / META} is damaged: {kinds}. {_seals.ADVICE}")
    return meta


_KINDS: dict[str, Any] = {
    "backbone.name": str, "backbone.config": dict, "backbone.weights": str | None,
    "backbone.fingerprint": str, "strategy": dict | None, "whole_trunk": bool, "result": dict,
    "data": dict,
}  # fmt: skip
_HEAD_KINDS: dict[str, Any] = {
    "head.name": str, "head.config": dict, "task.name": str, "task.config": dict,
    "task.state": dict, "name": str, "weight": float,
}  # fmt: skip
"""Types of the entries of a description and of each head."""


def _mistyped(part: Meta | HeadMeta, kinds: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """Yield a text for each entry of the wrong type."""
    for name, kind in kinds.items():
        value = _entry(part, name)
        if not isinstance(value, kind):
            yield f"{name}{of} is {type(value).__name__}"


def _entry(part: Meta | HeadMeta, name: str) -> Any:
    """Return an entry by its dotted name; Ellipsis, which has no allowed type, if it is missing."""
    group, _, key = name.partition(".")
    content = getattr(part, group)
    if not key:
        return content
    return content.get(key, ...) if isinstance(content, dict) else ...


@contextlib.contextmanager
def building(folder: Path, base: Path | None = None) -> Iterator[None]:
    """Guard the building of a model from a checkpoint: limit its size, and raise one clear error.

    A few bytes of a description could ask for a model of any size, so building stops at far more
    memory than the files explain (see `molfun.nn.allocation_cap`).

    Parameters
    ----------
    folder
        The checkpoint.
    base
        File of its base weights.
    """
    try:
        with AllocationCap(folder, [folder, *([] if base is None else [base])]):
            yield
    except (MolfunError, MemoryError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except _MISTYPED as error:
        if "memory" in str(error):
            raise  # out of memory is no damage, and the caller knows what to lower
        raise CheckpointError(
            f"{folder} describes no model that can be built: {type(error).__name__} "
            f"{' '.join(str(error).split())[:200]}. {_seals.ADVICE}"
        ) from error


_MISTYPED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""Errors that values of wrong types raise while a model is built from them."""


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with the manifest.

    Raises
    ------
    CheckpointError
        Listing all files that are missing or differ.
    """
    manifest = _manifest_of(folder)
    try:
        entries = dict(json.loads(manifest.read_text(encoding="utf-8")))
        entries.pop(CARD, None)  # older versions listed the card, which users may edit
        problems = [p for name, entry in entries.items() if (p := _problem(folder, name, entry))]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest} is damaged: {error!r}.") from error
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    # a file that was added later is no less suspect than one that was changed
    unlisted = sorted({META, HEAD, *files} - {MANIFEST, CARD, *entries})
    problems += [f"{name}: not in the manifest" for name in unlisted]
    if problems:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged:\n{listing(problems)}\nCopy it again from its "
            f"source."
        )


def _manifest_of(folder: Path) -> Path:
    """Return the path of the manifest; refuse a folder without one, and say what it is instead."""
    if folder.is_file():
        is_part = (folder.parent / MANIFEST).is_file()
        place = f"the checkpoint is {folder.parent}" if is_part else "give a folder"
        raise CheckpointError(f"No checkpoint at {folder}: it is a file; {place}.")
    if not folder.is_dir():
        raise CheckpointError(
            f"No checkpoint at {folder}: no such folder. A run writes one to OUTPUT/checkpoint."
        )
    manifest = folder / MANIFEST
    if manifest.is_file():
        return manifest
    if (folder / "checkpoint" / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} is the folder of a run; its checkpoint is {folder / 'checkpoint'}."
        )
    raise CheckpointError(
        f"{folder} is not a complete checkpoint: {MANIFEST} is missing (found: "
        f"{', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'})."
    )


def _problem(folder: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    file = folder / name
    if not file.is_file():
        return f"{name}: missing"
    size = file.stat().st_size
    if size != entry["size"]:
        return f"{name}: {size} bytes, expected {entry['size']}"
    if sha256_of(file) != entry["sha256"]:
        return f"{name}: its content was changed (sha256 differs)"
    return None


def read_head(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights of the head."""
    content = load_torch(folder / HEAD)
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / HEAD} holds no state dict.")
    return content


def read_trunk(folder: Path) -> dict[str, torch.Tensor]:
    """Read the backbone weights of the checkpoint; empty if it stores none."""
    path = folder / TRUNK
    return load_safetensors(path) if path.is_file() else {}


def read_training_inputs(folder: Path) -> np.ndarray:
    """Read the digests of the training inputs; empty if the checkpoint stores none."""
    path = folder / SEEN
    found = load_safetensors(path).get("inputs") if path.is_file() else None
    return np.zeros(0, np.int64) if found is None else found.numpy().astype(np.int64)


def read_record(folder: Path) -> dict[str, torch.Tensor]:
    """Read the record of the training rows; empty if the checkpoint stores none."""
    path = folder / RECORD
    return load_safetensors(path) if path.is_file() else {}
