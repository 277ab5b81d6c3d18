"""Texts of columns that stay in their files, read one by one."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from molfun.data.texts import bytes_of, codes_of, ends_of, has_only
from molfun.errors import DataError
from molfun.sample import MASK

BLOCK_ROWS = 2**16
"""Rows looked at together, for checks of all texts in bounded memory."""


class StoredTexts(Sequence[str]):
    """Texts of Arrow arrays, which may lie in files that are mapped into memory.

    Parameters
    ----------
    arrays
        Arrays of texts, one behind the other.

    Examples
    --------
    >>> import pyarrow
    >>> texts = StoredTexts([pyarrow.array(["MKV", "AC"]), pyarrow.array(["<mask>GG"])])
    >>> len(texts), texts[2], texts.lengths.tolist(), texts.has_only(b"MKVAC")
    (3, '<mask>GG', [3, 2, 3], False)
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = [array for array in arrays if len(array)]
        self._starts = np.cumsum([0, *map(len, self._arrays)]).tolist()
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
        try:
            text: str = self._arrays[part][index - self._starts[part]].as_py()
        except UnicodeDecodeError as error:
            raise DataError(
                f"The text of row {index + 1} is damaged (no UTF-8). Write the file again."
            ) from error
        return text

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block.to_pylist()

    def blocks(self) -> Iterator[Any]:
        """Yield all texts as arrays of at most `BLOCK_ROWS`."""
        for array in self._arrays:
            for start in range(0, len(array), BLOCK_ROWS):
                yield array.slice(start, BLOCK_ROWS)

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
            lengths.update(np.diff(ends_of(block)).astype("<i8"))
            letters.update(bytes_of(block))
        return hashlib.sha256(lengths.digest() + letters.digest()).hexdigest()

    def codes(self) -> np.ndarray:
        """Return a number of 64 bits for each text: the same for equal ones in either case."""
        import pyarrow.compute

        upper = (pyarrow.compute.ascii_upper(block) for block in self.blocks())
        return np.concatenate([codes_of(block) for block in upper])


def _lengths(block: Any) -> np.ndarray:
    raw = bytes_of(block).tobytes()
    if raw.isascii() and b"<" not in raw:
        return np.diff(ends_of(block)).astype(np.int32)
    import pyarrow.compute

    letters = pyarrow.compute.utf8_length(block).to_numpy().astype(np.int32)
    masks = pyarrow.compute.count_substring(block, MASK).to_numpy().astype(np.int32)
    return letters - (len(MASK) - 1) * masks
