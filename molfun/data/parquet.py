"""Parquet tables as text, within the limits of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from molfun._formats import foreign
from molfun._limits import Limit
from molfun.errors import MolfunError, TableError
from molfun.text import first_line

BATCH_ROWS = 16_384
"""Rows decoded at a time, so that the limit is met before all of a table is in memory."""


def read_parquet(
    path: Path, *, max_bytes: Limit, max_cells: Limit
) -> tuple[list[str], list[list[str]]]:
    """Read the names of the columns, and each cell as it is written in a CSV file.

    Raises
    ------
    TableError
        If the file is damaged or no Parquet file.
    UnsafeFileError
        If it holds more bytes or cells than a table may have.
    """
    import pyarrow

    try:
        _refuse_others(path)
        return _read(path, max_bytes, max_cells)
    except MolfunError:
        raise
    # damaged bytes can make arrow fail in many ways, and dates of year 0 have no Python value
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        raise TableError(
            f"{path} cannot be read as Parquet ({first_line(error)}). Write it again, or give "
            f"a CSV file."
        ) from error


def _refuse_others(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return
    found = foreign(head if not head.startswith(b"PK") else path.read_bytes(), "Parquet")
    if found is None and head and b"\0" not in head:
        found = "is text under a Parquet name. Rename it to .csv."
    if found is not None:
        raise TableError(f"{path} {found}")


def _read(path: Path, max_bytes: Limit, max_cells: Limit) -> tuple[list[str], list[list[str]]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _check_size(path, file.metadata, max_bytes, max_cells)
        texts = [f.name for f in file.schema_arrow if str(f.type) in ("string", "binary")]
    columns: list[list[str]] = [[] for _ in names]
    unpacked = 0
    # a text that is stored once and repeated in every row then takes memory once
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            unpacked += batch.nbytes
            max_bytes.check(unpacked, path)
            for cells, column in zip(columns, batch.columns, strict=True):
                cells.extend(_cells(column))
    return [name.strip() for name in names], columns


def _check_size(path: Path, metadata: Any, max_bytes: Limit, max_cells: Limit) -> None:
    """Hold what the footer declares against the limits, before a page is unpacked."""
    # not by column: pyarrow 26 ends the process where statistics of a column are damaged
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    cells = sum(group.num_rows * group.num_columns for group in groups)
    unpacked = sum(group.total_byte_size for group in groups)
    max_cells.check(cells, path)
    max_bytes.check(unpacked, path)


def _cells(column: Any) -> list[str]:
    if not hasattr(column, "dictionary"):
        return [_text(value) for value in column.to_pylist()]
    texts = [_text(value) for value in column.dictionary.to_pylist()]
    return ["" if i is None else texts[i] for i in column.indices.to_pylist()]


def _text(value: Any) -> str:
    """Write a cell as a CSV file has it: lists with semicolons, ``?`` where they have none."""
    if isinstance(value, list):
        return ";".join("?" if item is None else _text(item) for item in value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return "" if value is None else str(value)
