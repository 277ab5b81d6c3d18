"""Find columns of a table of series that may be no measurement: counters, labels, folds.

A feature that tells the label, or a row number in a table sorted by label, makes a model look
perfect on held-out series and useless afterwards (Kaufman et al. 2012, "Leakage in data mining").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from molfun._shapes import Float64, Int64
from molfun.sample import is_missing

FEWEST_ROWS = 5
"""In shorter tables any column may look like a plain counter from 0 or 1, or like the time."""
FEWEST_ROWS_ON_A_LINE = 10
"""In shorter tables a measurement may rise evenly with time."""
FEWEST_ROWS_OF_A_COUNTER = 20
"""In shorter tables whole numbers that differ and lie close together may be measurements."""
FEWEST_SERIES = 6
"""Fewer labels may agree with a measurement by chance."""

_WORDS = {
    "label": "label labels target targets y ys outcome outcomes class classes output "
    "truth y_true y_pred pred preds prediction predictions prob probability gt",
    "split": "fold folds kfold split splits partition subset set train test val valid "
    "validation is_train is_test is_val train_test",
    "row number or id": "index idx id ids row rows row_number rownum row_id rowid "
    "index_col indexcol rowindex uid uuid key pid sid sample series sequence",
    "group": "group groups subject patient participant person animal site center centre "
    "hospital batch plate cohort study trajectory replica replicate run",
    "time": "time times timestamp date datetime time_step timestep step frame epoch",
}
_KIND = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_INDEX = re.compile(r"unnamed(_\d+)*(_level_\d+)?|column_\d+|(index_)?level_\d+|index_?\d+")
_Y = re.compile(r"y(_?\d+)?")
_INDEX_OF = {
    "row",
    "level",
    "col",
    "column",
    "df",
    "data",
    "sample",
    "series",
    "frame",
    "time",
    "original",
}
_NUMBERED = re.compile(r"[ ._-]*\d+$")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a table of series: the series and time of each row, and the labels of the series.

    Parameters
    ----------
    code
        Number of the series of each row, from 0.
    times
        Time of each row.
    labels
        Label of each series, None or NaN where there is none.
    names
        Names of all features, since x, y and z together are coordinates.
    """

    code: Int64[np.ndarray, "rows"]
    times: Float64[np.ndarray, "rows"]
    labels: Sequence[Any]
    names: Sequence[str]

    def suspects(self, columns: Mapping[str, Float64[np.ndarray, "rows"]]) -> dict[str, str]:
        """Say why a column may be no measurement, for each column that may be none.

        Examples
        --------
        >>> rows = Rows(code=np.repeat([0, 1], 4), times=np.tile([0.0, 1, 2, 4], 2),
        ...             labels=[None, None], names=["pH", "fold", "m"])
        >>> values = np.array([7.0, 7.2, 7.1, 7.3, 6.9, 7.0, 7.2, 7.1])
        >>> rows.suspects({"pH": values, "fold": values, "m": np.arange(8.0)})
        {'fold': 'is named like a split', 'm': 'counts rows'}
        """
        reasons = {name: self._reason(name, values) for name, values in columns.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _reason(self, name: str, values: np.ndarray) -> str:
        kind = kind_of_name(name, self.names)
        if kind:
            return f"is named like a {kind}"
        if len(values) < FEWEST_ROWS:
            return ""
        seen = ~np.isnan(values)
        if _counts(values, len(np.unique(self.code))):
            return "counts rows"
        if self._follows_time(values, seen):
            return "follows the time column"
        if self._is_constant(values, seen):
            return "holds one value per series"
        return "tells the label" if self._tells_label(values) else ""

    @cached_property
    def _order(self) -> Int64[np.ndarray, "rows"]:
        """Rows by series, then by time."""
        return np.lexsort((self.times, self.code))

    @cached_property
    def _rank(self) -> Float64[np.ndarray, "rows"]:
        """Number of each row within its series."""
        order = self._order
        starts = np.flatnonzero(np.diff(self.code[order], prepend=-1))
        rank = np.empty(len(order))
        lengths = np.diff(np.append(starts, len(order)))
        rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
        return rank

    @cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Series with a label, the class of each label, and the labels as numbers if they are."""
        places = np.array([i for i, label in enumerate(self.labels) if not is_missing(label)], int)
        labels = [self.labels[i] for i in places]
        numbers = all(isinstance(label, int | float | np.number) for label in labels)
        codes = pd.factorize(pd.Series([str(label) for label in labels], dtype=object))[0]
        return places, codes, np.array(labels, np.float64) if numbers else None

    def _follows_time(self, values: np.ndarray, seen: np.ndarray) -> bool:
        """Return True for the time, in any unit, or the number of the row within its series."""
        if seen.sum() < FEWEST_ROWS or np.ptp(values[seen]) == 0:
            return False
        clocks = [other[seen] for other in (self.times, self._rank)]
        if seen.sum() < FEWEST_ROWS_ON_A_LINE:
            copies = [clock + start for clock in clocks for start in (0, 1)]
            return any(np.array_equal(values[seen], copy) for copy in copies)
        return any(_is_affine(values[seen], clock) for clock in clocks)

    def _is_constant(self, values: np.ndarray, seen: np.ndarray) -> bool:
        table = pd.Series(values[seen]).groupby(self.code[seen])
        same = (table.max() == table.min()).all()
        return bool(same and (table.count() > 1).any() and np.ptp(values[seen]) > 0)

    def _tells_label(self, values: np.ndarray) -> bool:
        """Return True where one value of a series (first, last, extreme, usual) gives its label."""
        places, codes, numbers = self._known
        if len(places) < FEWEST_SERIES:
            return False
        table = pd.Series(values[self._order]).groupby(self.code[self._order])
        # `first` and `last` pass over gaps
        summaries = (table.first, table.last, table.min, table.max, table.median)
        return any(_gives(make().to_numpy()[places], codes, numbers) for make in summaries)


def kind_of_name(name: str, names: Sequence[str] = ()) -> str:
    """Name the kind of a column that is no measurement, by its name; empty for any other.

    Examples
    --------
    >>> kind_of_name("cv_fold"), kind_of_name("Unnamed: 0"), kind_of_name("heart_rate")
    ('split', 'row number or id', '')
    >>> kind_of_name("y"), kind_of_name("y", ["x", "y"]), kind_of_name("y1", ["x1", "y1", "z1"])
    ('label', '', '')
    >>> kind_of_name("row_index"), kind_of_name("body_mass_index")
    ('row number or id', '')
    """
    plain = _plain(name)
    if _Y.fullmatch(plain) and f"x{plain[1:]}" in map(_plain, names):
        return ""  # of coordinates
    if _INDEX.fullmatch(plain):
        return "row number or id"
    stem = _NUMBERED.sub("", plain) or plain
    found = _KIND.get(plain) or _KIND.get(stem)
    if found:
        return found
    first, _, last = stem.rpartition("_")
    return _kind_of_last_word(first, last)


def _kind_of_last_word(first: str, last: str) -> str:
    """Return the kind of a column by the last word of its name, after `first`."""
    if last == "index":  # body_mass_index is a measurement
        return "row number or id" if first in _INDEX_OF or first in _KIND else ""
    telling = ("id", "label", "target", "outcome", "class", "fold", "split", "idx")
    return _KIND[last] if last in telling or last in ("group", "timestamp", "datetime") else ""


def _plain(name: str) -> str:
    """Return a name in small letters, with ``_`` between its words."""
    return re.sub(r"[\s.\-:_]+", "_", name.strip().casefold()).strip("_")


def _counts(values: np.ndarray, n_series: int) -> bool:
    """Return True for numbers of the rows, in order, shuffled or with rows left out."""
    if not (values == np.round(values)).all():  # also False for a gap: NaN equals nothing
        return False
    steps = np.diff(values)
    even = bool((np.abs(steps) == 1).all() and (steps == steps[0]).all())
    if even and values.min() in (0, 1):
        return True
    if len(values) < FEWEST_ROWS_OF_A_COUNTER:
        return False
    # a sum over time rises as well, but not from one series to the next
    if even or (n_series > 1 and _is_one_way(steps)):
        return True
    return len(np.unique(values)) == len(values) and np.ptp(values) <= 2 * len(values)


def _is_one_way(steps: np.ndarray) -> bool:
    return bool((steps > 0).all() or (steps < 0).all())


def _is_affine(values: np.ndarray, other: np.ndarray) -> bool:
    """Return True where values are a times the others plus b, up to rounding."""
    spread = np.ptp(other)
    if not spread or not np.ptp(values):
        return False
    low, high = int(other.argmin()), int(other.argmax())
    slope = (values[high] - values[low]) / spread
    expected = values[low] + slope * (other - other[low])
    return bool(slope and np.abs(values - expected).max() <= 1e-6 * np.ptp(values))


def _gives(summary: np.ndarray, codes: np.ndarray, numbers: np.ndarray | None) -> bool:
    """Return True where a value per series gives the label: on a line, or value by value."""
    seen = ~np.isnan(summary)
    values, codes = summary[seen], codes[seen]
    if len(values) < FEWEST_SERIES:
        return False
    if numbers is not None and _is_affine(values, numbers[seen]):
        return True
    # values that are nearly all different go with one class each by chance: they say nothing
    kinds, which = np.unique(values, return_inverse=True)
    if len(kinds) > len(values) // 2 or len(np.unique(codes)) < 2:
        return False
    return len(np.unique(which.astype(np.int64) * (codes.max() + 1) + codes)) == len(kinds)
