"""Format numbers, names and lists for messages."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    Examples
    --------
    >>> counted(1, "bad row"), counted(12, "bad row")
    ('1 bad row', '12 bad rows')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def few(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names of a list, and their number if some are left out.

    Examples
    --------
    >>> few(["A", "B"]), few(["A", "B", "C"], limit=2)
    ('A, B', 'A, B, ... (3 in all)')
    """
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names):,} in all)"


def alternatives(names: Sequence[str]) -> str:
    """Return names as a choice: "a, b or c".

    Examples
    --------
    >>> alternatives(["mse", "mae", "huber"])
    'mse, mae or huber'
    """
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def names_in(value: Any) -> Any:
    """Split a comma-separated text into a list of names; return other values unchanged.

    Examples
    --------
    >>> names_in("hr, bp"), names_in(" "), names_in(["hr"])
    (['hr', 'bp'], [], ['hr'])
    """
    if not isinstance(value, str):
        return value
    return [name.strip() for name in value.split(",")] if value.strip() else []


def megabytes(n: float) -> str:
    """Return a number of bytes as text with a unit.

    Examples
    --------
    >>> megabytes(3 * 2**20), megabytes(5.5 * 2**30), megabytes(2500)
    ('3 MB', '5.5 GB', '3 kB')
    """
    if n >= 2**30:
        return f"{n / 2**30:.1f} GB"
    return f"{n / 2**20:.0f} MB" if n >= 2**20 else f"{-(-n // 1000):.0f} kB"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for a misspelt name, else an empty string.

    Examples
    --------
    >>> nearest("lorra", ["lora", "full"])
    " Did you mean 'lora'?"
    >>> nearest("zzz", ["lora", "full"])
    ''
    """
    # difflib's default cutoff of 0.6 allows for one or two wrong letters
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: the name, the allowed ones and the nearest."""
    names = sorted(allowed)
    return (
        f"Unknown {kind} {name!r}; known: {', '.join(names) or 'none'}.{nearest(str(name), names)}"
    )


def listing(problems: Sequence[str], limit: int = 10) -> str:
    """Return the first `limit` problems, one per line, and the total if some are left out.

    Examples
    --------
    >>> print(listing(["a", "b", "c"], limit=2))
      a
      b
      ... and 1 more (3 in all)
    """
    lines = [f"  {p}" for p in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more ({len(problems)} in all)")
    return "\n".join(lines)


def shown(text: object, width: int = 40) -> str:
    """Return a text from a file in quotes, cut to `width` characters.

    Examples
    --------
    >>> shown("abcdef", width=3), shown(b"abc")
    ("'abc...'", "'abc'")
    """
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return repr(plain if len(plain) <= width else f"{plain[:width]}...")


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's text without full stop; its type if there is no text.

    Examples
    --------
    >>> first_line(ValueError("bad value.\nmore")), first_line(KeyError())
    ('bad value', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def three_digits(value: float) -> str:
    """Format a number with three significant digits; from 100 on, with all digits before the point.

    Examples
    --------
    >>> three_digits(0.58634), three_digits(11.314), three_digits(4665.2), three_digits(math.nan)
    ('0.586', '11.3', '4665', 'undefined')
    """
    if math.isnan(value):
        return "undefined"
    # ".3g" would print 4665 as 4.67e+03
    return f"{value:.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"
