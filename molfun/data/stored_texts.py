"""Texts of columns that stay in their files, read one by one."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from molfun.data.texts import bytes_of, ends_of, has_only
from molfun.errors import DataError
from molfun.sample import MASK

BLOCK_ROWS = 2**16
"""Rows looked at together, for checks of all texts in bounded memory."""


BLOCKS_HELD = 8
"""Blocks after which pages that were read are given back."""


class MappedFile:
    """A file that is mapped into memory, of which little is resident at any time.

    Pages of a mapping count as memory of the process until the system wants them back. Here they
    are given back while all of a file is read, and stay in the system's cache. Single texts are
    read past the mapping: Linux maps up to 64 KB around each one that is not there, which takes
    twice as long and fills the memory.

    Parameters
    ----------
    path
        The file, which must not be empty.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._map = mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)

    def buffer(self) -> Any:
        """Return the content as a buffer of Arrow, which reads nothing yet."""
        import pyarrow

        return pyarrow.py_buffer(self._map)

    def read(self, place: int, size: int) -> bytes:
        """Return bytes from a place in the file.

        Raises
        ------
        DataError
            If the file has become shorter.
        """
        found = os.pread(self._handle, size, place)
        if len(found) < size:
            raise DataError(f"{self._path} was cut off while it was used. Write it again.")
        return found

    def let_go(self) -> None:
        """Give back the pages that were read."""
        self._map.madvise(mmap.MADV_DONTNEED)


class StoredTexts(Sequence[str]):
    """Texts of Arrow arrays, which may lie in a file that is mapped into memory.

    Parameters
    ----------
    arrays
        Arrays of texts, one behind the other.
    file
        The file in which they lie, if they do.

    Examples
    --------
    >>> import pyarrow
    >>> texts = StoredTexts([pyarrow.array(["MKV", "AC"]), pyarrow.array(["<mask>GG"])])
    >>> len(texts), texts[2], texts.lengths.tolist(), texts.has_only(b"MKVAC")
    (3, '<mask>GG', [3, 2, 3], False)
    """

    def __init__(self, arrays: Sequence[Any], file: MappedFile | None = None) -> None:
        self._file = file
        self._arrays = [array for array in arrays if len(array)]
        self._starts = np.cumsum([0, *map(len, self._arrays)]).tolist()
        if file is not None:
            base = file.buffer().address
            self._ends = [ends_of(array) for array in self._arrays]
            self._data = [array.buffers()[2].address - base for array in self._arrays]
        self._only: dict[bytes, bool] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._starts, index) - 1
        row = index - self._starts[part]
        try:
            if self._file is None:
                text: str = self._arrays[part][row].as_py()
                return text
            start, end = int(self._ends[part][row]), int(self._ends[part][row + 1])
            return self._file.read(self._data[part] + start, end - start).decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"The text of row {index + 1} is damaged (no UTF-8). Write the file again."
            ) from error

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block.to_pylist()

    def blocks(self) -> Iterator[Any]:
        """Yield all texts as arrays of at most `BLOCK_ROWS`."""
        places = ((a, start) for a in self._arrays for start in range(0, len(a), BLOCK_ROWS))
        for number, (array, start) in enumerate(places, start=1):
            yield array.slice(start, BLOCK_ROWS)
            if self._file is not None and number % BLOCKS_HELD == 0:
                self._file.let_go()
        if self._file is not None:
            self._file.let_go()

    def has_only(self, letters: bytes) -> bool:
        """Return True if no text has other bytes than `letters`; all are read the first time."""
        if letters not in self._only:
            self._only[letters] = all(has_only(block, letters) for block in self.blocks())
        return self._only[letters]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Residues of each text, in the smallest type that holds them."""
        found = [_lengths(block) for block in self.blocks()]
        most = max((int(part.max(initial=0)) for part in found), default=0)
        kind = np.min_scalar_type(most)
        return np.concatenate([part.astype(kind) for part in found] or [np.zeros(0, kind)])

    @cached_property
    def digest(self) -> str:
        """Sha256 over all texts, whatever arrays they are in."""
        lengths, letters = hashlib.sha256(), hashlib.sha256()
        for block in self.blocks():
            lengths.update(np.diff(ends_of(block)).astype("<i8").tobytes())
            letters.update(bytes_of(block).tobytes())
        return hashlib.sha256(lengths.digest() + letters.digest()).hexdigest()

    def codes(self) -> np.ndarray:
        """Return a number of 32 bits for each text: the same for equal ones in either case."""
        return np.concatenate([_checksums(block) for block in self.blocks()])


def _checksums(block: Any) -> np.ndarray:
    # one by one and still faster than numpy on texts of some hundred letters
    raw = memoryview(bytes_of(block).tobytes().upper())
    ends = ends_of(block).astype(np.int64)
    ends = (ends - ends[0]).tolist()
    found = (zlib.crc32(raw[start:end]) for start, end in itertools.pairwise(ends))
    return np.fromiter(found, np.uint32, len(block))


def _lengths(block: Any) -> np.ndarray:
    raw = bytes_of(block).tobytes()
    if raw.isascii() and b"<" not in raw:
        return np.diff(ends_of(block)).astype(np.int32)
    import pyarrow.compute

    letters = pyarrow.compute.utf8_length(block).to_numpy().astype(np.int32)
    masks = pyarrow.compute.count_substring(block, MASK).to_numpy().astype(np.int32)
    return letters - (len(MASK) - 1) * masks
