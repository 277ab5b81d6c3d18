"""Samples as parts of series: where they begin and end, and windows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from molfun.errors import ConfigError
from molfun.strict import wrong_counts
from molfun.text import unknown_name

if TYPE_CHECKING:
    from jaxtyping import Int64

WindowLabel = Literal["keep", "none"]
"""Label of a window: that of its series, or none."""


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Series and frames of each sample.

    Parameters
    ----------
    series
        Index of the series.
    start, stop
        Its frames, from 0, the last one excluded.
    """

    series: Int64[np.ndarray, "samples"]
    start: Int64[np.ndarray, "samples"]
    stop: Int64[np.ndarray, "samples"]

    def take(self, indices: Int64[np.ndarray, "kept"]) -> Spans:
        """Return those at `indices`."""
        return Spans(
            series=self.series[indices], start=self.start[indices], stop=self.stop[indices]
        )


def whole(series: Sequence[np.ndarray]) -> Spans:
    """Make one sample per series."""
    n = len(series)
    stop = np.array([len(values) for values in series], np.int64)
    return Spans(series=np.arange(n), start=np.zeros(n, np.int64), stop=stop)


def check_windows(length: Any, stride: Any, label: str) -> None:
    """Refuse windows that cannot be.

    Raises
    ------
    ConfigError
        Naming all arguments that are not allowed.
    """
    problems = wrong_counts(length=length, stride=stride)
    if not problems and stride > length:
        problems.append(
            f"stride must be at most the length {length}, got {stride}: frames between windows "
            f"would never be seen."
        )
    if label not in get_args(WindowLabel):
        problems.append(unknown_name("label", label, get_args(WindowLabel)))
    if problems:
        raise ConfigError(" ".join(problems))


def window_starts(
    n: int, length: int, stride: int, *, drop_short: bool
) -> Int64[np.ndarray, "windows"]:
    """Return the first frames of the windows of `n` frames; the last window ends with them.

    Examples
    --------
    >>> window_starts(10, 4, 4, drop_short=False).tolist()
    [0, 4, 6]
    >>> window_starts(3, 4, 4, drop_short=False).tolist()
    [0]
    """
    if n < length:
        return np.zeros(0 if drop_short else 1, np.int64)
    starts = np.arange(0, n - length + 1, stride)
    return starts if starts[-1] == n - length else np.append(starts, n - length)
