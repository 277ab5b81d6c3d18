"""Collect the faults of data files, where readers would raise an error at the first bad file.

A reader finds all bad rows of a table before it raises. In a `collected` block it notes them
instead, leaves these rows out, and goes on, so that the faults of tables, folders and structures
are found at once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from molfun.errors import DataError, MolfunError
from molfun.text import first_line

_ROW = re.compile(r"^(?:, )?(?:line|row) \d+(?:, |: )")
_QUOTED = re.compile(r"'[^']*'")
_NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d(?:[\d,.]*\d)?(?:e[-+]?\d+)?\w*")


def kind_of(text: str, source: object = "") -> str:
    """Return what many faults share: the text without place, values, numbers and advice.

    Parameters
    ----------
    text
        Description of one fault.
    source
        A name in it that differs from fault to fault, such as the path of a file.

    Examples
    --------
    >>> kind_of("line 3, column affinity: '6,5' has a decimal comma; write 6.5")
    'column affinity: ... has a decimal comma'
    >>> kind_of("pdbs/1abc.pdb holds no protein; found 3 water. Give another.", "pdbs/1abc.pdb")
    'holds no protein'
    >>> kind_of("d is a folder, not a table", "d")
    'is a folder, not a table'
    """
    # as a whole word: a file may be called "d", and "folder" keeps its letter
    own = re.compile(rf"(?<!\w){re.escape(str(source))}(?!\w)") if source else None
    plain = _ROW.sub("", own.sub("", text) if own else text).strip()
    return _NUMBER.sub("N", _fault(_QUOTED.sub("...", plain))).rstrip(".")


def _fault(text: str) -> str:
    """Return a description without the advice that follows it."""
    return re.split(r"; |(?<!\.)\. |\n", text, maxsplit=1)[0]


def summed_up(problems: Sequence[str], n_rows: int) -> list[str]:
    r"""Return the faults of a table, those of most rows in one line each.

    Such a fault is one mistake (a wrong column, another unit), and a line per row would hide the
    others.

    Parameters
    ----------
    problems
        A line for each fault, which begins with the place of its row.
    n_rows
        Rows of the table.

    Examples
    --------
    >>> rows = [f"line {i}, column y: 'x{i}' is no number; write 1.5" for i in range(2, 7)]
    >>> print(*summed_up(["line 3: too many cells", *rows], 5), sep="\n")
    line 3: too many cells
    all 5 rows, as line 2, column y: 'x2' is no number; write 1.5 (then line 3 'x3', line 4 'x4')
    """
    by_kind: dict[str, list[str]] = {}
    for problem in problems:
        by_kind.setdefault(kind_of(problem), []).append(problem)
    lines = []
    for own in by_kind.values():
        if len(own) < _FEWEST or 2 * len(own) <= n_rows:
            lines += own
            continue
        many = f"all {n_rows:,} rows" if len(own) == n_rows else f"{len(own):,} of {n_rows:,} rows"
        then = ", ".join(_place_and_value(problem) for problem in own[1:3])
        lines.append(f"{many}, as {own[0]} (then {then})")
    # in the order of the table, as far as they are single
    order = {problem: i for i, problem in enumerate(problems)}
    return sorted(lines, key=lambda line: order.get(line, len(order)))


_FEWEST = 5
"""Faults of one kind that are put together."""


def _place_and_value(problem: str) -> str:
    """Return the place of a fault, with the value that it quotes first."""
    value = _QUOTED.search(problem)
    place = re.match(r"\w+ \d+", problem)
    found = place[0] if place else problem
    return f"{found} {value[0]}" if value and place else found


@dataclass
class Faults:
    """Faults found so far, by the file or folder and by their kind.

    Attributes
    ----------
    found
        (source, kind) to the texts of the single faults, each once.
    """

    found: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def note(self, source: str | Path, texts: Iterable[str], kind: str | None = None) -> None:
        """Add faults of one file; of one `kind`, or each of the kind that its text shows."""
        for text in texts:
            key = (str(source), kind or kind_of(text))
            # a column of sequences is read once for each of several heads
            self.found.setdefault(key, {})[text] = None

    @contextlib.contextmanager
    def caught(self, source: str | Path) -> Iterator[None]:
        """Turn an error of Molfun in the block into a fault."""
        try:
            yield
        except MolfunError as error:
            if found := getattr(error, "problems", ()):
                self.note(source, found)
                return
            # an error that lists its cases has them in lines of their own
            lines = str(error).splitlines()[1:]
            cases = [line.strip() for line in lines if line.startswith("  ")]
            # names and values stay where there is one case
            own = _fault(str(error).removeprefix(str(source)).lstrip(" :,")).rstrip(".")
            kind = first_line(error).rstrip(":") if cases else own
            self.note(source, cases or [str(error)], kind)

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))


_active: ContextVar[Faults | None] = ContextVar("molfun_faults", default=None)


@contextlib.contextmanager
def collected() -> Iterator[Faults]:
    """Collect what readers in the block find; they leave bad rows and files out.

    Examples
    --------
    >>> with collected() as faults:
    ...     report("t.csv", ["line 2: bad"], DataError("t.csv has 1 bad row"))
    >>> {key: list(texts) for key, texts in faults.found.items()}
    {('t.csv', 'bad'): ['line 2: bad']}
    """
    faults = Faults()
    token = _active.set(faults)
    try:
        yield faults
    finally:
        _active.reset(token)


def is_collecting() -> bool:
    """Return True inside of a `collected` block."""
    return _active.get() is not None


def report(
    source: str | Path, texts: Iterable[str], error: DataError, kind: str | None = None
) -> None:
    """Raise an error that lists faults, or note them in a `collected` block.

    Raises
    ------
    DataError
        `error`, outside of such a block.
    """
    faults = _active.get()
    if faults is None:
        raise error
    faults.note(source, texts, kind)
