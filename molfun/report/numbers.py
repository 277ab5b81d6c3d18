"""Numbers and names as a report writes them: three significant digits, and words people use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from molfun.evaluation.bootstrap import Estimate
from molfun.text import three_digits

OBJECTIVE_NAMES = {
    "masked_lm": "predict masked residues (masked_lm)",
    "mae": "predict masked values (mae)",
    "jepa": "predict the representation of masked steps (jepa)",
    "contrastive": "tell two views of a series from others (contrastive)",
}
"""Objectives of pre-training for people; others are shown by their names."""
DASH = "\N{EN DASH}"
"""In place of a value that is undefined or missing."""
PART_NAMES = {
    "train": "training", "val": "validation", "test": "test", "out_of_fold": "out-of-fold",
}  # fmt: skip


def number(value: Any) -> str:
    """Format a number with three significant digits, or to the unit; a dash where undefined.

    Examples
    --------
    >>> number(0.58634), number(None), number(float("nan")), number(1e-8), number(12)
    ('0.586', '–', '–', '1e-08', '12')
    >>> number(-97081.62)
    '-97,082'
    """
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, int) or 1000 <= abs(value) < 1e7:
        return f"{round(value):,}"
    return three_digits(value)


def estimate(found: Mapping[str, Any] | None) -> str:
    """Format a value with its interval.

    Examples
    --------
    >>> estimate({"value": 0.5912, "low": 0.5188, "high": 0.6499}), estimate({"value": 2.0})
    ('0.591 [0.519, 0.65]', '2')
    """
    if not found:
        return DASH
    text = number(found.get("value"))
    low, high = found.get("low"), found.get("high")
    return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]"


def interval(found: Estimate) -> str:
    """Format an estimate; without brackets where its interval is undefined.

    Examples
    --------
    >>> interval(Estimate(0.5912, 0.5188, 0.6499)), interval(Estimate(2.0))
    ('0.591 [0.519, 0.65]', '2')
    """
    known = math.isfinite(found.low) and math.isfinite(found.high)
    return estimate(vars(found) if known else {"value": found.value})


def duration(seconds: float) -> str:
    """Format a time span.

    Examples
    --------
    >>> duration(0.2), duration(42), duration(250), duration(9000)
    ('0.2 s', '42 s', '4 min 10 s', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
