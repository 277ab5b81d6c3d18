"""Columns of text in Arrow and Parquet files, mapped into memory.

An Arrow file is read where it lies: any row is found in some microseconds. A Parquet file can only
be unpacked by row groups, so it is copied to an Arrow file once. This is pyarrow, which is there
anyway, without Hugging Face's ``datasets``, which maps the same files with it. Both open ten
million sequences in less than a second. One by one, a text is read in 14 microseconds here and in
36 there, or 8 in batches of 16 (datasets 5.2, on a busy machine). What is mapped there becomes
resident: a run took 1,850 MB there and 1,050 here (``benchmarks/streaming.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from molfun._formats import foreign
from molfun._io import atomic_path, only_writer
from molfun._paths import as_path
from molfun.data.cells import MAX_CELL, Cells
from molfun.data.stored_texts import MappedFile, StoredTexts
from molfun.data.texts import codes_of, ends_of
from molfun.errors import ConfigError, MolfunError, TableError
from molfun.text import counted, first_line, listing

ARROW = (".arrow", ".feather", ".ipc")
PARQUET = (".parquet", ".pq")
IN_MEMORY = 2**26
"""Bytes, unpacked, up to which a file that has to be unpacked stays in memory without a copy."""
COPY_ROWS = 2**16
"""Rows unpacked at a time while a copy is written."""
COPIES = ".molfun"
"""Folder of the copies, beside the files."""
FORMAT = 1
"""Part of the name of a copy; increase it when copies are written in another way."""
MOST_NAMED = 10
"""Faults of a file that are named; all are counted."""


@dataclass(frozen=True)
class TextFile:
    """One file: its path, the names of all its columns, and those of text that were opened."""

    path: Path
    header: Sequence[str]
    columns: Mapping[str, StoredTexts]


def files_in(source: str | Path | Sequence[str | Path], suffixes: Sequence[str]) -> list[Path]:
    """Return the files that are meant: one, several, or those in a folder, by name.

    Raises
    ------
    ConfigError
        If nothing is given.
    TableError
        If a file is missing, has another ending, or a folder holds none.
    """
    given = [source] if isinstance(source, str | Path) else list(source)
    if not given:
        raise ConfigError("There are no files in the list. Give one at least.")
    found: list[Path] = []
    for path in map(as_path, given):
        found += _in_folder(path, suffixes) if path.is_dir() else [path]
    for path in found:
        if not path.is_file():
            raise TableError(f"{path} does not exist. Give a file, or a folder of them.")
        if path.suffix.lower() not in suffixes:
            raise TableError(f"{path} does not end in {' or '.join(suffixes)}. Rename it.")
    return found


def _in_folder(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    # programs begin the names of what is no data with a dot or an underscore (_SUCCESS)
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith((".", "_"))
    )
    if not files:
        raise TableError(f"{folder} holds no file that ends in {' or '.join(suffixes)}.")
    return files


def open_files(
    paths: Sequence[Path], columns: Mapping[str, str], cache_dir: str | Path | None
) -> list[TextFile]:
    """Open columns of text, and check what can be seen without reading the texts.

    Parameters
    ----------
    paths
        Arrow or Parquet files.
    columns
        Columns, each with the setting that names it; the first one holds the sequences.
    cache_dir
        Folder for copies of Parquet and compressed Arrow files; by default beside each.

    Raises
    ------
    TableError
        If a file is damaged, a column is missing or of another type, cells are blank, or an id
        comes twice.
    """
    folder = None if cache_dir is None else as_path(cache_dir)
    files = [_open(path, columns, folder) for path in paths]
    names = [name for name, setting in columns.items() if setting == "id_column"]
    for name in names:
        _check_distinct(files, name)
    return files


def _open(path: Path, columns: Mapping[str, str], cache_dir: Path | None) -> TextFile:
    with _reading(path):
        arrays = None if path.suffix.lower() in PARQUET else _mapped(path, columns)
        if arrays is None:
            arrays = _unpacked(path, columns, cache_dir)
    for name, column in arrays.columns.items():
        _check_cells(path, name, column)
    found = {name: StoredTexts(parts, arrays.file) for name, parts in arrays.columns.items()}
    if not len(next(iter(found.values()))):
        raise TableError(f"{path} has no rows. Write one row per sequence.")
    return TextFile(path, arrays.header, found)


@dataclass(frozen=True)
class _Arrays:
    """Names of all columns of a file, the arrays of some, and the file in which these lie."""

    header: Sequence[str]
    columns: Mapping[str, list[Any]]
    file: MappedFile | None = None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises on a damaged file into one line."""
    import pyarrow

    what = "Parquet" if path.suffix.lower() in PARQUET else "Arrow"
    try:
        yield
    except MolfunError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        with path.open("rb") as file:
            head = file.read(4096)
        own = {"Parquet": b"PAR1", "Arrow": b"ARROW1"}[what]
        found = None if head.startswith(own) else foreign(head, what)
        raise TableError(
            f"{path} {found}"
            if found
            else f"{path} cannot be read as {what} ({first_line(error)}). It is damaged or cut "
            f"off: write or copy it again."
        ) from error


# Arrow files


END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Last bytes of a stream; Arrow takes one that was cut off before a batch for a whole one."""


def _batches(path: Path, file: MappedFile) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a mapped Arrow file, of either kind, and its record batches."""
    import pyarrow

    buffer = file.buffer()
    # all columns: pyarrow copies the buffers where some are asked for
    if buffer[:6].to_pybytes() == b"ARROW1":
        reader = pyarrow.ipc.open_file(buffer)
        return reader.schema, map(reader.get_batch, range(reader.num_record_batches))
    # `datasets` writes streams, which have no table of contents
    reader = pyarrow.ipc.open_stream(buffer)
    if buffer[-len(END_OF_STREAM) :].to_pybytes() != END_OF_STREAM:
        raise TableError(
            f"{path} is cut off: an Arrow stream has a mark at its end. Copy it again."
        )
    return reader.schema, iter(reader)


def _mapped(path: Path, columns: Mapping[str, str]) -> _Arrays | None:
    """Return the arrays of an Arrow file as they lie there; None if they have to be unpacked."""
    import pyarrow

    file = MappedFile(path)
    schema, batches = _batches(path, file)
    _check_columns(path, schema, columns)
    if not all(_is_plain(schema.field(name).type) for name in columns):
        return None
    before = pyarrow.total_allocated_bytes()
    arrays: dict[str, list[Any]] = {name: [] for name in columns}
    for batch in batches:
        if pyarrow.total_allocated_bytes() > before + COPY_ROWS:
            return None  # compressed: reading it takes memory
        for name, parts in arrays.items():
            parts.append(batch.column(name))
    return _Arrays(schema.names, arrays, file)


def _is_plain(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _check_columns(path: Path, schema: Any, columns: Mapping[str, str]) -> None:
    """Refuse a file without the columns, or with others than texts in them."""
    import pyarrow

    Cells(path, list(schema.names), [], []).require(columns)
    for name, setting in columns.items():
        kind = schema.field(name).type
        inner = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        texts = ("string", "large_string", "string_view", "binary", "large_binary")
        allowed = (*texts, "int32", "int64") if setting == "id_column" else texts
        if str(inner) not in allowed:
            raise TableError(
                f"{path}, column {name}: holds {kind}, and texts are needed. Say which column "
                f"has them: {setting}=... (--{setting.replace('_', '-')})."
            )


# Copies


def _unpacked(path: Path, columns: Mapping[str, str], cache_dir: Path | None) -> _Arrays:
    """Return the arrays of a file that cannot be mapped: those of a copy, unless it is small."""
    if path.suffix.lower() in PARQUET:
        schema, size, rows, batches = _parquet(path, list(columns))
    else:
        schema, batches = _batches(path, MappedFile(path))
        size, rows = IN_MEMORY + 1, None
    _check_columns(path, schema, columns)
    plain = _as_text(batches, list(columns))
    if size <= IN_MEMORY:
        found = list(plain)
        arrays = {name: [batch.column(name) for batch in found] for name in columns}
        return _Arrays(schema.names, arrays)
    copy = _copy_of(path, columns, cache_dir)
    with only_writer(copy):
        if not copy.exists():
            _write_copy(path, copy, plain)
    whole = _mapped(copy, columns)
    n = None if whole is None else sum(map(len, next(iter(whole.columns.values()))))
    if whole is None or rows not in (None, n):
        raise TableError(f"{copy} is no whole copy of {path}. Delete it; it is made again.")
    return replace(whole, header=schema.names)


def _parquet(path: Path, names: Sequence[str]) -> tuple[Any, int, int, Iterator[Any]]:
    """Return schema, bytes, rows and batches of a Parquet file, which is unpacked as they come."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    about = file.metadata
    size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    batches = file.iter_batches(COPY_ROWS, columns=list(names), use_threads=False)
    return file.schema_arrow, size, about.num_rows, batches


def _as_text(batches: Iterable[Any], names: Sequence[str]) -> Iterator[Any]:
    """Yield record batches whose columns are plain texts."""
    import pyarrow

    for batch in batches:
        arrays = [_cast(batch.column(name)) for name in names]
        yield pyarrow.RecordBatch.from_arrays(arrays, names=list(names))


def _cast(array: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array if _is_plain(array.type) else array.cast(pyarrow.large_string())


def _copy_of(path: Path, columns: Mapping[str, str], cache_dir: Path | None) -> Path:
    """Return the path of the copy: another file, or other columns, have another one."""
    about = path.stat()
    digest = hashlib.sha256(
        f"{FORMAT}|{about.st_size}|{about.st_mtime_ns}|{'|'.join(columns)}|".encode()
    )
    with path.open("rb") as file:
        # the table of contents of either format, with places and statistics of all columns
        file.seek(max(0, about.st_size - 2**16))
        digest.update(file.read())
    folder = path.parent / COPIES if cache_dir is None else cache_dir
    return folder / f"{path.stem}-{digest.hexdigest()[:16]}.arrow"


def _write_copy(path: Path, copy: Path, batches: Iterator[Any]) -> None:
    import pyarrow

    with atomic_path(copy) as temporary:
        # errors of reading are no errors of writing
        with _reading(path):
            first = next(batches, None)
        if first is None:
            raise TableError(f"{path} has no rows. Write one row per sequence.")
        with (
            pyarrow.OSFile(str(temporary), "wb") as sink,
            pyarrow.ipc.new_file(sink, first.schema) as writer,
        ):
            while first is not None:
                writer.write_batch(first)
                with _reading(path):
                    first = next(batches, None)
    # what the decoder held
    pyarrow.default_memory_pool().release_unused()


# Checks


def _check_cells(path: Path, name: str, arrays: Sequence[Any]) -> None:
    """Refuse blank cells, and places of texts that are none; the texts are not read."""
    start, n_blank = 0, 0
    named: list[int] = []
    for array in arrays:
        array.validate()
        ends = ends_of(array)
        lengths = np.diff(ends)
        if len(array) and lengths.min() < 0:
            raise TableError(f"{path} is damaged (column {name}). Write or copy it again.")
        if (longest := int(lengths.max(initial=0))) > MAX_CELL.value:
            raise MAX_CELL.error(f"{path}, column {name}: a text of {longest:,} bytes")
        blank = np.flatnonzero(lengths == 0)
        if array.null_count:
            blank = np.union1d(blank, np.flatnonzero(array.is_null().to_numpy(False)))
        named += (start + blank[: MOST_NAMED - len(named)] + 1).tolist()
        n_blank += len(blank)
        start += len(array)
    if n_blank:
        what = f"column {name}: is blank; fill it in or remove the row"
        rows = [f"row {row}, {what}" for row in named]
        rows += [f"and {n_blank - len(named)} more"] * (n_blank > len(named))
        raise TableError(f"{path} has {counted(n_blank, 'bad row')}:\n{listing(rows, 11)}")


def _check_distinct(files: Sequence[TextFile], name: str) -> None:
    """Refuse ids that come more than once, in 8 bytes of memory per id."""
    blocks = [block for file in files for block in file.columns[name].blocks()]
    codes = np.concatenate([codes_of(block) for block in blocks])
    codes.sort()
    again = np.unique(codes[1:][codes[1:] == codes[:-1]])
    if not len(again):
        return
    del codes
    # equal codes are most likely, and need not be, those of equal ids
    some = again[:1000]
    counts = Counter(
        text
        for block in blocks
        for text in block.filter(_mask(np.isin(codes_of(block), some))).to_pylist()
    )
    repeated = [f"the id {text!r} comes more than once" for text, n in counts.items() if n > 1]
    if repeated:
        n = len(repeated) + len(again) - len(some)
        raise TableError(
            f"{files[0].path} has {counted(n, 'bad id')} in column {name!r}:\n"
            f"{listing(repeated)}\nLeave id_column out to number the rows."
        )


def _mask(array: np.ndarray) -> Any:
    import pyarrow

    return pyarrow.array(array)
