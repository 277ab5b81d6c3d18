"""Sequences of FASTA files."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from molfun._formats import foreign, foreign_text
from molfun._limits import Limit
from molfun._paths import as_path
from molfun.errors import DataError, UnsafeFileError
from molfun.text import shown

MAX_BYTES = Limit("FASTA_BYTES", 2**32)
"""Largest FASTA file, unpacked. All of its sequences are in memory in the end."""
MAX_RATIO = Limit("FASTA_GZIP_RATIO", 300, "unpacked bytes per packed byte")
"""Different proteins pack 2 to 4 times, variants of one protein up to 200 times."""
MAX_LINE = Limit("FASTA_LINE", 2**24, "characters in one line")
"""Longest line: a sequence may stand on one, and no protein has 0.1 million residues."""
MAX_RECORD = Limit("FASTA_RECORD", 2**24, "letters in one record")
"""The same for a sequence over many lines."""
RATIO_FROM = 2**24
"""Unpacked sizes below this are harmless at any ratio."""


def read_fasta(path: str | Path) -> Iterator[tuple[str, str]]:
    """Read a FASTA file (also ``.gz``): first word of each header, and the sequence.

    Raises
    ------
    DataError
        If the file is missing, damaged, empty, or has text before the first header.
    UnsafeFileError
        If it is larger than `MAX_BYTES`, unpacks to more than `MAX_RATIO` times its size, or has a
        line longer than `MAX_LINE` or a sequence longer than `MAX_RECORD`.
    """
    path = as_path(path)
    if not path.is_file():
        raise DataError(f"No such file: {path}.")
    name: str | None = None
    parts: list[str] = []
    length, longest = 0, MAX_RECORD.value
    for number, line in _lines(path):
        text = line.strip()
        if text.startswith(">"):
            if name is not None:
                yield name, _sequence(path, name, parts)
            name, parts, length = _name(path, number, text), [], 0
        elif text and not text.startswith(";"):
            if name is None:
                raise _no_header(path, number, line)
            length += len(text)
            if length > longest:
                raise MAX_RECORD.error(f"{path}, line {number}: the record {shown(name)}")
            parts.append(text)
    if name is None:
        raise DataError(f"{path} is empty.")
    yield name, _sequence(path, name, parts)


def _name(path: Path, number: int, header: str) -> str:
    words = header[1:].split()
    if not words:
        raise DataError(f"{path}, line {number}: a header without a name.")
    return words[0]


def _no_header(path: Path, number: int, line: str) -> DataError:
    if found := foreign_text(line, "FASTA"):
        return DataError(f"{path} {found}")
    return DataError(
        f"{path}, line {number}: expected a header that begins with '>', found "
        f"{shown(line.strip())}. Is it a FASTA file?"
    )


def _sequence(path: Path, name: str, parts: list[str]) -> str:
    if not parts:
        raise DataError(f"{path}: the record {name!r} has no sequence.")
    sequence = "".join(parts)
    if "\0" in sequence:
        raise DataError(f"{path}: the record {name!r} holds NUL bytes. Download the file again.")
    return sequence


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers, each once its size is known to be within the limits."""
    longest = MAX_LINE.value
    read = number = 0
    try:
        size = path.stat().st_size
        with _opened(path) as binary:
            most = _most(path, size, packed=isinstance(binary, gzip.GzipFile))
            file = io.TextIOWrapper(binary, encoding=_encoding(path, binary.peek(4096)))
            while line := file.readline(longest + 1):
                number += 1
                read += len(line)
                if len(line) > longest:
                    raise MAX_LINE.error(f"{path}, line {number}")
                if read > most:
                    raise _too_much(path, size, read)
                yield number, line
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} cannot be read: byte {error.object[error.start]:#04x} near line {number + 1} "
            f"is no {error.encoding.upper()}. Save the file as UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Download or copy it again.") from error


def _opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """Return the bytes of the file, unpacked if it is gzip by its name or its content."""
    file = path.open("rb")
    if path.suffix.lower() != ".gz" and not file.peek(2).startswith(b"\x1f\x8b"):
        return file
    file.close()
    return gzip.open(path)


def _encoding(path: Path, head: bytes) -> str:
    found = foreign(head, "FASTA")
    if found is None and b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        found = "holds NUL bytes: it is damaged or binary. Download or export it again."
    if found is not None:
        raise DataError(f"{path} {found}")
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def _most(path: Path, size: int, *, packed: bool) -> int:
    """Return the number of characters that may be read of a file of `size` bytes."""
    MAX_BYTES.check(size, path)
    return min(MAX_BYTES.value, max(RATIO_FROM, MAX_RATIO.value * size)) if packed else size


def _too_much(path: Path, size: int, read: int) -> UnsafeFileError:
    if read > MAX_BYTES.value:
        return MAX_BYTES.error(path)
    return MAX_RATIO.error(path, -(-read // size), advice="It was made to exhaust memory.")
