"""Labels in tables: numbers, names of classes, and one for each residue."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from molfun.data.cells import Cells, Parse, Required
from molfun.data.columns import NUMBER
from molfun.errors import ConfigError

LabelForm = Literal["number", "class", "classes"]
"""Kinds of labels: a number, the name of a class, or any number of classes."""
Level = Literal["sequence", "residue"]
LARGEST_LABEL = 1e18
"""Labels beyond this are refused: their square overflows float32 and the loss would be inf."""
UNKNOWN = "?"
"""A residue without a label, in a text of letters."""

_SEPARATORS = re.compile(r"[\s,;]+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def label_parser(labels: LabelForm, level: Level) -> Parse:
    """Return a function that reads a cell: it gives the label, and what is wrong with it."""
    if level == "residue":
        return {"number": _numbers, "class": _letters, "classes": _refused}[labels]
    return {"number": parse_number, "class": _name, "classes": _listed}[labels]


def read_labels(
    cells: Cells,
    column: str,
    labels: LabelForm = "number",
    level: Level = "sequence",
    *,
    required: Required = True,
    fit: Callable[[int, Any], tuple[Any, str | None]] | None = None,
) -> np.ndarray:
    """Return the labels of a table as `label_array` does; bad ones are noted in `cells`.

    Parameters
    ----------
    cells, column
        The table, and its column of labels.
    labels, level
        Form of a label, and what has one.
    required, fit
        As in `Cells.labels`.
    """
    if (labels, level) == ("number", "sequence"):
        numbers = cells.numbers(column)
        if numbers is not None and np.abs(numbers).max(initial=0) <= LARGEST_LABEL:
            return numbers
    parse = label_parser(labels, level)
    return label_array(cells.labels(column, parse, required=required, fit=fit))


def _name(text: str) -> tuple[Any, str | None]:
    return (text, None) if text else (None, "is blank; fill it in or remove the row")


def _listed(text: str) -> tuple[Any, str | None]:
    return text, None


def _letters(text: str) -> tuple[Any, str | None]:
    parts = _SEPARATORS.split(text.strip("[]() ")) if _SEPARATORS.search(text) else text
    if UNKNOWN in parts:
        return [None if part == UNKNOWN else part for part in parts], None
    return (parts, None) if parts else _name(text)


def _refused(_text: str) -> tuple[Any, str | None]:
    return None, "cannot be several classes a residue in a table; use from_list"


def _numbers(text: str) -> tuple[Any, str | None]:
    values = []
    for part in _SEPARATORS.split(text.strip("[]() ")):
        if part.lower() in ("nan", "none", "na", UNKNOWN):
            values.append(math.nan)
            continue
        value, problem = parse_number(part)
        if problem:
            return None, f"holds {part!r}, which {problem}"
        values.append(value)
    return np.array(values), None


def parse_number(text: str) -> tuple[float, str | None]:
    """Return the value of a label, or NaN and why it is none.

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
    """Say why a text is no number, and what to write instead."""
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


def read_targets(
    cells: Cells,
    columns: Sequence[str],
    labels: LabelForm,
    level: Level,
    *,
    required: Required,
    fit: Callable[[int, Any], tuple[Any, str | None]] | None,
) -> np.ndarray:
    """Return the labels of one column as `read_labels` does, or of several as `read_several`.

    Raises
    ------
    ConfigError
        If several columns are no numbers of whole samples.
    """
    if not columns:
        raise ConfigError("target_column names no column.")
    if len(columns) == 1:
        return read_labels(cells, columns[0], labels, level, required=required, fit=fit)
    check_several(labels, level, columns)
    return read_several(cells, columns, required=required)


def check_several(labels: str, level: str, columns: Sequence[str]) -> None:
    """Refuse several columns of labels that are no numbers of whole samples.

    Raises
    ------
    ConfigError
        In one line.
    """
    if (labels, level) != ("number", "sequence") or len(set(columns)) < len(columns):
        raise ConfigError(
            f"Several target columns are different numbers of whole sequences, got "
            f"{', '.join(columns)} with labels={labels!r} and level={level!r}. Give classes and "
            f"residues a head each."
        )


def read_several(cells: Cells, columns: Sequence[str], *, required: Required) -> np.ndarray:
    """Return the numbers of several columns, an array per row and None where all are blank.

    Parameters
    ----------
    cells, columns
        The table, and its columns of labels; blank cells are labels that are missing.
    required
        As in `Cells.labels`, of rows without any label.
    """
    each = [read_labels(cells, name, required=required and "column") for name in columns]
    rows = np.stack([np.asarray(labels, np.float64) for labels in each], axis=1)
    empty = [bool(np.isnan(row).all()) for row in rows]
    if required is True:
        for row in np.flatnonzero(empty).tolist():
            cells.refuse(row, f"{cells.where(row)}: has no label in {', '.join(columns)}")
    return objects([None if none else row for row, none in zip(rows, empty, strict=True)])


def label_array(targets: Sequence[Any]) -> np.ndarray:
    """Return float64 where every label is a number or missing, else objects."""
    if all(t is None or isinstance(t, int | float | np.number) for t in targets) and any(
        t is not None for t in targets
    ):
        return np.array([math.nan if t is None else float(t) for t in targets])
    return objects(targets)


def objects(values: Sequence[Any]) -> np.ndarray:
    """Return an array that holds the values as they are, lists and arrays among them."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array
