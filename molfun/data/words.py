"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one.

    Examples
    --------
    >>> counted(1, "bad row"), counted(12, "bad row")
    ('1 bad row', '12 bad rows')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
