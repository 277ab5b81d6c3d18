"""Write representations of many sequences, in shards that a stopped run goes on from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import DirectoryLock, atomic_path, write_json
from molfun._lazy import require
from molfun.cli.console import progress, say
from molfun.data.sequences import SequenceDataset
from molfun.errors import ConfigError, RunError
from molfun.models.structure import MolfunStructureModel

logger = logging.getLogger(__name__)

FORMATS = (".npz", ".h5", ".parquet")


def run(
    model: MolfunStructureModel,
    data: SequenceDataset,
    output: str,
    *,
    pooling: str | None,
    layer: int,
    shard_size: int,
    overwrite: bool,
) -> None:
    """Embed and write; a shard that is there already is not computed again.

    Raises
    ------
    ConfigError
        If the file name has another suffix than .npz, .h5 or .parquet.
    RunError
        If the file is there, or the shards beside it are of another run.
    """
    path = Path(output).expanduser()
    if path.suffix not in FORMATS:
        raise ConfigError(f"--output must end in {', '.join(FORMATS)}, got {path.name!r}.")
    if path.suffix == ".h5":
        require("h5py", "pip install h5py")
    if shard_size < 1:
        raise ConfigError(f"--shard-size must be at least 1, got {shard_size}.")
    model.check(data)
    parts = [range(i, min(i + shard_size, len(data))) for i in range(0, len(data), shard_size)]
    if len(parts) == 1:
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists. Replace it with --overwrite, or choose another name.")
        _write(path, data.ids, _embed(model, data, pooling, layer))
        say(f"{len(data):,} sequences embedded: {path}")
        return
    with DirectoryLock(path.parent):
        names = _shards(path, len(parts))
        _claim(path, _identity(model, data, pooling, layer, shard_size), names, overwrite=overwrite)
        work = [(n, p) for n, p in zip(names, parts, strict=True) if not n.exists()]
        if len(work) < len(parts):
            say(f"{len(parts) - len(work)} of {len(parts)} shards are there already")
        for name, part in progress(work, "embedding"):
            subset = data.subset(list(part))
            _write(name, subset.ids, _embed(model, subset, pooling, layer))
    say(f"{len(data):,} sequences embedded: {names[0]} to {names[-1].name}")


def _embed(
    model: MolfunStructureModel, data: SequenceDataset, pooling: Any, layer: int
) -> list[np.ndarray]:
    return list(model.embed(data, pooling=pooling, layer=layer))


def _shards(path: Path, n: int) -> list[Path]:
    return [path.with_name(f"{path.stem}-{i:05d}-of-{n:05d}{path.suffix}") for i in range(n)]


def _identity(
    model: MolfunStructureModel, data: SequenceDataset, pooling: str | None, layer: int, size: int
) -> dict[str, Any]:
    content = [f"{i} {chain}" for i, (chain,) in zip(data.ids, data.sequences(), strict=True)]
    return {
        "model": model.backbone.state_fingerprint(),
        "settings": model.backbone.featurize_key(),
        "sequences": hashlib.sha256("\n".join(content).encode()).hexdigest(),
        "max_length": data.max_length,
        "pooling": pooling,
        "layer": layer,
        "shard_size": size,
    }


def _claim(path: Path, identity: dict[str, Any], names: Sequence[Path], *, overwrite: bool) -> None:
    """Go on from shards of the same model, sequences and settings only."""
    note = path.with_name(f"{path.stem}.json")
    if overwrite:
        for name in names:
            name.unlink(missing_ok=True)
    elif any(name.exists() for name in names):
        try:
            stored = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stored = {}
        different = [key for key in identity if stored.get(key) != identity[key]]
        if different:
            raise RunError(
                f"{names[0].parent} holds shards made with another {', '.join(different)}. Replace "
                f"them with --overwrite, or choose another name."
            )
    write_json(note, identity)


def _write(path: Path, ids: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
    """Write ids and arrays atomically.

    ``.npz``: ``ids`` and ``embeddings`` (samples, channels); for residues (residues, channels) of
    all samples with ``offsets``, so that sample i is ``embeddings[offsets[i]:offsets[i + 1]]``.
    ``.h5``: one data set an id. ``.parquet``: columns ``id`` and ``embedding``.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **_flat(ids, arrays))
        elif path.suffix == ".h5":
            import h5py

            with h5py.File(temporary, "w") as file:
                for name, array in zip(ids, arrays, strict=True):
                    file.create_dataset(name.replace("/", "|"), data=array)
        else:
            import pyarrow
            import pyarrow.parquet

            column = pyarrow.array([a.tolist() for a in arrays])
            table = pyarrow.table({"id": list(ids), "embedding": column})
            pyarrow.parquet.write_table(table, temporary)


def _flat(ids: Sequence[str], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    names = np.array(ids, dtype=str)
    if arrays[0].ndim == 1:
        return {"ids": names, "embeddings": np.stack(arrays)}
    offsets = np.cumsum([0, *(len(a) for a in arrays)])
    return {"ids": names, "embeddings": np.concatenate(arrays), "offsets": offsets}
