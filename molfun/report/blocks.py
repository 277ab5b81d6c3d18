"""Parts of a report that its template knows how to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Parameters
    ----------
    text
        The words.
    kind
        ``""``, ``"note"`` (small), ``"warning"`` or ``"code"`` (as it is, in fixed width).
    """

    text: str
    kind: str = ""
    block: str = field(default="text", init=False)


@dataclass(frozen=True)
class Table:
    """A table; cells are texts.

    Parameters
    ----------
    header
        Names of the columns; empty for a list of names and values.
    rows
        Cells, row by row.
    caption
        Sentence above it.
    numeric
        True to align all columns but the first to the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: bool = True
    block: str = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """A plot as SVG, with the sentence that says what it shows."""

    svg: str
    caption: str
    wide: bool = False
    block: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Tracks:
    """Rows of letters, one above the other, such as labels and predictions of residues.

    Parameters
    ----------
    title
        Name of the sample.
    rows
        Name and letters of each row; all have one length.
    classes
        Letters that have a colour, in the order of the palette.
    wrong
        Places to mark.
    """

    title: str
    rows: Sequence[tuple[str, str]]
    classes: Sequence[str]
    wrong: frozenset[int] = frozenset()
    block: str = field(default="tracks", init=False)

    @property
    def lines(self) -> list[list[tuple[str, list[tuple[str, int, bool]]]]]:
        """Rows broken into lines of 80: name, and letter, number of its class and mark."""
        number = {letter: i + 1 for i, letter in enumerate(self.classes)}
        length = max((len(letters) for _, letters in self.rows), default=0)
        return [
            [
                (
                    name,
                    [
                        (letters[i], number.get(letters[i], 0), i in self.wrong)
                        for i in range(start, min(start + 80, len(letters)))
                    ],
                )
                for name, letters in self.rows
            ]
            for start in range(0, length, 80)
        ]


@dataclass(frozen=True)
class Model3D:
    """A structure in three dimensions.

    Parameters
    ----------
    caption
        Sentence below it.
    text
        PDB file, with B-factors that say the colours.
    mode
        What they are: ``"plddt"``, ``"attribution"`` or ``"chain"``; see
        `molfun.report.coordinates.coloured`.
    """

    caption: str
    text: str
    mode: str = "chain"


@dataclass(frozen=True)
class Structures:
    """Structures in three dimensions, next to each other, and what their colours mean."""

    models: Sequence[Model3D]
    caption: str
    legend: Sequence[tuple[str, str]] = ()
    block: str = field(default="structures", init=False)


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Parameters
    ----------
    title
        Heading.
    blocks
        Content in order.
    """

    title: str
    blocks: Sequence[Any]

    @property
    def anchor(self) -> str:
        """Name for links within the page."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())
