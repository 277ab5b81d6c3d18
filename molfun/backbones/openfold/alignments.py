"""Read alignments in a3m and Stockholm files of HHblits, MMseqs2, ColabFold and HMMER.

For clean files the result equals that of openfold's own parsers. Other files (rows longer than the
query, two alignments in one file) these parsers read wrongly without a word, or fail on; here such
a file is read as the program that wrote it means it, or refused with the number of the line.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from molfun._formats import text_of
from molfun._limits import Limit, read_bytes
from molfun._paths import as_path
from molfun.errors import DataError
from molfun.sample import ALIGNMENT_SUFFIXES
from molfun.text import listing

logger = logging.getLogger(__name__)

MAX_BYTES = Limit("ALIGNMENT_BYTES", 2**29)
"""Largest alignment, unpacked: 1000 columns by 500,000 sequences."""

_LINE_END = re.compile(r"\r\n|\r|\n")
_INSERTION = re.compile(r"[a-z]+")
_ODD = re.compile(r"[^A-Za-z-]")
_ANNOTATION = re.compile(r"ss_pred|ss_conf|ss_dssp|sa_dssp|aa_dssp|aa_pred|aa_conf")
"""Names of annotation rows, which HHblits and its scripts put before the query."""
_CONSENSUS = "_consensus"
"""Ending that HHblits adds to the name of the query for the row of its consensus."""
# ColabFold's first line: "#lengths<TAB>copies" of the chains, such as "#100,80\t1,1"
_COLABFOLD = re.compile(r"#\s*(\d+(?:,\d+)*)\t(\d+(?:,\d+)*)\s*", re.ASCII)
_ANOTHER = "another query begins here; keep the alignments of one sequence in a file"
_GAP, _TO_LOWER_CASE = ord("-"), 0x20
_LOWER_CASE = bytes(range(ord("a"), ord("z") + 1))


@dataclass
class _Row:
    name: str
    line: int
    parts: list[str] = field(default_factory=list)
    is_query: bool = False

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def problem(self, what: str) -> str:
        return f"line {self.line} ({self.name[:40] or 'no name'}): {what}"


def read_alignments(folder: Path) -> dict[str, dict[str, Any]]:
    """Read every alignment in a folder, in the order of the file names.

    Returns
    -------
    dict
        For each file ``msa`` (aligned rows, the query first) and ``deletion_matrix``, in the form
        of openfold's parsers.

    Raises
    ------
    DataError
        If a file is damaged, or two files are alignments of different queries.
    """
    files = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(ALIGNMENT_SUFFIXES)]
    found = {path.name: read_alignment(path) for path in files if path.is_file()}
    first = next(iter(found), "")
    # openfold stacks the rows of all files into one MSA, whatever their first rows are
    for name, data in found.items():
        if data["msa"][0] != found[first]["msa"][0]:
            raise DataError(
                f"the queries of {folder / first} and {name} differ. Keep the alignments of one "
                f"sequence in a folder."
            )
    return found


def read_alignment(path: str | Path) -> dict[str, Any]:
    """Read one alignment; see `read_alignments`.

    Raises
    ------
    DataError
        If the file is damaged or no alignment; the text has the number of the line.
    UnsafeFileError
        If it is larger than `MAX_BYTES`.
    """
    path = as_path(path)
    text = _read_text(path)
    lines = list(enumerate(_LINE_END.split(text), start=1))
    is_stockholm = ".sto" in [suffix.lower() for suffix in path.suffixes[-2:]]
    rows = _stockholm_rows(path, lines) if is_stockholm else _a3m_rows(path, lines)
    columns = _columns(rows[0])
    if not columns.replace("-", ""):
        raise DataError(f"{path}: the query has no residues. Run the search again.")
    return {
        "msa": [_columns(row) for row in rows],
        "deletion_matrix": [_deletions(row, len(columns)) for row in rows],
    }


def _columns(row: str) -> str:
    """Return an a3m row without its insertions."""
    # `bytes.translate` deletes in C; alignments have up to 2**29 characters
    return row.encode("utf-8").translate(None, _LOWER_CASE).decode("utf-8")


def _deletions(row: str, columns: int) -> list[int]:
    """Return the number of residues that an a3m row inserts before each column."""
    counts = [0] * columns
    inserted = 0
    for match in _INSERTION.finditer(row) if len(row) > columns else ():
        column = match.start() - inserted
        inserted += len(match.group())
        if column < columns:  # an insertion after the last column precedes none
            counts[column] = len(match.group())
    return counts


def _read_text(path: Path) -> str:
    text, _ = text_of(path, read_bytes(path, MAX_BYTES), "a3m or Stockholm")
    if not text.strip("\0\r\n\t "):
        raise DataError(f"{path} is empty. Run the search again, or remove the file.")
    return text


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise DataError(f"{path}, {problems[0]}.")
    if problems:
        raise DataError(f"{path}:\n{listing(problems)}")


# a3m


def _a3m_rows(path: Path, lines: Sequence[tuple[int, str]]) -> list[str]:
    """Return the rows in letters that openfold's parser knows, the query first."""
    kept = _sequences(path, _records(path, lines))
    query = kept[0]
    columns = query.text.replace(".", "").removesuffix("*")
    # lower case is an insertion relative to the query, which the query itself cannot have
    if columns != columns.upper():
        _refuse(path, [query.problem("the query has lower-case letters; write it in capitals")])
    _check_chains(path, lines, len(columns))
    cleaned: list[str] = []
    problems: list[str] = []
    for row in kept:
        text, problem = _clean_a3m(row, len(columns))
        if row.is_query and text != cleaned[0]:
            # refused at once: every further row belongs to the other query
            _refuse(path, [row.problem(_ANOTHER)])
        if problem is not None:
            problems.append(row.problem(problem))
        cleaned.append(text)
    _refuse(path, problems)
    return cleaned


def _sequences(path: Path, rows: Sequence[_Row]) -> list[_Row]:
    """Return the rows that are sequences, and log the annotation that is left out."""
    names = {row.name for row in rows}
    kept: list[_Row] = []
    left_out: list[_Row] = []
    for row in rows:
        (left_out if _is_annotation(row, names, first=not kept) else kept).append(row)
    if not kept:
        raise DataError(f"{path} holds no sequences. Run the search again.")
    if left_out:
        shown = ", ".join(row.name[:40] for row in left_out[:5])
        more = ", ..." if len(left_out) > 5 else ""
        noun = "row" if len(left_out) == 1 else "rows"
        logger.info("%s: left out %d %s of annotation: %s", path, len(left_out), noun, shown + more)
    return kept


def _is_annotation(row: _Row, names: set[str], *, first: bool) -> bool:
    """Return whether a row is annotation and no sequence.

    HHblits writes ``X_consensus`` before the query ``X``, and a consensus with lower-case letters.
    A query may itself be named ``consensus`` or ``my_consensus``.
    """
    name = row.name.lower()
    if name.endswith(_CONSENSUS):
        return row.name[: -len(_CONSENSUS)] in names
    if name == "consensus":
        return not first or not row.text.isupper()
    return _ANNOTATION.fullmatch(name) is not None


def _records(path: Path, lines: Sequence[tuple[int, str]]) -> list[_Row]:
    """Return the records of a3m text.

    MMseqs2 and ColabFold write a NUL between the results of two databases; the record after it
    repeats the query.
    """
    rows: list[_Row] = []
    begins = False
    for number, line in lines:
        if "\0" in line:
            line = _without_nul(path, line, number)
            begins = bool(rows)
        if line.startswith(">"):
            words = line[1:].split(maxsplit=1)
            rows.append(_Row(words[0] if words else "", number, is_query=begins))
            begins = False
        elif line.startswith("#") or not line.strip():
            continue
        elif not rows:
            _refuse(path, [_no_header(lines, number)])
        else:
            rows[-1].parts.append("".join(line.split()))
    return rows


def _without_nul(path: Path, line: str, number: int) -> str:
    """Return a line without the NULs around it, which separate the results of two databases."""
    text = line.strip("\0")
    if "\0" in text or (text and text[0] not in ">#"):
        _refuse(path, [f"line {number}: a NUL byte inside a sequence; the file is damaged"])
    return text


def _no_header(lines: Sequence[tuple[int, str]], number: int) -> str:
    if any(line.startswith("# STOCKHOLM") for _, line in lines[:number]):
        return "line 1: Stockholm under an a3m name; rename it to .sto"
    return f"line {number}: expected a header that begins with '>'"


def _check_chains(path: Path, lines: Sequence[tuple[int, str]], columns: int) -> None:
    """Compare ColabFold's first line (lengths and copies of the chains) with the query."""
    header = _COLABFOLD.fullmatch(lines[0][1])
    if header is None:
        return
    lengths = [int(n) for n in header[1].split(",")]
    if sum(lengths) != columns:
        chains = " and ".join(map(str, lengths))
        _refuse(path, [f"line 1: chains of {chains} residues, and the query has {columns} columns"])
    copies = header[2].split(",")
    if set(copies) != {"1"}:
        times = " and ".join(copies)
        logger.info("%s, line 1: copies of the chains: %s; read for one of each", path, times)


def _clean_a3m(row: _Row, columns: int) -> tuple[str, str | None]:
    """Return a row with letters and gaps only, and what is wrong with it or None.

    In a3m a dot is a gap in an insertion, which may be left out. ``*`` ends a sequence, or stands
    for an unknown residue (a stop codon that was read through).
    """
    written = text = row.text
    if _ODD.search(text):
        text = text.replace(".", "")
        if text.endswith("*") and len(_columns(text)) == columns + 1:
            text = text[:-1]
        text = text.replace("*", "X")
    odd = _ODD.search(text)
    if odd is not None:
        return text, f"{odd.group()!r} is no residue"
    n = len(_columns(text))
    if n == 0:
        return text, "no sequence"
    if n == columns:
        return text, None
    dots = "; write gaps as '-', '.' is a gap in an insertion" if "." in written else ""
    return text, _uneven(n, columns) + dots


def _uneven(n: int, columns: int) -> str:
    return f"{n:,} {'column' if n == 1 else 'columns'} where the query has {columns:,}"


# Stockholm


def _stockholm_rows(path: Path, lines: Sequence[tuple[int, str]]) -> list[str]:
    """Return the rows as in a3m: insertions, where the query has a gap, in lower case.

    In a Stockholm file case has no meaning, and each of ``-._~`` is a gap.
    """
    rows: dict[str, _Row] = {}
    for row, part in _stockholm_parts(path, lines):
        rows.setdefault(row.name, row).parts.append(part)
    if not rows:
        raise DataError(f"{path} holds no sequences. Run the search again.")
    cleaned: list[str] = []
    problems: list[str] = []
    columns = len(next(iter(rows.values())).text)
    # all problems of a file are collected, so that one look at it suffices
    for row in rows.values():
        text = row.text.upper()
        if _ODD.search(text):
            text = re.sub(r"[._~]", "-", text).replace("*", "X")
        odd = _ODD.search(text)
        if odd is not None:
            problems.append(row.problem(f"{odd.group()!r} is no residue"))
        elif len(text) != columns:
            problems.append(row.problem(_uneven(len(text), columns)))
        cleaned.append(text)
    _refuse(path, problems)
    return _as_a3m(cleaned)


def _as_a3m(rows: Sequence[str]) -> list[str]:
    """Return rows with residues in gaps of the first row in lower case, and no gaps there."""
    if "-" not in rows[0]:
        return list(rows)
    # as a matrix of bytes: an alignment of a long protein has millions of letters
    letters = np.array([row.encode("ascii") for row in rows]).view(np.uint8).reshape(len(rows), -1)
    aligned = letters[0] != _GAP
    made = []
    for row in np.where(aligned, letters, letters | _TO_LOWER_CASE):
        made.append(row[aligned | (row != _GAP)].tobytes().decode("ascii"))
    return made


def _stockholm_parts(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[_Row, str]]:
    """Yield for each line of a sequence a row with its name, and the columns on that line.

    Long alignments are written in blocks, each of which holds some columns of all rows.
    """
    ended = False
    for number, line in lines:
        text = line.strip()
        if text.startswith("//"):
            ended = True
        elif not text or text.startswith("#"):
            continue
        elif ended:
            _refuse(path, [f"line {number}: a second alignment begins; keep one in a file"])
        elif text.startswith(">"):
            _refuse(
                path, [f"line {number}: a3m or FASTA under a Stockholm name; rename it to .a3m"]
            )
        else:
            words = text.split()
            if len(words) != 2 or "\0" in text:
                _refuse(path, [f"line {number}: expected a name and a row of letters"])
            yield _Row(words[0], number), words[1]
