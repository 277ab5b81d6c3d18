"""Write representations of many sequences, in shards with which a stopped run continues."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import atomic_path, sha256_of, write_json
from molfun._lazy import require
from molfun._paths import as_path
from molfun.cli.command_settings import EmbedSettings
from molfun.cli.console import Progress, say, set_up_logging
from molfun.cli.models import trained_as
from molfun.cli.outputs import Inputs, refuse_inputs
from molfun.cli.outputs import check_output as check_file
from molfun.cli.several import processes
from molfun.data.kinds.base import is_of, kind_of
from molfun.data.kinds.sequences import Sequences
from molfun.data.sequences import SequenceDataset
from molfun.data.stored_sequences import StoredSequences
from molfun.errors import ConfigError, RunError
from molfun.models.embedding import embedded
from molfun.models.loaders import all_samples
from molfun.models.precision import InferencePrecision, inference_precision
from molfun.models.structure import MolfunStructureModel
from molfun.nn.process import settled
from molfun.parallel.ranks import Ranks
from molfun.runs.folder import DirectoryLock

logger = logging.getLogger(__name__)

AnySequences = SequenceDataset | StoredSequences

SUMS = "sha256"
"""Key of the checksums in the note that is written next to the shards."""
FORMATS = (".npz", ".h5", ".parquet")


def embed(given: Mapping[str, Any]) -> None:
    """Embed sequences with the settings of the command line."""
    wanted, _ = EmbedSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    data = _open(wanted)
    inputs = {
        "--sequences": wanted.sequences,
        "CHECKPOINT": wanted.checkpoint,
        "--weights": wanted.weights,
    }
    size, overwrite = wanted.shard_size, wanted.overwrite
    check_output(wanted.output, data.ids, size, inputs, overwrite=overwrite)
    with processes(wanted) as ranks:
        run(
            _model(wanted),
            data,
            wanted.output,
            pooling=None if wanted.pooling == "none" else wanted.pooling,
            layer=wanted.layer,
            precision=wanted.precision,
            shard_size=size,
            overwrite=overwrite,
            ranks=ranks,
        )


def _open(wanted: EmbedSettings) -> AnySequences:
    """Open a table or FASTA file, or a file that another kind of data of the model alone reads."""
    name = wanted.backbone if wanted.checkpoint is None else trained_as(wanted.checkpoint)[0]
    own = kind_of(name, {"data": wanted.sequences})
    kind = own if is_of(type(own), wanted.sequences) else Sequences()
    try:
        data = kind.open_unlabelled(wanted.sequences, wanted)
    except NotImplementedError:
        data = None
    if not isinstance(data, AnySequences):
        raise ConfigError(
            f"{wanted.sequences} holds {kind.title}, which molfun embed cannot read. Embed them in "
            f"Python with model.embed(...)."
        )
    return data


def _model(wanted: EmbedSettings) -> MolfunStructureModel:
    """Build the model from a checkpoint, or from the name of a backbone."""
    options: dict[str, Any] = {"weights": wanted.weights, "device": wanted.device}
    if wanted.checkpoint is None:
        arguments = {} if wanted.long is None else {"long": wanted.long}
        return MolfunStructureModel(
            wanted.backbone, config=wanted.preset, backbone_config=arguments, **options
        )
    if wanted.long is not None:
        raise ConfigError("--long is for --backbone; a checkpoint keeps its own.")
    return MolfunStructureModel.from_checkpoint(wanted.checkpoint, **options)


def run(
    model: MolfunStructureModel,
    data: AnySequences,
    output: str,
    *,
    pooling: str | None,
    layer: int,
    shard_size: int,
    overwrite: bool,
    ranks: Ranks,
    precision: InferencePrecision | None = None,
) -> None:
    """Embed and write; a shard that is complete is not computed again.

    The processes of the command embed each shard together, and the first one writes it.

    Raises
    ------
    RunError
        If shards of another run are in the folder.
    """
    path = as_path(output)
    model.check(data)
    chosen = inference_precision(model, precision)
    fingerprint = model.backbone.state_fingerprint()
    origin = _Origin(fingerprint, pooling, layer, chosen)

    def write(file: Path, some: AnySequences) -> None:
        samples = all_samples(some)
        with settled():
            arrays = embedded(
                model, samples, pooling, layer=layer, precision=chosen, ranks=ranks  # type: ignore[arg-type]  # checked there
            )  # fmt: skip
        if ranks.is_first:
            _write(file, some.ids, arrays, origin.about(some))

    # shards by the order of the input: shard i of a resumed run has the same sequences
    parts = [range(i, min(i + shard_size, len(data))) for i in range(0, len(data), shard_size)]
    if len(parts) == 1:
        write(path, data)
        say(f"{len(data):,} sequences embedded: {path}")
        return
    names = _shards(path, len(parts))
    with DirectoryLock(path.parent) if ranks.is_first else contextlib.nullcontext():
        identity = origin.identity(model, data, shard_size)
        sums, missing = ranks.of_first(lambda: _work(path, identity, names, overwrite=overwrite))
        if len(missing) < len(parts):
            say(f"{len(parts) - len(missing)} of {len(parts)} shards are there already")
        for number in Progress(missing, "embedding"):
            name = names[number]
            write(name, data.subset(parts[number]))
            if ranks.is_first:
                # after each shard: a run that is killed loses one shard at most
                sums[name.name] = sha256_of(name)
                write_json(_note(path), {**identity, SUMS: sums})
    say(f"{len(data):,} sequences embedded: {names[0]} to {names[-1].name}")


def _work(
    path: Path, identity: dict[str, Any], names: Sequence[Path], *, overwrite: bool
) -> tuple[dict[str, Any], list[int]]:
    """Return the checksums of the shards that are there, and the numbers of those to make."""
    sums = _claim(path, identity, overwrite=overwrite)
    return sums, [number for number, name in enumerate(names) if not _is_whole(name, sums)]


def check_output(
    output: str, ids: Sequence[str], shard_size: int, inputs: Inputs, *, overwrite: bool
) -> None:
    """Refuse output files that cannot or must not be written, before anything is computed."""
    path = as_path(output)
    if path.suffix not in FORMATS:
        raise ConfigError(f"--output must end in {', '.join(FORMATS)}, got {path.name!r}.")
    if shard_size < 1:
        raise ConfigError(f"--shard-size must be at least 1, got {shard_size}.")
    if path.suffix == ".h5":
        require("h5py", "pip install h5py")
        _check_h5_names(ids)
    if len(ids) <= shard_size:
        check_file(output, inputs, overwrite=overwrite)
        return
    # a stopped run continues with its shards, so they may exist; `_claim` compares their origin
    for file in (*_shards(path, -(-len(ids) // shard_size)), _note(path)):
        refuse_inputs(file, inputs)


def _check_h5_names(ids: Sequence[str]) -> None:
    # only such ids can become equal
    changed = (name for name in ids if "/" in name or "|" in name)
    twice = [name for name, n in Counter(map(_h5_name, changed)).items() if n > 1]
    if twice:
        raise ConfigError(
            f"In an .h5 file {', '.join(twice[:3])} would stand for two ids: '/' is written as "
            f"'|' there. Write .npz or .parquet."
        )


def _shards(path: Path, n: int) -> list[Path]:
    return [path.with_name(f"{path.stem}-{i:05d}-of-{n:05d}{path.suffix}") for i in range(n)]


def _note(path: Path) -> Path:
    """Return the path of the note that describes the shards."""
    return path.with_name(f"{path.stem}.json")


@dataclass(frozen=True)
class _Origin:
    """Origin of the arrays, which is written beside them: arrays of another one are refused."""

    fingerprint: str
    pooling: str | None
    layer: int
    precision: str | None

    def identity(
        self, model: MolfunStructureModel, data: AnySequences, size: int
    ) -> dict[str, Any]:
        """Return what the note beside the shards says."""
        # with the ids, which are written into the shards as well
        content = hashlib.sha256()
        for i, (name, (chain,)) in enumerate(zip(data.ids, data.sequences(), strict=True)):
            content.update(f"{chr(10) * (i > 0)}{name} {chain}".encode())
        return {
            "model": self.fingerprint,
            "settings": model.backbone.featurize_key(),
            "sequences": content.hexdigest(),
            "max_length": data.max_length,
            "pooling": self.pooling,
            "layer": self.layer,
            "precision": self.precision,
            "shard_size": size,
        }

    def about(self, data: AnySequences) -> dict[str, Any]:
        """Return what each file says."""
        model = self.fingerprint if self.layer == -1 else f"{self.fingerprint} layer {self.layer}"
        about = {
            "model": np.array(model),
            "pooling": np.array(self.pooling or "none"),
            "sequences": np.array(data.digests()),
        }
        if self.precision is not None:
            about["precision"] = np.array(self.precision)
        return about


def _is_whole(path: Path, sums: Mapping[str, Any]) -> bool:
    """Return whether a shard has the content that was written, by its checksum."""
    if not path.exists():
        return False
    stored = sums.get(path.name)
    if stored is not None and stored == sha256_of(path):
        return True
    why = "is damaged (checksum)" if stored else "has no checksum in the note beside it"
    logger.warning("%s %s and is made again.", path, why)
    return False


def _read_note(note: Path) -> dict[str, Any]:
    """Read a note; an unreadable one counts as empty."""
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _claim(path: Path, identity: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Check that present shards have the same model, sequences and settings; return checksums."""
    sums: dict[str, Any] = {}
    note, present = _note(path), _present_shards(path)
    stored = _read_note(note)
    if note.exists() and not stored.keys() & identity.keys():
        raise RunError(
            f"{note} is no note of this command, which would replace it. Choose another name for "
            f"the shards, whose note it has."
        )
    # all of them: a run with another shard size would leave shards of two runs side by side
    if overwrite:
        for name in present:
            name.unlink(missing_ok=True)
    elif present:
        different = [key for key in identity if stored.get(key) != identity[key]]
        if different:
            raise RunError(
                f"{path.parent} holds shards {present[0].name} ... made with another "
                f"{', '.join(different)}. Replace them with --overwrite, or choose another name."
            )
        kept = stored.get(SUMS)
        sums = kept if isinstance(kept, dict) else {}
    write_json(note, {**identity, SUMS: sums})
    return sums


def _present_shards(path: Path) -> list[Path]:
    """Return the present shards of this name, whatever the number of parts they count."""
    if not path.parent.is_dir():
        return []
    whole = re.compile(rf"{re.escape(path.stem)}-\d{{5}}-of-\d{{5}}{re.escape(path.suffix)}")
    return sorted(file for file in path.parent.iterdir() if whole.fullmatch(file.name))


def _write(
    path: Path, ids: Sequence[str], arrays: Sequence[np.ndarray], about: dict[str, Any]
) -> None:
    """Write ids and arrays atomically.

    ``.npz``: ``ids`` and ``embeddings`` (samples, channels); for residues (residues, channels) of
    all samples with ``offsets``, so that sample i is ``embeddings[offsets[i]:offsets[i + 1]]``;
    ``model``, ``pooling``, ``sequences`` and, where one was asked for, ``precision`` tell their
    origin.
    ``.h5``: one data set per id. ``.parquet``: columns ``id`` and ``embedding``.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, **_flat(ids, arrays), **about)
        elif path.suffix == ".h5":
            import h5py

            with h5py.File(temporary, "w", track_order=True) as file:
                for name, array in zip(ids, arrays, strict=True):
                    file.create_dataset(_h5_name(name), data=array)
        else:
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.table({"id": list(ids), "embedding": _column(arrays)})
            pyarrow.parquet.write_table(table, temporary)


def _h5_name(name: str) -> str:
    """Return the name of the data set for an id: a ``/`` would make a group."""
    return name.replace("/", "|")


def _column(arrays: Sequence[np.ndarray]) -> Any:
    """Return arrays as a column of float32 lists, nested once per dimension.

    Built from one buffer: a Python list of a million vectors takes many times the memory.
    """
    import pyarrow

    rows = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    if arrays[0].ndim == 1:
        return vectors
    offsets = np.cumsum([0, *(len(a) for a in arrays)]).astype(np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), vectors)


def _flat(ids: Sequence[str], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    names = np.array(ids, dtype=str)
    if arrays[0].ndim == 1:
        return {"ids": names, "embeddings": np.stack(arrays)}
    offsets = np.cumsum([0, *(len(a) for a in arrays)])
    return {"ids": names, "embeddings": np.concatenate(arrays), "offsets": offsets}
