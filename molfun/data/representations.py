"""Outputs of a backbone for the samples of a data set, as ``molfun embed`` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from molfun._limits import Limit
from molfun.data.npz import read_npz
from molfun.errors import DataError
from molfun.text import counted, listing

MAX_BYTES = Limit("REPRESENTATION_BYTES", 2**35)
"""Largest file of representations, unpacked: all of them are held in memory."""
MAX_RATIO = Limit("REPRESENTATION_RATIO", 50, "unpacked bytes per packed byte")
"""Representations are floats close to noise, which hardly compress."""

_ADVICE = "Write it with molfun embed, which makes damaged shards again."


@dataclass(frozen=True)
class Representations:
    """Outputs of a backbone for the samples of a data set.

    Parameters
    ----------
    arrays
        (channels,) or (length, channels) of each sample.
    name
        What they are: ``mean``, ``cls`` or ``single``.
    model
        Fingerprint of the backbone they are of, or ``unknown``.
    """

    arrays: Sequence[np.ndarray]
    name: str
    model: str

    def take(self, indices: Iterable[int]) -> Representations:
        """Return those at `indices`."""
        return replace(self, arrays=[self.arrays[i] for i in indices])


def as_representations(source: Iterable[np.ndarray]) -> Representations:
    """Return arrays in the order of the samples: means, or one vector per residue."""
    arrays = [np.asarray(a, dtype=np.float32) for a in source]
    pooled = bool(arrays) and arrays[0].ndim == 1
    return Representations(arrays, "mean" if pooled else "single", "unknown")


def read_representations(path: Path, ids: Sequence[str], digests: Sequence[str]) -> Representations:
    """Read the arrays of the files of ``molfun embed``, by id.

    Raises
    ------
    DataError
        If a file is damaged, samples are missing, or it was made from other sequences.
    UnsafeFileError
        If a file unpacks to more than `MAX_BYTES` or `MAX_RATIO` times its size.
    """
    known, (pooling, model) = _read_shards(path)
    missing = [name for name in ids if name not in known]
    if missing:
        raise DataError(
            f"{path} has no representation of {len(missing)} of {len(ids)} samples:\n"
            f"{listing(missing)}"
        )
    found = [known[name] for name in ids]
    other = [
        name
        for name, (_, theirs), ours in zip(ids, found, digests, strict=True)
        if theirs is not None and theirs != ours
    ]
    if other:
        raise DataError(
            f"{path} was made from other sequences: {len(other)} of {len(ids)} samples have the id "
            f"of another one there, or another max_length:\n{listing(other)}\nEmbed these "
            f"sequences."
        )
    return Representations([array for array, _ in found], pooling, model)


def _read_shards(
    path: Path,
) -> tuple[dict[str, tuple[np.ndarray, str | None]], tuple[str, str]]:
    """Read array and digest of each id in all shards, and pooling and model of them all."""
    files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.stem}-*-of-*.npz"))
    if not files:
        raise DataError(f"No such file: {path}.")
    if path.suffix != ".npz":
        raise DataError(f"{path}: representations are read from .npz files; embed into one.")
    known: dict[str, tuple[np.ndarray, str | None]] = {}
    kinds, clashes = set(), []
    for file in files:
        parts, names, sequences, kind = _read_npz(file)
        kinds.add(kind)
        for name, part, digest in zip(names, parts, sequences, strict=True):
            earlier = known.setdefault(name, (part, digest))
            if earlier[0] is not part and not np.array_equal(earlier[0], part, equal_nan=True):
                clashes.append(name)
    if clashes:
        raise DataError(
            f"{path} has two different representations of {counted(len(clashes), 'sample')}:\n"
            f"{listing(clashes)}\nEmbed again, with another id for each sequence."
        )
    if len(kinds) > 1:
        raise DataError(f"{path} has shards of different models or poolings. Embed again.")
    return known, kinds.pop()


def _read_npz(
    path: Path,
) -> tuple[list[np.ndarray], list[str], list[str | None], tuple[str, str]]:
    """Read arrays, ids, digests of sequences (None in files of others), pooling and model."""
    arrays = _checked_arrays(path)
    names = [str(name) for name in arrays["ids"].reshape(-1)]
    values, offsets = arrays["embeddings"].astype(np.float32, copy=False), arrays.get("offsets")
    digests: list[str | None] = [None] * len(names)
    if "sequences" in arrays:
        digests = [str(digest) for digest in arrays["sequences"]]
    pooling, model = str(arrays.get("pooling", "mean")), str(arrays.get("model", "unknown"))
    parts = list(values) if offsets is None else np.split(values, offsets[1:-1])
    return parts, names, digests, ("single" if offsets is not None else pooling, model)


def _checked_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = read_npz(path, path, MAX_BYTES, advice=_ADVICE, ratio=MAX_RATIO)
    missing = [name for name in ("ids", "embeddings") if name not in arrays]
    if missing:
        held = ", ".join(sorted(arrays)[:5]) or "nothing"
        raise DataError(
            f"{path} is no file of representations: it lacks {' and '.join(missing)}, and holds "
            f"{held}. {_ADVICE}"
        )
    n = arrays["ids"].size
    problem = _misfit(arrays["embeddings"], arrays.get("offsets"), n)
    if problem is None and "sequences" in arrays and arrays["sequences"].shape != (n,):
        problem = f"{n} ids and sequences of shape {arrays['sequences'].shape}"
    if problem is not None:
        raise DataError(f"{path} is damaged or no file of representations ({problem}). {_ADVICE}")
    return arrays


def _misfit(values: np.ndarray, offsets: np.ndarray | None, n: int) -> str | None:
    """Say why arrays are no representations of `n` samples."""
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        return f"embeddings of shape {values.shape} and type {values.dtype}"
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum()):,} embeddings are NaN or infinite"
    if offsets is None:
        return f"{n} ids for {len(values)} embeddings" if n != len(values) else None
    return _wrong_offsets(offsets, len(values), n)


def _wrong_offsets(offsets: np.ndarray, n_rows: int, n: int) -> str | None:
    """Say why offsets do not divide rows among `n` samples."""
    if offsets.shape != (n + 1,) or offsets.dtype.kind not in "iu":
        return f"{n} ids and offsets of shape {offsets.shape}"
    ends = offsets[0] == 0 and offsets[-1] == n_rows
    return None if ends and (np.diff(offsets.astype(np.int64)) >= 0).all() else "bad offsets"
