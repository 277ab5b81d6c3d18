"""Columns of a table as text: of any table, and of a plain one that C code has read.

Most tables are plain: no quotes inside of cells, no blank rows, as many cells in each row. Arrow
reads them a hundred times as fast as Python's csv module, and what has to be known of a column
(that all cells are numbers, that none holds a slash) is found for all cells at once. Whatever is
not plain is read cell by cell, with the same result.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from molfun._shapes import Float64
from molfun.data.columns import typed
from molfun.data.texts import ArrowTexts, bytes_of, ends_of

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Beginnings of a formula in a spreadsheet; the last four are the wide forms."""
_PLAIN = bytes(c for c in range(0x21, 0x7F) if c != ord("'"))
"""Characters of cells that are neither stripped nor unescaped."""
_OF_NUMBERS = b"0123456789+-.eE"
_SAFE = bytes(c for c in _PLAIN if c not in b"/\\.")
"""Characters of ids that can name a file, whatever their order."""


class Column(Protocol):
    """The cells of one column."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def texts(self) -> Sequence[str]:
        """Cells without blanks around them and without the marks of `unescape`."""

    @property
    def numbers(self) -> Float64[np.ndarray, "rows"] | None:
        """Values, if it is quickly seen that all cells are finite numbers; else None."""

    def is_safe(self, longest: int) -> bool:
        """Return True if it is quickly seen that every cell can name a file."""

    def typed(self) -> pd.Series:
        """Return integers, else floats, where every cell that is not blank parses; else text."""


def unescape(text: str) -> str:
    """Return the text that `molfun.data.cells.escape` was given.

    Examples
    --------
    >>> unescape("'=SUM(A1)"), unescape("5'-UTR")
    ('=SUM(A1)', "5'-UTR")
    """
    return text[1:] if text[:1] == "'" and text.lstrip("'").startswith(FORMULA_STARTS) else text


@dataclass
class TextColumn:
    """Cells as Python read them."""

    cells: Sequence[str]

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def texts(self) -> list[str]:
        """Cells without blanks around them and without the marks of `unescape`."""
        return [unescape(cell).strip() for cell in self.cells]

    @property
    def numbers(self) -> None:
        """None: each cell has to be looked at."""
        return

    def is_safe(self, longest: int) -> bool:  # noqa: ARG002
        """Return False: each cell has to be looked at."""
        return False

    def typed(self) -> pd.Series:
        """Return integers, else floats, where every cell that is not blank parses; else text."""
        return typed(self.texts)


@dataclass
class ArrowColumn:
    """Cells as Arrow read them.

    Parameters
    ----------
    array
        Array of texts.
    """

    array: Any

    def __len__(self) -> int:
        return len(self.array)

    @property
    def _bytes(self) -> np.ndarray:
        """All cells, one behind the other."""
        return bytes_of(self.array)

    @property
    def _ends(self) -> np.ndarray:
        return ends_of(self.array)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.diff(self._ends)

    @cached_property
    def _is_plain(self) -> bool:
        """True if cells are texts as they stand, without blanks and apostrophes."""
        data = self._bytes
        if not data.size:
            return True
        return bool(data.min() > 0x20 and data.max() < 0x7F and not (data == ord("'")).any())

    @cached_property
    def _has_words(self) -> bool:
        """True if a cell is no number."""
        # the first cells tell of most columns
        return any(
            bytes(part).translate(None, _OF_NUMBERS) for part in (self._bytes[:64], self._bytes)
        )

    @cached_property
    def texts(self) -> Sequence[str]:
        """Cells without blanks around them and without the marks of `unescape`."""
        if self._is_plain:
            return ArrowTexts(self.array)
        return [unescape(cell).strip() for cell in self.array.to_pylist()]

    @cached_property
    def numbers(self) -> Float64[np.ndarray, "rows"] | None:
        """Values, if all cells are finite numbers as Arrow writes them; else None."""
        import pyarrow as pa
        import pyarrow.compute

        if self._has_words:
            return None
        try:
            found = pyarrow.compute.cast(self.array, pa.float64())
        except pa.ArrowInvalid:
            return None
        values = found.to_numpy(zero_copy_only=False)
        return values if np.isfinite(values).all() else None

    def is_safe(self, longest: int) -> bool:
        """Return True if no cell is blank, too long, or holds what is special in a path."""
        lengths = self._lengths
        if not lengths.size or lengths.min() == 0 or lengths.max() > longest:
            return False
        return not self._bytes.tobytes().translate(None, _SAFE)

    def typed(self) -> pd.Series:
        """Return integers, else floats, where every cell that is not blank parses; else text."""
        if self._has_words and self._is_plain:
            return self._repeated()
        raw = self._bytes.tobytes()
        # Arrow reads +2 as a float alone; 18 digits fit into 64 bits
        is_whole = not raw.translate(None, b"0123456789-") and self._lengths.max(initial=0) <= 18
        numbers = self._integers() if is_whole else self.numbers
        if numbers is None or b"+" in raw or self._has_codes:
            return typed(list(self.texts))
        return pd.Series(numbers)

    def _integers(self) -> np.ndarray | None:
        import pyarrow as pa

        try:
            return self.array.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:  # a blank, or signs in the middle
            return None

    def _repeated(self) -> pd.Series:
        """Return cells as texts, of which those that repeat are one object if many do."""
        first = self.array[:1000]
        if len(first.unique()) > len(first) / 2:
            return pd.Series(self.array.to_pylist(), dtype=object)
        coded = self.array.dictionary_encode()
        values = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
        return pd.Series(values[coded.indices.to_numpy()], dtype=object)

    @property
    def _has_codes(self) -> bool:
        """True if a number has leading zeros, which make it a code."""
        data, starts = self._bytes, self._ends[:-1] - self._ends[0]
        begins = data[starts]
        signed = (begins == ord("+")) | (begins == ord("-"))
        if not (signed | (begins == ord("0"))).any():
            return False
        # a number is at most one place off behind its sign
        starts, lengths = starts + signed, self._lengths - signed
        first, second = data[starts], data[np.minimum(starts + 1, len(data) - 1)]
        return bool(((lengths > 1) & (first == ord("0")) & (second - ord("0") < 10)).any())


def plain_columns(
    raw: bytes, start: int, delimiter: str, *, longest: int
) -> tuple[list[str], list[Column]] | None:
    r"""Return header and columns of a plain table, None if its rows have to be looked at.

    Parameters
    ----------
    raw
        The file, in UTF-8.
    start
        Place of the header.
    delimiter
        Character between cells.
    longest
        Characters that a cell may have.

    Examples
    --------
    >>> header, columns = plain_columns(b"id,target\na,1.5\nb,2\n", 0, ",", longest=9)
    >>> header, columns[0].texts, columns[1].numbers.tolist()
    (['id', 'target'], ['a', 'b'], [1.5, 2.0])
    >>> plain_columns(b'id,target\n"a""b",1.5\n', 0, ",", longest=9) is None
    True
    """
    end = raw.find(b"\n", start)
    is_plain = end >= 0 and _has_plain_ends(raw) and _has_plain_quotes(raw, start, delimiter)
    header = _header(raw[start:end], delimiter) if is_plain else []
    if max(map(len, header), default=longest + 1) > longest:
        return None
    arrays = _parsed(memoryview(raw)[end + 1 :], delimiter, len(header))
    columns = [ArrowColumn(array) for array in arrays]
    return (header, list(columns)) if _are_rows(columns, raw, end + 1, longest) else None


def _header(line: bytes, delimiter: str) -> list[str]:
    """Return the names of the columns; none if the line is blank or no part of a plain table."""
    try:
        text = line.decode("utf-8").removesuffix("\r")
        cells = next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []
    return [cell.strip() for cell in cells] if text.strip() else []


def _lines(raw: bytes, start: int) -> int | None:
    """Return the lines of a table with quotes, which may be more than its rows; None without."""
    if b'"' not in raw:
        return None
    ends = np.count_nonzero(np.frombuffer(raw, np.uint8, offset=start) == ord("\n"))
    return int(ends) + (not raw.endswith(b"\n"))


def _has_plain_ends(raw: bytes) -> bool:
    """Return True where every line ends with a line feed, or with carriage return and line feed."""
    if b"\0" in raw:
        return False
    if b"\r" not in raw:
        return True
    data = np.frombuffer(raw, np.uint8)
    after = np.flatnonzero(data == ord("\r")) + 1
    return bool(after[-1] < len(data) and (data[after] == ord("\n")).all())


def _has_plain_quotes(raw: bytes, start: int, delimiter: str) -> bool:
    """Return True if every quote opens or closes a cell, in turn, and the last one closes one."""
    if b'"' not in raw:
        return True
    text = np.frombuffer(raw, np.uint8)
    places = np.flatnonzero(text[start:] == ord('"')) + start
    opening, closing = places[::2], places[1::2]
    opening = opening[opening > start]  # nothing is in front of the header
    closing = closing[closing < len(raw) - 1]
    ends = [*delimiter.encode(), *b"\n"]
    after = [*ends, *b"\r"]
    are_ends = np.isin(text[opening - 1], ends).all() and np.isin(text[closing + 1], after).all()
    return bool(are_ends) and len(places) % 2 == 0


def _are_rows(columns: Sequence[ArrowColumn], raw: bytes, start: int, longest: int) -> bool:
    """Return True if there is a row for each line, no row is blank and no cell too long."""
    if not columns or _lines(raw, start) not in (None, len(columns[0])):
        return False
    first = columns[0]
    lengths = [column._lengths for column in columns]
    if not len(first) or max(int(n.max()) for n in lengths) > longest or not lengths[0].all():
        return False
    # a row of blanks alone begins with one
    starts = np.frombuffer(first.array.buffers()[2], np.uint8)[first._ends[:-1]]
    return bool(((starts > 0x20) & (starts < 0x7F)).all())


def _parsed(raw: memoryview, delimiter: str, n: int) -> list[Any]:
    """Return the columns of rows as arrays of text; none if a row has more or fewer cells."""
    import pyarrow as pa
    import pyarrow.csv

    names = [str(i) for i in range(n)]
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(pa.py_buffer(raw)),
            # one block, so that a column is one array
            read_options=pyarrow.csv.ReadOptions(
                column_names=names, block_size=max(len(raw), 1), use_threads=False
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"',
                double_quote=False,
                # a blank line is then a blank cell or an error, and is not left out of the count
                ignore_empty_lines=False,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException:  # cells that are missing or too many, text that is not UTF-8
        return []
    if any(column.num_chunks != 1 for column in table.columns):
        return []
    return [column.chunk(0) for column in table.columns]
