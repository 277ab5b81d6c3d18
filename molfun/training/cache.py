"""Cache for outputs of the frozen part of a backbone: computed once, used in every later epoch.

An entry belongs to one sample. It holds the trunk's output if the whole backbone is frozen, else
the activations before the first block that trains. Its key covers everything the entry depends on:
the weights and configuration of the frozen part, the sample's content and crop, the feature
settings, the representations, the precision, the device and the versions of the software. A changed
input gives another key; a damaged entry fails its checksum and is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from molfun import _temporary
from molfun._io import load_safetensors, save_safetensors
from molfun._paths import as_path
from molfun.errors import CheckpointError, ConfigError, RunError
from molfun.strict import check_choice
from molfun.text import megabytes

logger = logging.getLogger(__name__)

CacheMode = Literal["auto", "memory", "disk", "off"]
CachePrecision = Literal["float32", "bfloat16"]
SUFFIX = ".safetensors"
RESERVE = 2**30
"""Bytes of the disk that are left free if no budget is given."""
LAYOUT = "entries 2"
"""Part of every key; change it when entries are stored in another way."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Settings of the cache for the frozen part of a backbone.

    Parameters
    ----------
    mode
        ``"auto"`` fills memory first and then the folder, if there is one; ``"memory"`` writes
        nothing to disk; ``"disk"`` writes every entry; ``"off"`` keeps nothing.
    directory
        Folder for "auto" and "disk"; several runs may share it. By default inside the run's.
    memory_gb
        Budget for entries in memory, in GB (2**30 bytes).
    disk_gb
        Largest size of the folder, in GB; None writes until 1 GB of the disk is left.
    precision
        ``"bfloat16"`` halves every entry, at a relative error of up to 0.4 % (2**-8) per number.
        The first epoch reads rounded entries like the later ones, so all epochs see equal inputs.
    keep_for_others
        Write entries to the folder, if there is one, even while memory has room for them: for
        further runs on the same samples, such as the folds of a cross-validation.

    Raises
    ------
    ConfigError
        If a name is unknown or a budget negative.

    Examples
    --------
    >>> CacheConfig(mode="disk", directory="cache", disk_gb=50).memory_gb
    4.0
    """

    mode: CacheMode = "auto"
    directory: str | Path | None = None
    memory_gb: float = 4.0
    disk_gb: float | None = None
    precision: CachePrecision = "float32"
    keep_for_others: bool = False

    @property
    def memory_bytes(self) -> int:
        """Budget for entries in memory, in bytes."""
        return 0 if self.mode in ("disk", "off") else int(self.memory_gb * 2**30)

    def __post_init__(self) -> None:
        check_choice("cache mode", self.mode, get_args(CacheMode))
        check_choice("cache precision", self.precision, get_args(CachePrecision))
        for name in ("memory_gb", "disk_gb"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {value!r}.")


@dataclass(eq=False)
class PrefixCache:
    """Entries under content keys: in memory up to a budget, then on disk.

    Parameters
    ----------
    prefix
        Part of the keys for everything except the sample: weights, settings, precision.
    directory
        Folder for entries on disk; several processes may share it. None uses memory only.
    memory_budget
        Bytes kept in memory; 0 writes every entry to disk.
    disk_budget
        Bytes the folder may grow to; what other processes add meanwhile is not counted. None leaves
        `RESERVE` bytes of the disk free.
    dtype
        Type in which floating-point numbers are kept.
    write_all
        Whether entries that memory has room for are written as well.

    Attributes
    ----------
    hits, misses
        Number of entries found and not found.
    seconds
        Time to compute each missing entry.
    written
        Bytes written to disk.
    """

    prefix: str
    _: KW_ONLY
    directory: Path | None = None
    memory_budget: int = 4 * 2**30
    disk_budget: int | None = None
    dtype: torch.dtype = torch.float32
    write_all: bool = False

    def __post_init__(self) -> None:
        self._memory: dict[str, dict[str, torch.Tensor]] = {}
        self._folder_bytes: int | None = None
        self._disk_works = self.directory is not None
        self._told_full = False
        self.held = self.written = self.hits = self.misses = 0
        self.seconds: list[float] = []

    def key(self, content: str) -> str:
        """Return the key of an entry, from the content key of its sample."""
        return hashlib.sha256(f"{self.prefix}|{content}".encode()).hexdigest()

    def holds(self, key: str) -> bool:
        """Return whether there is an entry under `key`; its content is not checked."""
        if key in self._memory:
            return True
        return self.directory is not None and self._path(key).is_file()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return the entry under `key`, or None."""
        tensors = self._memory.get(key)
        if tensors is None:
            tensors = self._read(key)
            if tensors is not None and self.held + _size(tensors) <= self.memory_budget:
                self._memory[key] = tensors
                self.held += _size(tensors)
        if tensors is None:
            self.misses += 1
            return None
        self.hits += 1
        return self._as_read(tensors)

    def put(
        self, key: str, output: Mapping[str, torch.Tensor], *, since: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Store `output` (one sample) under `key`, and return what `get` will return.

        `since` is the ``time.perf_counter()`` at which its computation began.
        """
        tensors = {name: self._as_kept(tensor) for name, tensor in output.items()}
        if since is not None:  # the copy above waited for the GPU, so the time is complete now
            self.seconds.append(time.perf_counter() - since)
        size = _size(tensors)
        in_memory = self.held + size <= self.memory_budget
        if in_memory:
            self._memory[key] = tensors
            self.held += size
        if in_memory and not self.write_all:
            return self._as_read(tensors)
        if self._disk_works and self._has_room(size):
            self._write(key, tensors, size)
        elif not in_memory and not self._told_full:
            self._told_full = True
            logger.warning(
                "The frozen-prefix cache is full (%s in memory, %s written): what does not fit is "
                "computed again in every epoch. Raise its budgets, or keep entries in bfloat16.",
                megabytes(self.held),
                megabytes(self.written),
            )
        return self._as_read(tensors)

    def clear(self) -> None:
        """Drop the entries in memory."""
        self._memory.clear()
        self.held = 0

    def _as_kept(self, tensor: torch.Tensor) -> torch.Tensor:
        kept = tensor.detach().cpu()
        floats = kept.is_floating_point() and self.dtype == torch.bfloat16
        # a copy: on a CPU, `.cpu()` returns the same tensor, and a view would keep its whole buffer
        return kept.to(self.dtype, copy=True) if floats else kept.clone()

    def _as_read(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.dtype != torch.bfloat16:
            return tensors
        return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}

    def _path(self, key: str) -> Path:
        assert self.directory is not None
        # 256 sub-folders, as git does: folders with very many files are slow on network drives
        return self.directory / key[:2] / f"{key}{SUFFIX}"

    def _has_room(self, size: int) -> bool:
        assert self.directory is not None
        if self.disk_budget is None:
            # the folder is made with its first entry; its disk is that of the nearest parent
            existing = self.directory
            while not existing.exists():
                existing = existing.parent
            return shutil.disk_usage(existing).free - size > RESERVE
        if self._folder_bytes is None:
            # once per run: listing a large folder takes longer than a step
            self._folder_bytes = sum(
                path.stat().st_size for path in self.directory.glob(f"??/*{SUFFIX}")
            )
        return self._folder_bytes + size <= self.disk_budget

    def _read(self, key: str) -> dict[str, torch.Tensor] | None:
        if self.directory is None:
            return None
        try:
            if not self._path(key).is_file():
                return None
            # sealed: an entry without checksum was cut off or comes from elsewhere
            return load_safetensors(self._path(key), key=key, sealed=True)
        except OSError as error:
            logger.warning("Cache entry %s cannot be read: %s.", self._path(key), error.strerror)
        except CheckpointError:
            logger.warning("Cache entry %s is damaged; it is computed again.", self._path(key))
            with contextlib.suppress(OSError):
                self._path(key).unlink(missing_ok=True)
        return None

    def _write(self, key: str, tensors: dict[str, torch.Tensor], size: int) -> None:
        path = self._path(key)
        if path.is_file():  # another run was faster, and its entry is the same
            return
        try:
            # other runs may have been killed while they wrote into a shared folder
            _temporary.sweep(path.parent)
            save_safetensors(path, tensors, key=key)
        except (RunError, OSError) as error:
            # a full disk makes later epochs slower; it must not end the run
            self._disk_works, self._told_full = False, True
            logger.warning("The cache stops writing to disk: %s", error)
            return
        self.written += size
        if self._folder_bytes is not None:
            self._folder_bytes += size

    def report(self) -> str:
        """Return how much work the cache saved, in one sentence; empty if no entry was used."""
        if not self.hits:
            return ""
        text = (
            f"Frozen-prefix cache: the frozen part of the backbone ran {self.misses} times instead "
            f"of {self.misses + self.hits}"
        )
        if self.misses and self.seconds:
            # median: the first runs are slower (allocation, kernels)
            saved = self.hits * statistics.median(self.seconds)
            text += f", which saved about {_duration(saved)}"
        places = {"memory": self.held, "disk": self.written}
        kept = [f"{megabytes(n)} {where}" for where, n in places.items() if n]
        return f"{text} ({', '.join(kept)})." if kept else f"{text}."


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def make_cache(config: CacheConfig, prefix: Sequence[str]) -> PrefixCache | None:
    """Return the cache for a configuration; None if it is off.

    Raises
    ------
    RunError
        If entries must go to disk and there is no folder.
    """
    if config.mode == "off":
        return None
    folder: Path | None = None
    if config.directory is not None and config.mode != "memory":
        folder = as_path(config.directory)
    if config.mode == "disk" and folder is None:
        raise RunError("cache='disk' needs a folder: pass cache_dir=... or output_dir=....")
    options: dict[str, Any] = {}
    if config.disk_gb is not None:
        options["disk_budget"] = int(config.disk_gb * 2**30)
    return PrefixCache(
        "|".join([LAYOUT, *prefix, *(["bfloat16"] if config.precision == "bfloat16" else [])]),
        directory=folder,
        memory_budget=config.memory_bytes,
        dtype=getattr(torch, config.precision),
        write_all=config.keep_for_others,
        **options,
    )
