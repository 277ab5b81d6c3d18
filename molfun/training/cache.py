"""Outputs of a frozen backbone, computed once and used in every later epoch.

An entry is what the head reads of one sample's trunk output, unpadded. Its key covers all that the
entry depends on: the backbone's weights and configuration, the sample's content, the feature
settings, the representations, the precision, the device and the versions of the software. A
changed input gives another key; a damaged entry fails its checksum and is computed again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from molfun._io import load_safetensors, save_safetensors
from molfun.errors import CheckpointError, ConfigError, RunError, unknown_name

logger = logging.getLogger(__name__)

CacheMode = Literal["auto", "memory", "disk", "off"]
MEMORY_BUDGET = 4 * 2**30
"""Bytes of entries kept in memory; beyond it "auto" goes to disk if it has a folder."""


class PrefixCache:
    """Entries in memory up to a budget, then on disk, each under its content key.

    Parameters
    ----------
    prefix
        Text that covers everything but the sample (weights, settings, precision).
    directory
        Folder for entries on disk; several processes may share it. None keeps to memory.
    memory_budget
        Bytes kept in memory; 0 writes every entry to disk.

    Attributes
    ----------
    hits, misses
        Number of entries found and not found.
    """

    def __init__(
        self,
        prefix: str,
        *,
        directory: Path | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        self._prefix = prefix
        self._directory = directory
        self._budget = memory_budget
        self._memory: dict[str, dict[str, torch.Tensor]] = {}
        self._bytes = 0
        self._disk_works = directory is not None
        self.hits = 0
        self.misses = 0

    def key(self, content: str) -> str:
        """Key of a sample with that content key."""
        return hashlib.sha256(f"{self._prefix}|{content}".encode()).hexdigest()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The entry under `key`, or None."""
        tensors = self._memory.get(key)
        if tensors is None:
            tensors = self._read(key)
        if tensors is None:
            self.misses += 1
            return None
        self.hits += 1
        return tensors

    def put(self, key: str, output: Mapping[str, torch.Tensor]) -> None:
        """Keep `output` (one sample) under `key`."""
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in output.items()}
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._bytes + size <= self._budget:
            self._memory[key] = tensors
            self._bytes += size
        elif self._disk_works:
            self._write(key, tensors)

    def _path(self, key: str) -> Path:
        assert self._directory is not None
        return self._directory / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> dict[str, torch.Tensor] | None:
        if self._directory is None or not self._path(key).is_file():
            return None
        try:
            tensors = load_safetensors(self._path(key))
            stored = tensors.pop("checksum")
        except (CheckpointError, KeyError):
            stored, tensors = torch.zeros(0), {}
        if not tensors or not torch.equal(stored, checksum(tensors)):
            logger.warning("Cache entry %s is damaged; it is computed again.", self._path(key))
            self._path(key).unlink(missing_ok=True)
            return None
        return tensors

    def _write(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        try:
            save_safetensors(self._path(key), {**tensors, "checksum": checksum(tensors)})
        except (RunError, OSError) as error:
            self._disk_works = False
            logger.warning("The cache stops writing to disk: %s", error)


def checksum(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sha256 over names, shapes and bytes, as 32 bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def make_cache(
    mode: CacheMode, prefix: Sequence[str], directory: str | Path | None
) -> PrefixCache | None:
    """Make the cache of a mode.

    ``"memory"`` never writes; ``"disk"`` always does (and needs `directory`); ``"auto"`` fills
    memory first and then the directory, if there is one; ``"off"`` gives None.
    """
    if mode not in get_args(CacheMode):
        raise ConfigError(unknown_name("cache mode", mode, get_args(CacheMode)))
    if mode == "off":
        return None
    folder = None if directory is None or mode == "memory" else Path(directory)
    if mode == "disk" and folder is None:
        raise RunError("cache='disk' needs a folder: pass cache_dir=... or output_dir=....")
    budget = 0 if mode == "disk" else MEMORY_BUDGET
    return PrefixCache("|".join(prefix), directory=folder, memory_budget=budget)
