"""Read CSV, TSV and Parquet tables as text, and note all bad cells together."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from molfun._formats import foreign, foreign_text, line_of, text_of
from molfun._limits import Limit, read_bytes
from molfun._shapes import Float64
from molfun.data.cell_columns import (
    FORMULA_STARTS,
    Column,
    TextColumn,
    plain_columns,
    unescape,
)
from molfun.data.columns import NUMBER
from molfun.data.faults import report, summed_up
from molfun.data.parquet import read_parquet
from molfun.data.texts import ArrowTexts, listed
from molfun.errors import TableError, UnsafeFileError
from molfun.text import counted, listing, shown

logger = logging.getLogger(__name__)

DELIMITERS = (",", "\t", ";", "|")
MAX_BYTES = Limit("TABLE_BYTES", 2**30)
"""Largest table, unpacked."""
MAX_CELLS = Limit("TABLE_CELLS", 50_000_000, "cells")
"""Largest table in cells: every cell of text takes 60 bytes or more, whatever it holds."""
MAX_CELL = Limit("CELL_CHARACTERS", 2**24, "characters in one cell")
"""Longest cell: labels of each residue of a long protein are 0.3 million characters."""
LONGEST_HEADER = 2**22
"""Characters among which the header is looked for, to find the delimiter."""
SHORT_HEADER = 2**14
"""Characters in which the header nearly always ends."""
LONGEST_ID = 200
"""Ids become file names, and file systems end at 255 bytes with the suffixes."""

_HARMLESS = re.compile(r"-[-A-Za-z? ]*")
"""Labels of residues such as -EEH: letters alone make no formula that does anything."""
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=(.)\"?[ \t]*(?:\r\n|\r|\n)", re.IGNORECASE)
"""Line in front of the header in which Excel names its delimiter."""
_COMMENTS = re.compile(r"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\r|\n))+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Parse = Callable[[str], tuple[Any, str | None]]
"""Reads the text of a label; returns the label, or the fault of the text."""
Required = bool | Literal["column"]
"""Labels that a table must have: True in every row, False none, "column" a column with blanks."""


@dataclass
class Cells:
    """A table as text, and the problems found in it so far.

    Parameters
    ----------
    path
        The file.
    header, columns
        Names of the columns, and their cells.
    lines
        Line of each row in the file (row number for Parquet).
    word
        What to call such a number.
    problems
        A line of text for each fault: rows with too few or too many cells, and what `note` adds.
    bad
        Rows with a fault.
    """

    path: Path
    header: list[str]
    columns: list[Column]
    lines: Sequence[int]
    word: str = "line"
    problems: list[str] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, blanks around them removed."""
        return listed(self._texts(name))

    def _texts(self, name: str) -> Sequence[str]:
        return self.columns[self.header.index(name)].texts

    @property
    def rows(self) -> list[list[str]]:
        """The cells of each row."""
        return [list(row) for row in zip(*(c.texts for c in self.columns), strict=True)]

    def filled(self, name: str) -> Sequence[str]:
        """Return the cells of a column; note those that are blank."""
        texts = self._texts(name)
        if isinstance(texts, ArrowTexts) and texts.are_filled():
            return texts
        for row, text in enumerate(texts) if not all(texts) else ():
            if not text:
                self.note(row, name, "is blank; fill it in or remove the row")
        return texts

    def __len__(self) -> int:
        return len(self.lines)

    def column_or_blank(self, name: str | None) -> list[str]:
        """Return the cells of a column; an empty text for every row if there is no such column."""
        return self.column(name) if name in self.header else [""] * len(self)

    def where(self, row: int) -> str:
        """Place of a row in the file, for messages."""
        return f"{self.word} {self.lines[row]}"

    def note(self, row: int, column: str, problem: str) -> None:
        """Add what is wrong with a cell to the problems."""
        self.refuse(row, f"{self.where(row)}, column {column}: {problem}")

    def refuse(self, row: int, problem: str) -> None:
        """Add what is wrong with a row to the problems."""
        self.problems.append(problem)
        self.bad.add(row)

    def good(self, rows: Sequence[int] | None = None) -> Sequence[int]:
        """Return those of `rows`, or of all rows, that have no fault."""
        rows = range(len(self)) if rows is None else rows
        return [row for row in rows if row not in self.bad] if self.bad else rows

    def ids(self, column: str) -> Sequence[str]:
        """Return the ids of all rows; note those that cannot name a sample."""
        ids = self._texts(column)
        if self.columns[self.header.index(column)].is_safe(LONGEST_ID):
            return ids
        for row, text in enumerate(ids):
            if problem := id_problem(text):
                self.note(row, column, f"{shown(text)} {problem}")
        return ids

    def labels(
        self,
        column: str,
        parse: Parse,
        *,
        required: Required,
        fit: Callable[[int, Any], tuple[Any, str | None]] | None = None,
    ) -> list[Any]:
        """Return the labels of all rows, None where there is none; note bad ones.

        Parameters
        ----------
        column
            Column of the labels, which may be absent if they are not `required`.
        parse
            Reads one.
        required
            False where a blank is no label, and bad labels are left out with a warning;
            ``"column"`` where a blank is no label, and bad ones are as bad as ever.
        fit
            Takes a row and its label; gives the label that fits it, or what is wrong.
        """
        labels, problems = [], {}
        for row, text in enumerate(self.column_or_blank(column)):
            label, problem = parse(text) if text or required is True else (None, None)
            if fit is not None and problem is None and label is not None:
                label, problem = fit(row, label)
            if problem:
                problems[row] = f"{self.where(row)}, column {column}: {shown(text)} {problem}"
            labels.append(None if problem else label)
        self._note_labels(problems, required=bool(required))
        return labels

    def _note_labels(self, problems: Mapping[int, str], *, required: bool) -> None:
        if required:
            for row, problem in problems.items():
                self.refuse(row, problem)
        elif problems:
            n, texts = counted(len(problems), "label"), list(problems.values())
            logger.warning("%s: %s not used:\n%s", self.path, n, listing(texts, 3))

    def require(self, needed: Mapping[str, str]) -> None:
        """Refuse a table without the columns `needed`, or with a column twice.

        Parameters
        ----------
        needed
            Columns, each with the setting that says what it is called; empty if none does.

        Raises
        ------
        TableError
            With the columns there are and the nearest name.
        """
        for name, count in Counter(filter(None, self.header)).most_common(1):
            if count > 1:
                raise TableError(
                    f"{self.path} has the column {name!r} more than once. Rename or remove one."
                )
        # a table written with its row numbers has a first column without a name
        self.header = [name or f"column_{i}" for i, name in enumerate(self.header, start=1)]
        missing = [name for name in needed if name not in self.header]
        if missing:
            hints = "".join(_nearest_column(name, self.header) for name in missing)
            raise TableError(
                f"{self.path} has no column {' and '.join(map(repr, missing))}; found "
                f"{', '.join(map(repr, self.header[:30]))}.{hints} Rename the column"
                f"{_said_with([needed[name] for name in missing])}."
            )

    def numbers(self, name: str) -> Float64[np.ndarray, "rows"] | None:
        """Return a column of plain numbers; None where there is none, or cells need a look."""
        return self.columns[self.header.index(name)].numbers if name in self.header else None

    def raise_problems(self, *, goes_on: bool = False) -> None:
        """Report all that is wrong in one error, if anything is.

        Parameters
        ----------
        goes_on
            Whether the caller goes on with the rows that are `good` where faults are collected
            (`molfun.data.faults`).

        Raises
        ------
        TableError
            Listing the problems.
        """
        if self.problems:
            n = counted(len(self.problems), "bad row")
            lines = summed_up(self.problems, len(self))
            error = TableError(f"{self.path} has {n}:\n{listing(lines)}")
            error.problems = tuple(self.problems)
            if not goes_on:
                raise error
            report(self.path, self.problems, error)


def noted(required: Required) -> dict[str, str]:
    """Return what a data set remembers of `required`, so that other data is read as it was."""
    return {"require_target": required} if required == "column" else {}


def _nearest_column(name: str, header: Sequence[str]) -> str:
    by_folded = {column.casefold(): column for column in header}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f" Did you mean {by_folded[close[0]]!r} for {name!r}?" if close else ""


def _said_with(settings: Sequence[str]) -> str:
    """Say with which settings columns are named.

    Examples
    --------
    >>> _said_with(["id_column"]), _said_with([""])
    (', or say what yours is called: id_column=... (--id-column)', '')
    """
    texts = [f"{name}=... (--{name.replace('_', '-')})" for name in dict.fromkeys(settings) if name]
    return f", or say what yours is called: {', '.join(texts)}" if texts else ""


def id_problem(text: str) -> str | None:
    """Say why `text` cannot name a sample and its files; None if it can.

    Examples
    --------
    >>> id_problem("1a4w")
    >>> id_problem("../secret")
    'is a path, not an id; write the name alone'
    """
    if not text:
        return "is blank; fill it in or remove the row"
    if "/" in text or "\\" in text or text in (".", ".."):
        return "is a path, not an id; write the name alone"
    if _CONTROL.search(text):
        return "holds control characters; write letters, digits, - and _"
    if len(text.encode("utf-8", "replace")) > LONGEST_ID:
        return f"is longer than {LONGEST_ID} bytes, too long for a file name"
    return None


def repeated_ids(ids: Sequence[str]) -> list[str]:
    """Return a line of text for each id that occurs more than once."""
    counts = Counter(filter(None, ids))
    return [f"the id {name!r} comes more than once" for name, n in counts.items() if n > 1]


# Spreadsheets


def escape(text: str) -> str:
    """Keep a spreadsheet from reading a text as a formula; `unescape` takes it back.

    Every writer of a table uses this for ids, names of columns, labels and other cells. Numbers,
    and labels of residues that begin with a gap, stay as they are.

    Examples
    --------
    >>> escape("=SUM(A1)"), escape("-1+2"), escape("-1.5"), escape("1a4w"), escape("-EEH")
    ("'=SUM(A1)", "'-1+2", '-1.5', '1a4w', '-EEH')
    """
    if not text.lstrip("'").startswith(FORMULA_STARTS):
        return text
    return text if NUMBER.fullmatch(text) or _HARMLESS.fullmatch(text) else f"'{text}"


# Reading


def read_cells(path: Path, key_column: str) -> Cells:
    """Read a table as text; `key_column` helps to find the delimiter.

    Raises
    ------
    TableError
        If the file is missing, empty or cannot be read.
    """
    if not path.is_file():
        what = "is a folder, not a table" if path.is_dir() else "does not exist"
        raise TableError(f"{path} {what}. Give a CSV, TSV or Parquet file.")
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        cells = _parquet_cells(path) if is_parquet else _from_text(path, key_column)
    except MemoryError:
        raise UnsafeFileError(
            f"Refused {path}: reading it exhausts memory. Split it, or leave out columns."
        ) from None
    if not len(cells) and not cells.problems:
        raise TableError(f"{path} has a header but no rows. Add one row per sample.")
    return replace(cells, header=[unescape(name) for name in cells.header])


def _parquet_cells(path: Path) -> Cells:
    header, columns = read_parquet(path, max_bytes=MAX_BYTES, max_cells=MAX_CELLS)
    lines = list(range(1, len(columns[0]) + 1)) if columns else []
    return Cells(path, header, [TextColumn(column) for column in columns], lines, word="row")


def _from_text(path: Path, id_column: str) -> Cells:
    raw = read_bytes(path, MAX_BYTES, error=TableError)
    return _plain(path, raw, id_column) or _from_rows(path, raw, id_column)


def _plain(path: Path, raw: bytes, id_column: str) -> Cells | None:
    """Read a table in UTF-8 by columns, None if its rows have to be looked at."""
    mark = len(BOM_UTF8) * raw.startswith(BOM_UTF8)
    head = raw[mark : mark + SHORT_HEADER].decode("utf-8", "replace")
    # one of more bytes than cells are allowed may still hold fewer
    if len(raw) > MAX_CELLS.value or "\0" in head or not _first_line(head):
        return None
    if foreign(raw, "CSV") or foreign_text(head, "CSV") or head.lstrip()[:1] == "#":
        return None
    delimiter, skipped = _layout(path, head, id_column)
    found = plain_columns(
        raw, mark + len(head[:skipped].encode()), delimiter, longest=MAX_CELL.value
    )
    if found is None:
        return None
    header, columns = found
    first = line_of(head, skipped) + 1
    return Cells(path, header, columns, list(range(first, first + len(columns[0]))))


def _from_rows(path: Path, raw: bytes, id_column: str) -> Cells:
    """Read a table row by row, and note rows with too few or too many cells."""
    text = _filled(path, _text(path, raw))
    delimiter, skipped = _layout(path, text, id_column)
    first_line = line_of(text, skipped)
    text = text[skipped:]
    MAX_CELLS.check(text.count(delimiter) + max(text.count("\n"), text.count("\r")), path)
    # strict: a stray quote must not swallow the lines after it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows, lines, problems = [], [], []
    for line, row in _numbered(reader, path, first_line):
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
        elif len(row) != len(header):
            problems.append(
                f"line {line}: {counted(len(row), 'cell')} where the header has {len(header)}; "
                f"quote cells that contain the delimiter"
            )
        else:
            rows.append(row)
            lines.append(line)
    if header is None:
        raise TableError(f"{path} has no header. The first line names the columns.")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    return Cells(path, header, [TextColumn(c) for c in columns], lines, problems=problems)


def _numbered(reader: Any, path: Path, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Return rows with the line each starts on; errors of the csv module become ours."""
    # the csv module has one limit for the whole process
    allowed = csv.field_size_limit(MAX_CELL.value)
    try:
        while True:
            start = reader.line_num + first_line
            row = next(reader, None)
            if row is None:
                return
            yield start, row
    except csv.Error as error:
        if "field larger" in str(error):
            raise MAX_CELL.error(
                f"{path}, line {start}", advice="Check the quotes from this line on."
            ) from error
        raise TableError(
            f"{path}, line {start}: {error}. Check the quotes from this line on."
        ) from error
    finally:
        csv.field_size_limit(allowed)


def read_text(path: Path) -> str:
    """Return the text of a table; refuse what is no text, and name it."""
    return _text(path, read_bytes(path, MAX_BYTES, error=TableError))


def _text(path: Path, raw: bytes) -> str:
    text, encoding = text_of(path, raw, "CSV", TableError)
    if "\0" in text:
        raise TableError(
            f"{path}, line {line_of(text, text.index(chr(0)))}: a NUL byte. The file is damaged or "
            f"binary; export the table again as CSV."
        )
    if encoding == "latin-1":
        logger.warning("%s is not UTF-8; it is read as Latin-1.", path)
    return text


def _filled(path: Path, text: str) -> str:
    if not text or text.isspace():
        raise TableError(f"{path} is empty. Give a table with a header and one row per sample.")
    return text


def _layout(path: Path, text: str, id_column: str) -> tuple[str, int]:
    """Return the delimiter of a table, and the number of characters before its header."""
    named = _SEPARATOR_LINE.match(text)
    if named is not None:
        if named[1] not in DELIMITERS:
            allowed = ", ".join(map(repr, DELIMITERS))
            raise TableError(
                f"{path}, line 1: the delimiter {named[1]!r} is none of {allowed}. Save the table "
                f"with one of these."
            )
        return named[1], named.end()
    delimiter, has_column = _sniff_delimiter(text, id_column)
    comments = _COMMENTS.match(text)
    if comments is None or has_column:
        return delimiter, 0
    delimiter, has_column = _sniff_delimiter(text[comments.end() :], id_column)
    if not has_column:
        return _sniff_delimiter(text, id_column)[0], 0
    lines = line_of(text, comments.end()) - 1
    logger.info("%s: %s before the header left out.", path, counted(lines, "comment line"))
    return delimiter, comments.end()


def _first_line(text: str) -> str:
    """Return the first line that is not blank and that is followed by another."""
    return next((line for line in text.splitlines()[:-1] if line.strip()), "")


def _sniff_delimiter(text: str, id_column: str) -> tuple[str, bool]:
    """Return the delimiter that makes a cell of the header the id column, else the commonest.

    Also whether it makes one.
    """
    # the lines of all of a large table would take more memory than the limits allow
    header = _first_line(text[:SHORT_HEADER]) or _first_line(text[:LONGEST_HEADER] + "\n")

    def fitness(delimiter: str) -> tuple[bool, int]:
        try:
            cells = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        except csv.Error:  # a quoted cell that goes on in the next line, or that ends too early
            cells = [cell.strip('"') for cell in header.split(delimiter)]
        cells = [cell.strip() for cell in cells]
        return id_column in cells, len(cells)

    best = max(DELIMITERS, key=fitness)
    return best, fitness(best)[0]
