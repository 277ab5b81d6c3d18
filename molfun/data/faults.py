"""Collect the faults of data files, where readers would raise an error at the first bad file.

A reader finds all bad rows of a table before it raises. In a `collected` block it notes them
instead, leaves these rows out, and goes on, so that the faults of tables, folders and structures
are found at once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
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
