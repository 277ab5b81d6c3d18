"""Tables of samples: CSV, TSV and Parquet, read as text and checked before anything starts."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from molfun._formats import decoded, foreign_text, line_of, refuse_foreign
from molfun._limits import Limit, read_bytes
from molfun._paths import as_path
from molfun.data.columns import NUMBER, typed
from molfun.data.parquet import read_parquet
from molfun.errors import TableError, UnsafeFileError
from molfun.text import counted, listing

if TYPE_CHECKING:
    from jaxtyping import Float64

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
LARGEST_LABEL = 1e18
"""Labels beyond this are refused: their square overflows float32 and the loss would be inf."""
OUTLIER_RANGES = 50
"""Labels this many interquartile ranges from the median are reported, not refused: they may be
right, but are more often a mixture of units (mol/L next to nmol/L)."""
LONGEST_ID = 200
"""Ids become file names, and file systems end at 255 bytes with the suffixes."""

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=(.)\"?[ \t]*(?:\r\n|\r|\n)", re.IGNORECASE)
"""How Excel writes which delimiter it used, in front of the header."""
_COMMENTS = re.compile(r"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\r|\n))+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of samples that passed every check.

    Parameters
    ----------
    path
        The file.
    ids
        Ids as written, blanks around them removed.
    targets
        (rows,) labels in the user's units, NaN where there is none.
    metadata
        The other columns, numbers where every value that is present is a number.
    lines
        Line of each row in the file (row number for Parquet), for messages.
    word
        What to call such a number; empty where there is no file.
    """

    path: Path
    ids: list[str]
    targets: Float64[np.ndarray, "rows"]
    metadata: pd.DataFrame
    lines: list[int]
    word: str = "line"

    def origin(self, index: int) -> str:
        """Where a row was read, empty where there is no file."""
        return f"{self.path.name}, {self.word} {self.lines[index]}" if self.word else ""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> Table:
        """Keep the rows at `indices`, in that order."""
        indices = np.asarray(indices, np.int64)
        return Table(
            path=self.path,
            ids=[self.ids[i] for i in indices],
            targets=self.targets[indices],
            metadata=self.metadata.iloc[indices].reset_index(drop=True),
            lines=[self.lines[i] for i in indices],
            word=self.word,
        )


@dataclass
class Cells:
    """A table as text, before any check of values.

    Parameters
    ----------
    path
        The file.
    header, rows
        Names of the columns, and the text of every cell.
    lines
        Line of each row in the file (row number for Parquet).
    word
        What to call such a number.
    ragged
        A line of text for each row with too few or too many cells.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    word: str = "line"
    ragged: list[str] = field(default_factory=list)

    def column(self, name: str) -> list[str]:
        """Cells of a column, blanks around them removed."""
        index = self.header.index(name)
        return [row[index].strip() for row in self.rows]

    def column_or_blank(self, name: str) -> list[str]:
        """Cells of a column; an empty text for every row if there is no such column."""
        return self.column(name) if name in self.header else [""] * len(self.rows)

    def where(self, row: int) -> str:
        """Place of a row in the file, for messages."""
        return f"{self.word} {self.lines[row]}"


def read_table(
    path: str | Path,
    *,
    id_column: str = "pdb_id",
    target_column: str = "affinity",
    require_target: bool = True,
) -> Table:
    r"""Read and check a table of samples.

    Every cell is read as text first, so ids such as ``1e10``, ``0001`` and ``NA`` stay what they
    are. The delimiter (comma, tab, semicolon, bar) and the encoding (UTF-8, UTF-16, else Latin-1)
    are found out. All bad rows are reported in one error.

    Parameters
    ----------
    path
        ``.parquet`` or ``.pq`` for Parquet; anything else is read as delimited text.
    id_column, target_column
        Names of the two columns that are needed.
    require_target
        False for prediction: the label column may be absent or have blank cells.

    Returns
    -------
    Table
        Rows in the order of the file, without rows that repeat an earlier one.

    Raises
    ------
    TableError
        If the file is missing, empty or unreadable, a column is missing, or any row is bad.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.csv"
    >>> _ = path.write_text("pdb_id;affinity;year\n1a4w;6.52;2015\n0001;8.1;2016\n")
    >>> table = read_table(path)
    >>> table.ids, table.targets.tolist(), table.metadata["year"].tolist()
    (['1a4w', '0001'], [6.52, 8.1], [2015, 2016])
    """
    path = as_path(path)
    cells = read_cells(path, id_column)
    check_header(cells, [id_column, target_column] if require_target else [id_column])
    ids = cells.column(id_column)
    texts = cells.column_or_blank(target_column)
    problems = id_problems(cells, id_column, ids)
    targets, bad_labels = _parse_targets(cells, target_column, texts, required=require_target)
    keep, clashes = _merge_duplicates(cells, ids, targets)
    raise_all(cells, [*cells.ragged, *problems, *bad_labels, *clashes])
    extra = {
        name: typed(cells.column(name))
        for name in cells.header
        if name not in (id_column, target_column)
    }
    table = Table(
        path=path, ids=ids, targets=targets, metadata=pd.DataFrame(extra), lines=cells.lines
    )
    if not extra:
        table.metadata.index = pd.RangeIndex(len(ids))
    table = table.take(keep) if len(keep) < len(ids) else table
    _warn_labels(table, target_column)
    _warn_case(table)
    return table


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
        cells = _parquet_cells(path) if is_parquet else _read_text(path, key_column)
    except MemoryError:
        raise UnsafeFileError(
            f"Refused {path}: reading it exhausts memory. Split it, or leave out columns."
        ) from None
    if not cells.rows and not cells.ragged:
        raise TableError(f"{path} has a header but no rows. Add one row per sample.")
    return replace(
        cells,
        header=[unescape(name) for name in cells.header],
        rows=[[unescape(cell) for cell in row] for row in cells.rows],
    )


def _parquet_cells(path: Path) -> Cells:
    header, columns = read_parquet(path, max_bytes=MAX_BYTES, max_cells=MAX_CELLS)
    rows = [list(row) for row in zip(*columns, strict=True)]
    lines = list(range(1, len(rows) + 1))
    return Cells(path=path, header=header, rows=rows, lines=lines, word="row")


FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Beginnings of a formula in a spreadsheet; the last four are the wide forms."""
_HARMLESS = re.compile(r"-[-A-Za-z? ]*")
"""Labels of residues such as -EEH: letters alone make no formula that does anything."""


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


def unescape(text: str) -> str:
    """The text that `escape` was given.

    Examples
    --------
    >>> unescape("'=SUM(A1)"), unescape("5'-UTR")
    ('=SUM(A1)', "5'-UTR")
    """
    return text[1:] if text[:1] == "'" and text.lstrip("'").startswith(FORMULA_STARTS) else text


def _read_text(path: Path, id_column: str) -> Cells:
    text = _decode(path)
    if not text.strip():
        raise TableError(f"{path} is empty. Give a table with a header and one row per sample.")
    delimiter, skipped = _layout(path, text, id_column)
    first_line = 1
    if skipped:
        first_line = line_of(text, skipped)
        text = text[skipped:]
    MAX_CELLS.check(text.count(delimiter) + max(text.count("\n"), text.count("\r")), path)
    # strict: a stray quote must not swallow the lines after it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows, lines, ragged = [], [], []
    for line, row in _numbered(reader, path, first_line):
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
        elif len(row) != len(header):
            ragged.append(
                f"line {line}: {counted(len(row), 'cell')} where the header has {len(header)}; "
                f"quote cells that contain the delimiter"
            )
        else:
            rows.append(row)
            lines.append(line)
    if header is None:
        raise TableError(f"{path} has no header. The first line names the columns.")
    return Cells(path=path, header=header, rows=rows, lines=lines, ragged=ragged)


def _numbered(reader: Any, path: Path, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line each starts on, the csv module's errors made ours."""
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


def _decode(path: Path) -> str:
    """Text of a table; what is no text is named."""
    raw = read_bytes(path, MAX_BYTES, error=TableError)
    refuse_foreign(path, raw, "CSV", TableError)
    try:
        text, encoding = decoded(raw)
    except UnicodeDecodeError:
        raise TableError(f"{path} is damaged UTF-16 text. Save it again as UTF-8.") from None
    found = foreign_text(text, "CSV")
    if found is not None:
        raise TableError(f"{path} {found}")
    if "\0" in text:
        raise TableError(
            f"{path}, line {line_of(text, text.index(chr(0)))}: a NUL byte. The file is damaged or "
            f"binary; export the table again as CSV."
        )
    if encoding == "latin-1":
        logger.warning("%s is not UTF-8; it is read as Latin-1.", path)
    return text


def _layout(path: Path, text: str, id_column: str) -> tuple[str, int]:
    """The delimiter of a table, and the number of characters before its header."""
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


def _sniff_delimiter(text: str, id_column: str) -> tuple[str, bool]:
    """The delimiter that makes a cell of the header equal the id column, else the commonest.

    Also whether it makes one.
    """
    # the lines of all of a large table would take more memory than the limits allow
    header = next((line for line in text[:LONGEST_HEADER].splitlines() if line.strip()), "")

    def fitness(delimiter: str) -> tuple[bool, int]:
        try:
            cells = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        except csv.Error:  # a quoted cell that goes on in the next line, or that ends too early
            cells = [cell.strip('"') for cell in header.split(delimiter)]
        cells = [cell.strip() for cell in cells]
        return id_column in cells, len(cells)

    best = max(DELIMITERS, key=fitness)
    return best, fitness(best)[0]


# Checks


def check_header(cells: Cells, needed: Sequence[str]) -> None:
    """Refuse a table without the columns `needed`, or with a column twice.

    Raises
    ------
    TableError
        With the columns there are and the nearest name.
    """
    header = cells.header
    repeated = [name for name, count in Counter(header).items() if count > 1 and name]
    if repeated:
        raise TableError(
            f"{cells.path} has the column {repeated[0]!r} more than once. Rename or remove one."
        )
    for index, name in enumerate(header):
        # a table written with its row numbers has a first column without a name
        header[index] = name or f"column_{index + 1}"
    if missing := [name for name in needed if name not in header]:
        raise _no_column(cells.path, missing, header)


def _no_column(path: Path, missing: Sequence[str], header: Sequence[str]) -> TableError:
    found = ", ".join(repr(name) for name in header[:30])
    hints = "".join(_nearest_column(name, header) for name in missing)
    return TableError(
        f"{path} has no column {' and '.join(map(repr, missing))}; found {found}."
        f"{hints} Rename the column, or say what yours is called: target_column=... "
        f"(--target-column) and so on."
    )


def _nearest_column(name: str, header: Sequence[str]) -> str:
    by_folded = {column.casefold(): column for column in header}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f" Did you mean {by_folded[close[0]]!r} for {name!r}?" if close else ""


def id_problem(text: str) -> str | None:
    """Why `text` cannot name a sample and its files; None if it can.

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


def id_problems(cells: Cells, column: str, ids: list[str]) -> list[str]:
    """A line of text for each id that cannot name a sample."""
    problems = []
    for row, text in enumerate(ids):
        problem = id_problem(text)
        if problem:
            problems.append(f"{cells.where(row)}, column {column}: {shown(text)} {problem}")
    return problems


def _parse_targets(
    cells: Cells, column: str, texts: list[str], *, required: bool
) -> tuple[np.ndarray, list[str]]:
    targets = np.full(len(texts), np.nan)
    problems = []
    for row, text in enumerate(texts):
        if not text and not required:
            continue
        targets[row], problem = parse_number(text)
        if problem:
            problems.append(f"{cells.where(row)}, column {column}: {shown(text)} {problem}")
    if problems and not required:
        unused = counted(len(problems), "label")
        logger.warning("%s: %s not used:\n%s", cells.path, unused, listing(problems, 3))
        return targets, []
    return targets, problems


def parse_number(text: str) -> tuple[float, str | None]:
    """Value of a label, or NaN and why it is none.

    Examples
    --------
    >>> parse_number("6.5"), parse_number("6,5")
    ((6.5, None), (nan, 'has a decimal comma; write 6.5'))
    """
    if not NUMBER.fullmatch(text):
        return math.nan, label_problem(text)
    value = float(text)
    if abs(value) > LARGEST_LABEL:
        return value, f"is beyond {LARGEST_LABEL:g} and overflows the loss; check the unit"
    return value, None


def label_problem(text: str) -> str:
    """Why a text is no number, and what to write instead."""
    if not text:
        return "is blank; fill it in or remove the row"
    if text[0] in "<>~≤≥":
        return "is a bound, not a value; remove the row or decide on a number"
    if _THOUSANDS.fullmatch(text):
        return f"has a comma; write {text.replace(',', '')} or {text.replace(',', '.', 1)}"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"has a decimal comma; write {text.replace(',', '.')}"
    if text.lstrip("+-").lower() in ("nan", "inf", "infinity", "na", "n/a", "none", "null"):
        return "is not a finite number; fill it in or remove the row"
    return "is not a number"


def _merge_duplicates(
    cells: Cells, ids: list[str], targets: np.ndarray
) -> tuple[list[int], list[str]]:
    """Rows to keep, and ids that come with two labels."""
    first: dict[str, int] = {}
    keep, dropped, clashes = [], [], []
    for row, name in enumerate(ids):
        earlier = first.setdefault(name, row)
        if earlier == row:
            keep.append(row)
        elif np.array_equal(targets[earlier], targets[row], equal_nan=True):
            dropped.append(f"{name} ({cells.where(row)})")
        else:
            clashes.append(
                f"{cells.where(row)}: {name!r} has the label {targets[row]:g}, and "
                f"{targets[earlier]:g} on {cells.where(earlier)}; keep one of them"
            )
    if dropped and not clashes:
        logger.warning(
            "%s repeats %s (same id, same label); the first of each is kept: %s%s",
            cells.path, counted(len(dropped), "row"),
            ", ".join(dropped[:5]), ", ..." if len(dropped) > 5 else "",
        )  # fmt: skip
    return keep, clashes


def raise_all(cells: Cells, problems: list[str]) -> None:
    """Report all bad rows in one error, if there are any.

    Raises
    ------
    TableError
        Listing them.
    """
    if problems:
        raise TableError(
            f"{cells.path} has {counted(len(problems), 'bad row')}:\n{listing(problems)}"
        )


def shown(text: str, width: int = 40) -> str:
    """Text in quotes, cut to `width`."""
    return repr(text if len(text) <= width else text[:width] + "...")


def _warn_labels(table: Table, column: str) -> None:
    known = table.targets[np.isfinite(table.targets)]
    if len(known) > 1 and np.ptp(known) == 0:
        logger.warning(
            "%s: all %d values of %r are %g, so there is nothing to learn.",
            table.path, len(known), column, known[0],
        )  # fmt: skip
    if len(known) < 4:
        return
    low, middle, high = np.percentile(known, [25, 50, 75])
    far = np.abs(table.targets - middle) > OUTLIER_RANGES * (high - low)
    if high > low and far.any():
        row = int(np.flatnonzero(far)[0])
        logger.warning(
            "%s: %s of %r far from the rest (%s has %g, the middle half is %g to %g). "
            "Check the unit.",
            table.path, counted(int(far.sum()), "value"), column,
            table.ids[row], table.targets[row], low, high,
        )  # fmt: skip


def _warn_case(table: Table) -> None:
    folded = Counter(name.casefold() for name in table.ids)
    alike = [name for name in table.ids if folded[name.casefold()] > 1]
    if alike:
        logger.warning(
            "%s: %d ids differ from another one only in case (%s); they may be the same entry.",
            table.path, len(alike), ", ".join(alike[:4]),
        )  # fmt: skip
