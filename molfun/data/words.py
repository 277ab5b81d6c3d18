"""Numbers in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one.

    Examples
    --------
    >>> counted(1, "bad row"), counted(12, "bad row")
    ('1 bad row', '12 bad rows')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def few(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, and how many there are if some are left out.

    Examples
    --------
    >>> few(["A", "B"]), few(["A", "B", "C"], limit=2)
    ('A, B', 'A, B, ... (3 in all)')
    """
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names):,} in all)"


def names_in(value: Any) -> Any:
    """Names with commas between them as a list, none in a blank text; anything else as it is.

    Examples
    --------
    >>> names_in("hr, bp"), names_in(" "), names_in(["hr"])
    (['hr', 'bp'], [], ['hr'])
    """
    if not isinstance(value, str):
        return value
    return [name.strip() for name in value.split(",")] if value.strip() else []


def megabytes(n: float) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> megabytes(3 * 2**20), megabytes(5.5 * 2**30), megabytes(2500)
    ('3 MB', '5.5 GB', '3 kB')
    """
    if n >= 2**30:
        return f"{n / 2**30:.1f} GB"
    return f"{n / 2**20:.0f} MB" if n >= 2**20 else f"{-(-n // 1000):.0f} kB"
