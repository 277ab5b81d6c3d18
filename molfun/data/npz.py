"""Archives of numpy arrays (npz), measured before they are unpacked."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from molfun._formats import foreign
from molfun._limits import Limit
from molfun.errors import DataError, MolfunError, UnsafeFileError
from molfun.text import first_line

RATIO_FROM = 2**24
"""Unpacked sizes below this are harmless at any ratio."""


def read_npz(
    source: Path | bytes, path: Path, limit: Limit, *, advice: str, ratio: Limit | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file by name; nothing in it is run.

    Parameters
    ----------
    source
        The file, or its content.
    path
        What to call it in messages.
    limit
        Cap on the bytes of all arrays.
    advice
        What to do about a damaged file.
    ratio
        Cap on unpacked by packed bytes, for arrays that never pack well.

    Raises
    ------
    DataError
        If it is damaged or no npz file.
    UnsafeFileError
        If it holds Python objects, or an array declares more than its entry or the limit.
    """
    packed = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        with _opened(source) as file:
            _check(file, path, packed, limit, ratio)
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except MolfunError:
        raise
    except MemoryError:
        raise UnsafeFileError(f"Refused {path}: unpacking it exhausts memory.") from None
    except Exception as error:  # damaged bytes can make zip and numpy fail in any way
        raise DataError(
            f"{path} is damaged or not npz: {_reason(source, error)}. {advice}"
        ) from error


def read_npy(path: Path, limit: Limit, *, advice: str) -> np.ndarray:
    """Read the array of a ``.npy`` file; nothing in it is run.

    Raises
    ------
    DataError
        If it is damaged or no such file.
    UnsafeFileError
        If it holds Python objects, or declares more than the file or the limit.
    """
    size = path.stat().st_size
    limit.check(size, path)
    try:
        with path.open("rb") as file:
            _check_array(path, path.name, size, *_npy_header(file))
            file.seek(0)
            return np.asarray(np.load(file, allow_pickle=False))
    except MolfunError:
        raise
    except MemoryError:
        raise UnsafeFileError(f"Refused {path}: reading it exhausts memory.") from None
    except Exception as error:  # damaged bytes can make numpy fail in any way
        raise DataError(f"{path} is damaged or not npy: {first_line(error)}. {advice}") from error


def _opened(source: Path | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _check(file: Any, path: Path, packed: int, limit: Limit, ratio: Limit | None) -> None:
    """Hold what each array's header declares against the size of its entry, before reading."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        limit.check(total, path)
        if ratio is not None and total > RATIO_FROM:
            ratio.check(-(-total // max(packed, 1)), path, advice="It was made to exhaust memory.")
        counts = Counter(entry.filename for entry in entries)
        if len(counts) < len(entries):
            twice = counts.most_common(1)[0][0]
            raise DataError(f"{path} holds {twice[:60]!r} twice. Write it again.")
        for entry in entries:
            with archive.open(entry) as member:
                _check_array(path, entry.filename, entry.file_size, *_npy_header(member))


def _check_array(
    path: Path, name: str, n_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    if dtype.hasobject:
        raise UnsafeFileError(
            f"Refused {path}: {name} holds Python objects, and reading them "
            f"could run code. Save text as bytes, np.array(text, dtype='S')."
        )
    # text of no letters has no bytes, however many there are
    if min(shape, default=0) < 0 or math.prod(map(int, shape)) * max(dtype.itemsize, 1) > n_bytes:
        raise UnsafeFileError(
            f"Refused {path}: {name} declares {shape} values of {dtype} in {n_bytes:,} bytes."
        )


def _npy_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(member)
    return shape, dtype


def _reason(source: Path | bytes, error: Exception) -> str:
    if isinstance(error, (tokenize.TokenError, SyntaxError)):
        return "an array has no readable header"
    with _opened(source) as file:
        found = foreign(file.read(4096), "npz") if not isinstance(error, OSError) else None
    if found is not None and "zip archive" not in found:
        return f"it {found}".rstrip(".")
    return first_line(error)
