"""The portable checkpoint: a folder that suffices to predict, and nothing that can run.

::

    checkpoint/
      meta.pt, meta.json   what was trained on what (the same content twice)
      head.pt              weights of the head
      peft_adapter/        adapters in the PEFT format (LoRA only)
      training_inputs.safetensors  digests of the inputs it was trained on, 8 bytes per sample
      trunk.safetensors    backbone weights that differ from the base file; all of them where the
                           base came from no file
      manifest.json        size and sha256 of every file
      README.md            model card
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
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
from molfun.text import listing

logger = logging.getLogger(__name__)

FORMAT, FORMAT_OF_SEVERAL = 1, 2
"""With ``head`` and ``task`` of the only head; with ``heads``, a list of them."""
META, META_JSON, HEAD, TRUNK = "meta.pt", "meta.json", "head.pt", "trunk.safetensors"
ADAPTER, MANIFEST, CARD = "peft_adapter", "manifest.json", "README.md"
SEEN = "training_inputs.safetensors"


@dataclass(frozen=True, kw_only=True)
class HeadMeta:
    """Description of one head in a checkpoint; plain values only.

    Parameters
    ----------
    head, task
        ``name``, ``config``, and for the task ``state`` (label statistics).
    name, weight
        Name among several heads, and weight of its loss; the only head of a model has neither.
    """

    head: dict[str, Any]
    task: dict[str, Any]
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says of itself; plain values only.

    Parameters
    ----------
    backbone
        ``name``, ``config`` (rebuilds the architecture), ``weights`` (path of the base file as it
        was given, or None), what else helps to find it, and ``fingerprint`` of the base.
    heads
        Each head with its task.
    strategy
        `FinetuneStrategy.to_dict`, or None.
    whole_trunk
        Whether ``trunk.safetensors`` holds the whole backbone.
    result
        Row of the history the weights belong to.
    data
        How the training set prepared its inputs (``max_length``, ``crop``).
    """

    backbone: dict[str, Any]
    heads: list[HeadMeta]
    strategy: dict[str, Any] | None
    whole_trunk: bool
    result: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    molfun_version: str = __version__

    def to_content(self) -> dict[str, Any]:
        """Entries of the file; one head is written as versions before several heads read it."""
        entries = dict(vars(self))
        heads = [dict(vars(one)) for one in entries.pop("heads")]
        if [one.name for one in self.heads] == [""]:
            parts = {"head": heads[0]["head"], "task": heads[0]["task"], "format": FORMAT}
        else:
            parts = {"heads": heads, "format": FORMAT_OF_SEVERAL}
        return {"backbone": entries.pop("backbone"), **parts, **entries}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Meta:
        """Read entries of either format.

        Raises
        ------
        TypeError
            If one is missing or unknown.
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
) -> None:
    """Write a checkpoint folder; the old one stays until the new one is complete.

    Parameters
    ----------
    path
        The folder.
    meta
        Description.
    head, trunk
        Weights (of several heads by their names); an empty `trunk` writes no file.
    save_adapter
        Function that writes adapters into a folder; None where there are none.
    training_inputs
        Digests of what was trained on, int64; None or empty writes no file.
    """
    content = meta.to_content()
    _refuse_other_folders(Path(path))
    with atomic_directory(path) as folder:
        save_torch(folder / META, content)
        write_json(folder / META_JSON, content)
        save_torch(folder / HEAD, {k: v.detach().cpu() for k, v in head.items()})
        if trunk:
            _write_trunk(folder / TRUNK, trunk, Path(path) / TRUNK)
        if training_inputs is not None and len(training_inputs):
            save_safetensors(folder / SEEN, {"inputs": torch.from_numpy(training_inputs)})
        if save_adapter is not None:
            save_adapter(folder / ADAPTER)
        write_json(folder / MANIFEST, _measure(folder))
        write_text(folder / CARD, _card(meta))  # for people to edit, so no part of what is checked


def foreign_files(path: Path) -> list[str]:
    """List files that are no part of a checkpoint and that a new one would remove."""
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    own = {META, META_JSON, HEAD, TRUNK, SEEN, ADAPTER, MANIFEST, CARD}
    if names and not {MANIFEST, META, META_JSON} & set(names):
        return names
    return [name for name in names if name not in own]


def _refuse_other_folders(path: Path) -> None:
    """A checkpoint takes the place of a checkpoint or of nothing, never of other files."""
    foreign = foreign_files(path)
    if foreign:
        raise CheckpointError(
            f"{path} holds other files ({', '.join(foreign[:4])}) "
            f"that are no part of a checkpoint; saving would replace them. Move them, or choose a "
            f"new folder, for example {path / 'checkpoint'}."
        )


def _write_trunk(path: Path, trunk: Mapping[str, torch.Tensor], previous: Path) -> None:
    """Write the backbone's weights, or link to the same ones in the checkpoint being replaced.

    A run writes a checkpoint at every improvement; a frozen trunk does not change in between.
    """
    content = hashlib.sha256(repr(sorted(tensor_digests(trunk).items())).encode()).hexdigest()
    if _stored_content(previous) == content and _is_intact(previous):
        try:
            path.hardlink_to(previous)
        except OSError:  # a file system without links
            shutil.copyfile(previous, path)
        return
    save_safetensors(path, trunk, {"content": content})


def _stored_content(path: Path) -> str | None:
    """Digest of the tensors as the writer noted it in the file's header."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("content")
    except (SafetensorError, OSError):
        return None


def _is_intact(path: Path) -> bool:
    """Return whether a file is what the manifest beside it says."""
    try:
        entries = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))
        return sha256_of(path) == entries[path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _measure(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        file.relative_to(folder).as_posix(): {
            "size": file.stat().st_size,
            "sha256": sha256_of(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def _card(meta: Meta) -> str:
    strategy = meta.strategy["name"] if meta.strategy else "none"
    tasks = ", ".join(one.task["name"] for one in meta.heads)
    heads = " and ".join(
        f"{one.head['name']} ({one.name})" if one.name else one.head["name"] for one in meta.heads
    )
    rows = "\n".join(f"| {key} | {value} |" for key, value in meta.result.items())
    return (
        f"---\nlibrary_name: molfun\ntags: [{meta.backbone['name']}, {tasks}]\n---\n\n"
        f"# {meta.backbone['name']} with head {heads}\n\n"
        f"Fine-tuned with the strategy `{strategy}`, Molfun {meta.molfun_version}.\n"
        f"Base weights: `{meta.backbone['weights'] or 'random initialisation'}` "
        f"(fingerprint `{meta.backbone['fingerprint'][:16]}`).\n\n"
        f"| result | value |\n|---|---|\n{rows}\n\n"
        f"```python\nfrom molfun import MolfunStructureModel\n"
        f'model = MolfunStructureModel.from_checkpoint("path/to/this/folder")\n```\n'
    )


def read_meta(path: str | Path) -> Meta:
    """Check a checkpoint folder against its manifest and read its description.

    Raises
    ------
    CheckpointError
        If the folder is missing or incomplete, a file is damaged, or the format is another one.
    """
    folder = as_path(path)
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
"""Entries of the description, and of each head, and what they are."""


def _mistyped(part: Meta | HeadMeta, kinds: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """Name entries that are of another kind."""
    for name, kind in kinds.items():
        value = _entry(part, name)
        if not isinstance(value, kind):
            yield f"{name}{of} is {type(value).__name__}"


def _entry(part: Meta | HeadMeta, name: str) -> Any:
    """An entry by its dotted name; something that is of none of the kinds where it is missing."""
    group, _, key = name.partition(".")
    content = getattr(part, group)
    if not key:
        return content
    return content.get(key, ...) if isinstance(content, dict) else ...


@contextlib.contextmanager
def building(folder: Path, base: Path | None = None) -> Iterator[None]:
    """Hold what a checkpoint describes against its files and turn what it cannot be into one error.

    Parameters
    ----------
    folder
        The checkpoint.
    base
        Its base weights.
    """
    try:
        with AllocationCap(folder, [folder, *([] if base is None else [base])]):
            yield
    except (MolfunError, MemoryError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except _MISTYPED as error:
        if "memory" in str(error):
            raise  # for the caller, who knows what to lower
        raise CheckpointError(
            f"{folder} describes no model that can be built: {type(error).__name__} "
            f"{' '.join(str(error).split())[:200]}. {_seals.ADVICE}"
        ) from error


_MISTYPED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What values of the wrong kind raise where they are used."""


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
        entries.pop(CARD, None)  # checkpoints of older versions list it
        problems = [p for name, entry in entries.items() if (p := _problem(folder, name, entry))]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{manifest} is damaged: {error!r}.") from error
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    unlisted = sorted({META, HEAD, *files} - {MANIFEST, CARD, *entries})
    problems += [f"{name}: not in the manifest" for name in unlisted]
    if problems:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged:\n{listing(problems)}\nCopy it again from its "
            f"source."
        )


def _manifest_of(folder: Path) -> Path:
    """The manifest of a checkpoint; a folder without one is refused by what it is."""
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
        f"{folder} is no complete checkpoint: {MANIFEST} is missing (found: "
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
    """Weights of the head."""
    content = load_torch(folder / HEAD)
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / HEAD} holds no state dict.")
    return content


def read_trunk(folder: Path) -> dict[str, torch.Tensor]:
    """Backbone weights of the checkpoint; empty where it stores none."""
    path = folder / TRUNK
    return load_safetensors(path) if path.is_file() else {}


def read_training_inputs(folder: Path) -> np.ndarray:
    """Digests of the inputs a checkpoint was trained on; empty where it stores none."""
    path = folder / SEEN
    found = load_safetensors(path).get("inputs") if path.is_file() else None
    return np.zeros(0, np.int64) if found is None else found.numpy().astype(np.int64)
