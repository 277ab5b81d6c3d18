"""Texts of a column that become Python's own only when they are asked for.

A table of 100,000 sequences is read in 30 ms and its letters are checked in 15; to make 100,000
texts of Python of it takes as long as both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np

BLOCK = 2**18
LONGEST_HASHED = 32
"""Bytes of a text up to which hashing all at once is faster than a set of Python."""
FNV_PRIME = 1099511628211
"""Multiplier of the hash FNV-1 of 64 bits (Fowler, Noll and Vo)."""


class LazyTexts(Sequence[str]):
    """A sequence of texts that is made as a whole when the first one is asked for.

    Parameters
    ----------
    n
        Number of texts.
    make
        Returns all of them.

    Examples
    --------
    >>> texts = LazyTexts(2, lambda: ["MKV", "AC"])
    >>> len(texts), texts[1], texts == ["MKV", "AC"]
    (2, 'AC', True)
    """

    def __init__(self, n: int, make: Callable[[], list[str]]) -> None:
        self._n = n
        self._make: Callable[[], list[str]] | None = make
        self._made: list[str] = []

    def listed(self) -> list[str]:
        """Return all texts as a list, the same one each time."""
        if self._make is not None:
            self._made, self._make = self._make(), None
        return self._made

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.listed()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.listed())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | LazyTexts) and self.listed() == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return repr(self.listed())

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.listed(),)


class ArrowTexts(LazyTexts):
    """Texts of an Arrow array, of which some things are known without making them.

    Parameters
    ----------
    array
        Array of texts as they stand in the file.
    """

    def __init__(self, array: Any) -> None:
        super().__init__(len(array), array.to_pylist)
        self._array: Any = array

    def listed(self) -> list[str]:
        """Return all texts as a list; the array is not held any longer."""
        made = super().listed()
        self._array = None
        return made

    def first(self, n: int) -> list[str]:
        """Return the first `n` texts; the others are not made."""
        return self[:n] if self._array is None else self._array[:n].to_pylist()

    def are_filled(self) -> bool:
        """Return True if it is quickly seen that no text is empty."""
        return self._array is not None and bool(np.diff(ends_of(self._array)).all())

    def has_only(self, letters: bytes) -> bool:
        """Return True if it is quickly seen that no text is empty or has other bytes."""
        return self.are_filled() and has_only(self._array, letters)

    def are_distinct(self) -> bool:
        """Return True if it is quickly seen that no text comes twice: all have another hash."""
        lengths = np.diff(ends_of(self._array)) if self._array is not None else np.zeros(0)
        if not 0 < lengths.max(initial=0) <= LONGEST_HASHED:
            return False
        codes = codes_of(self._array)
        codes.sort()
        return bool((codes[1:] != codes[:-1]).all())

    def are_of_one_case(self) -> bool:
        """Return True if it is quickly seen that no letter is a capital, or that all are."""
        if self._array is None:
            return False
        raw = bytes_of(self._array).tobytes()
        return raw.isascii() and raw in (raw.lower(), raw.upper())


def ends_of(array: Any) -> np.ndarray:
    """Return where each text of an Arrow array ends in its buffer, behind where the first begins.

    Examples
    --------
    >>> import pyarrow
    >>> ends_of(pyarrow.array(["MKV", "AC"])).tolist()
    [0, 3, 5]
    """
    if array.buffers()[1] is None:  # of no text at all
        return np.zeros(1, np.int32)
    # a "string" of Arrow counts in 32 bits, a "large_string" in 64
    ends = np.frombuffer(array.buffers()[1], np.int64 if "large" in str(array.type) else np.int32)
    return ends[array.offset : array.offset + len(array) + 1]


def bytes_of(array: Any) -> np.ndarray:
    """Return the bytes of all texts of an Arrow array, one behind the other, without a copy.

    Examples
    --------
    >>> import pyarrow
    >>> bytes_of(pyarrow.array(["MKV", "AC"])).tobytes()
    b'MKVAC'
    """
    data, ends = array.buffers()[2], ends_of(array)
    return np.frombuffer(b"" if data is None else data, np.uint8)[ends[0] : ends[-1]]


def has_only(array: Any, letters: bytes) -> bool:
    """Return True if the texts of an Arrow array have no other bytes than `letters`."""
    raw = bytes_of(array)
    # in blocks that stay in the processor's cache
    blocks = (raw[start : start + BLOCK].tobytes() for start in range(0, len(raw), BLOCK))
    return not any(block.translate(None, letters) for block in blocks)


def codes_of(array: Any) -> np.ndarray:
    """Return a hash of 64 bits of each text of an Arrow array, computed for all at once.

    Examples
    --------
    >>> import pyarrow
    >>> one, other, again = codes_of(pyarrow.array(["a long identifier", "AC", "AC"])).tolist()
    >>> other == again, one == other
    (True, False)
    """
    data, ends = bytes_of(array), ends_of(array).astype(np.int64)
    starts, lengths = ends[:-1] - ends[0], np.diff(ends)
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    # eight bytes from each place on, without a copy
    words = np.ndarray(len(data) + 1, np.uint64, padded, strides=(1,))
    codes, left = lengths.astype(np.uint64), np.arange(len(lengths))
    for place in range(0, int(lengths.max(initial=0)), 8):
        left = left[lengths[left] > place]
        beyond = np.clip(8 * (8 - lengths[left] + place), 0, 63).astype(np.uint64)
        # the bytes of the next text are shifted out
        word = words[starts[left] + place] << beyond
        codes[left] = codes[left] * np.uint64(FNV_PRIME) ^ word
    return codes


def listed(texts: Sequence[str]) -> list[str]:
    """Return texts as a list, without a copy where there is one."""
    if isinstance(texts, LazyTexts):
        return texts.listed()
    return texts if isinstance(texts, list) else list(texts)


def are_distinct(texts: Sequence[str]) -> bool:
    """Return True if no text comes twice."""
    quickly = isinstance(texts, ArrowTexts) and texts.are_distinct()
    return quickly or len(set(texts)) == len(texts)
