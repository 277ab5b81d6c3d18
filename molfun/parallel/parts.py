"""Read and write tensors that are divided among processes, whatever the number of these.

torch.distributed.checkpoint writes them as safetensors, one file per process, and reads from these
what each process needs. The rest of a state stays where it is, with a note in the place of each
tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from molfun._io import sha256_of
from molfun.errors import CheckpointError
from molfun.parallel.ranks import Ranks

Place = tuple[Any, ...]
"""Keys that lead to a value of a state."""
PARTS, NOTE = "parts", "in parts"
"""Entry of a state for the files of its tensors, and key of a note in the place of a tensor."""
FOLDER = "parts-{number}"


def write(
    content: dict[str, Any],
    folder: Path,
    divided: Callable[[Place, torch.Tensor], torch.Tensor | None],
    ranks: Ranks,
) -> dict[str, Any]:
    """Write the divided tensors of a state, and return it with notes in their place.

    Parameters
    ----------
    content
        State as each process has it.
    folder
        Folder of the state; the tensors go into a new one in it.
    divided
        Returns a tensor as a part of one of all processes, or None for one that is none.
    ranks
        The processes, all of which call this.
    """
    # here and below: the import takes a second
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    tensors: dict[str, torch.Tensor] = {}

    def noted(place: Place, tensor: torch.Tensor) -> Any:
        found = divided(place, tensor)
        if found is None:
            return tensor
        key = "/".join(map(str, place))
        tensors[key] = found
        return {NOTE: key, "shape": list(found.shape), "dtype": str(found.dtype)[len("torch.") :]}

    rest = changed(content, noted)
    used = [int(path.name.split("-")[1]) for path in folder.glob(FOLDER.format(number="*"))]
    name = FOLDER.format(number=ranks.gather(max(used, default=-1) + 1)[0])
    place = folder / name
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True))
    mine = place.glob(f"shard-{ranks.index + 1:05d}-*")
    sums = ranks.gather({path.name: sha256_of(path) for path in mine})
    files = {file: checksum for each in sums for file, checksum in each.items()}
    return {**rest, PARTS: {"folder": name, "files": files}}


def read(
    content: dict[str, Any],
    folder: Path,
    empty: Callable[[Place, torch.Tensor], torch.Tensor],
) -> dict[str, Any]:
    """Return a state with the tensors in the place of their notes.

    Parameters
    ----------
    content
        Result of `write`; one without notes is returned as it is.
    folder
        Folder of the state.
    empty
        Returns the tensor to read into: the whole one it is given (on the device "meta"), or the
        part of this process.

    Raises
    ------
    CheckpointError
        If the files are missing or damaged.
    """
    if PARTS not in content:
        return content
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    place = folder / content[PARTS]["folder"]
    _check(place, content[PARTS]["files"])
    tensors: dict[str, torch.Tensor] = {}
    for at, note in _notes(content):
        like = torch.empty(note["shape"], dtype=getattr(torch, note["dtype"]), device="meta")
        tensors[note[NOTE]] = empty(at, like)
    alone = all(type(tensor) is torch.Tensor for tensor in tensors.values())
    with warnings.catch_warnings():
        # a process alone, or one that reads for itself
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(place)), no_dist=alone)
    return _filled({k: v for k, v in content.items() if k != PARTS}, tensors)


def read_whole(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a state with whole tensors."""
    return read(content, folder, lambda _, like: torch.empty(like.shape, dtype=like.dtype))


def changed(value: Any, change: Callable[[Place, torch.Tensor], Any], at: Place = ()) -> Any:
    """Return nested dicts and lists with each tensor replaced by what `change` gives for it."""
    if isinstance(value, torch.Tensor):
        return change(at, value)
    if isinstance(value, dict):
        return {key: changed(each, change, (*at, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [changed(each, change, (*at, i)) for i, each in enumerate(value)]
    return value


def _notes(value: Any, at: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    if isinstance(value, dict):
        if NOTE in value:
            yield at, value
            return
        for key, each in value.items():
            yield from _notes(each, (*at, key))


def _filled(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if NOTE in value:
        found = tensors[value[NOTE]]
        return found.to_local() if hasattr(found, "to_local") else found
    return {key: _filled(each, tensors) for key, each in value.items()}


def _check(place: Path, files: dict[str, str]) -> None:
    for name, checksum in files.items():
        path = place / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, a part of the state next to it.")
        if sha256_of(path) != checksum:
            raise CheckpointError(f"{path} is damaged (checksum), a part of the state next to it.")
