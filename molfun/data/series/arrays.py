"""Series of numbers and what belongs to them: arrays and numpy files, checked and in one form.

All readers end in a `SeriesTable`: one float32 array (frames, features) a series, NaN where nothing
was observed, and a `Table` of ids, labels and other columns.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from molfun._limits import Limit
from molfun._shapes import Float32, Float64, Int64
from molfun.data.cells import id_problem, repeated_ids
from molfun.data.labels import label_array, parse_number
from molfun.data.npz import read_npy, read_npz
from molfun.data.tables import Table
from molfun.errors import ConfigError, DataError
from molfun.text import counted, listing, unknown_name

logger = logging.getLogger(__name__)

LARGEST_VALUE = float(np.finfo(np.float32).max)
"""Series are kept as float32; what is beyond would become infinite."""
MAX_BYTES = Limit("SERIES_BYTES", 2**33)
"""Arrays of one ``.npy`` or ``.npz`` file of series, unpacked."""
MAX_RATIO = Limit("SERIES_RATIO", 200, "unpacked bytes per packed byte")
"""Of ``.npz`` files above 16 MB; padding packs well, but has its limits."""
MAX_VALUES = Limit("SERIES_VALUES", 2**28, "values in one series")
"""Times by features, where a reader puts a series on a grid that its file does not hold."""
ABSENT = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
"""Texts that stand for a value that was not observed, in any case of letters."""
UNEVEN = 1e-3
"""Relative difference of time steps above which they are called uneven."""


@dataclass(frozen=True, kw_only=True)
class SeriesTable:
    """Series that passed every check.

    Parameters
    ----------
    table
        Ids, labels, other columns; ``group`` among them where groups are known.
    series
        One (frames, features) array each, NaN where nothing was observed.
    feature_names
        Names of the features, in order.
    named
        Whether ids or groups were given; if not, ids are numbers that say nothing.
    """

    table: Table
    series: list[Float32[np.ndarray, "frames features"]]
    feature_names: list[str]
    named: bool = True


# Arrays


def targets_of(labels: Any, n: int) -> np.ndarray:
    """Return the labels as an array, None for each sample where there are none."""
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    return label_array([None] * n if labels is None else list(labels))


def check_lengths(n: int, given: Mapping[str, Any]) -> None:
    """Refuse more or fewer values than samples.

    Raises
    ------
    ConfigError
        Naming what does not fit.
    """
    wrong = [f"{len(v)} in {name}" for name, v in given.items() if v is not None and len(v) != n]
    if wrong:
        raise ConfigError(f"{counted(n, 'sample')}, but {', '.join(wrong)}. Give one for each.")


def listed_arrays(values: Any, what: str) -> list[np.ndarray]:
    """Return an array (time, features) per series, from one array or several.

    Raises
    ------
    DataError
        If one array has no dimension for the series.
    """
    if isinstance(values, np.ndarray) and values.ndim != 3:
        raise DataError(
            f"{what} has the shape {values.shape}; expected (series, time, features). Use "
            f"array[..., None] for one feature, array[None] for one series, or a list of arrays."
        )
    return [np.asarray(value) for value in values]


def checked_series(
    arrays: Sequence[np.ndarray],
    masks: Sequence[np.ndarray] | None,
    ids: Sequence[str],
    path: Path,
) -> list[np.ndarray]:
    """Return arrays as float32 with NaN where they are masked.

    Raises
    ------
    DataError
        If a series or an id is bad; all of them are listed.
    """
    problems = [f"the id {name!r} {problem}" for name in ids if (problem := id_problem(name))]
    problems += repeated_ids(ids)
    series: list[np.ndarray] = []
    for index, (name, raw) in enumerate(zip(ids, arrays, strict=True)):
        mask = None if masks is None else masks[index]
        values, problem = _as_series(raw, mask)
        if not problem and series and values.shape[1] != series[0].shape[1]:
            problem = (
                f"has {counted(values.shape[1], 'feature')} where the first series has "
                f"{series[0].shape[1]}"
            )
        if problem:
            problems.append(f"{name} {problem}")
        else:
            series.append(values)
    if problems:
        raise DataError(f"{path} has {counted(len(problems), 'bad sample')}:\n{listing(problems)}")
    return series


def _as_series(raw: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, str]:
    values = raw[:, None] if raw.ndim == 1 else raw
    if values.ndim != 2 or 0 in values.shape:
        return values, f"has the shape {raw.shape}; expected (time, features), neither of them 0"
    if values.dtype.kind not in "fiub":
        return values, f"holds {values.dtype}, not numbers"
    if mask is not None:
        mask = mask[:, None] if mask.ndim == 1 else mask
        problem = _mask_problem(mask, values.shape)
        if problem:
            return values, problem
        values = np.where(mask.astype(bool), values, np.nan)
    with np.errstate(over="ignore"):
        values = np.asarray(values, dtype=np.float32)
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        frame, feature = infinite[0].tolist()
        return values, (
            f"has {counted(len(infinite), 'value')} that float32 cannot hold, the first in frame "
            f"{frame}, feature {feature}: {raw.reshape(values.shape)[frame, feature]}; write NaN "
            f"where nothing was observed"
        )
    if np.isnan(values).all():
        return values, "has no observed value"
    return values, ""


def _mask_problem(mask: np.ndarray, shape: tuple[int, ...]) -> str:
    if mask.shape != shape:
        return f"has a mask of the shape {mask.shape} for values of {shape}"
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        return "has a mask of other values than True and False (or 1 and 0)"
    return ""


def checked_names(names: Sequence[str] | None, n: int, path: Path) -> list[str]:
    """Return the names of `n` features; make them up where there are none.

    Raises
    ------
    ConfigError
        If there are more or fewer, or one comes twice.
    """
    if names is None:
        return [f"feature_{i}" for i in range(n)]
    texts = [str(name) for name in names]
    if len(texts) != n:
        raise ConfigError(f"{path}: {len(texts)} feature names for {counted(n, 'feature')}.")
    twice = [name for name, count in Counter(texts).items() if count > 1]
    if twice:
        raise ConfigError(f"{path}: the feature {twice[0]!r} comes more than once.")
    return texts


def numbered(n: int) -> list[str]:
    """Make ids for series without any."""
    return [f"series_{i}" for i in range(1, n + 1)]


def column_of(values: Iterable[Any]) -> pd.Series:
    """Make a column of metadata: numbers as they are, everything else as objects."""
    column = pd.Series(list(values))
    return column if column.dtype.kind in "iufb" else column.astype(object)


# Texts


def parse_value(text: str) -> tuple[float, str | None]:
    """Return an observed value, NaN where there is none, and why a text is neither.

    Examples
    --------
    >>> parse_value("1.5"), parse_value("?"), parse_value("1e60")
    ((1.5, None), (nan, None), (nan, 'is beyond 3.40282e+38, the largest number of float32'))
    """
    if text.casefold() in ABSENT:
        return math.nan, None
    value, problem = parse_number(text)
    if abs(value) > LARGEST_VALUE:
        return math.nan, f"is beyond {LARGEST_VALUE:g}, the largest number of float32"
    # labels have a narrower range than values
    return value, None if math.isfinite(value) else problem


def parse_values(
    texts: Sequence[str],
) -> tuple[Float64[np.ndarray, "texts"], list[tuple[int, str]]]:
    """Return the values of many texts, and the places of bad ones with the reason."""
    values = _plain_numbers(texts)
    if values is not None and not (np.abs(values) > LARGEST_VALUE).any():
        return values, []
    parsed = [parse_value(text) for text in texts]
    bad = [(i, problem) for i, (_, problem) in enumerate(parsed) if problem]
    return np.array([value for value, _ in parsed]), bad


def _plain_numbers(texts: Sequence[str]) -> Float64[np.ndarray, "texts"] | None:
    """Return numbers of texts and NaN for blanks; None where a text may be no number."""
    together = "".join(texts)
    # float() also takes 1_000 and the digits of other scripts
    if not together.isascii() or "_" in together:
        return None
    try:
        return np.array([float(text) if text else math.nan for text in texts])
    except ValueError:
        return None


def parse_times(texts: Sequence[str]) -> tuple[Float64[np.ndarray, "texts"], list[tuple[int, str]]]:
    """Return times as numbers, dates as seconds since 1970; and bad ones with the reason."""
    values, _ = parse_values(texts)
    bad = np.flatnonzero(np.isnan(values))
    if len(bad) == len(values):
        dates = pd.to_datetime(
            pd.Series(texts, dtype=object), format="ISO8601", errors="coerce", utc=True
        )
        since = dates - pd.Timestamp(0, tz="UTC")
        values = since.dt.total_seconds().to_numpy(np.float64)
        bad = np.flatnonzero(np.isnan(values))
    return values, [(int(i), "is no time: a number, or a date as 2024-05-01 12:30") for i in bad]


def warn_uneven(path: Path, times: Iterable[np.ndarray]) -> None:
    """Say so where the frames of a series are not evenly spaced in time."""
    uneven = sum(
        len(t) > 2 and float(np.ptp(np.diff(t))) > UNEVEN * float(np.abs(np.diff(t)).max())
        for t in times
    )
    if uneven:
        logger.warning(
            "%s: time steps are uneven in %d series; models take the frames as evenly spaced.",
            path, uneven,
        )  # fmt: skip


# numpy

_ARRAYS = {"label": "labels", "id": "ids", "group": "groups", "feature_names": "feature_names"}
"""Further arrays of a file, each with the argument of `from_arrays` that it becomes."""


def read_numpy(path: Path) -> dict[str, Any]:
    """Read ``.npy`` or ``.npz``: arguments of `TimeSeriesDataset.from_arrays`.

    Raises
    ------
    DataError
        If the file is missing, or holds pickled objects or unknown arrays.
    """
    found = _read_arrays(path)
    values: Any = found["timeseries"]
    mask: Any = found.get("mask")
    if values.ndim == 3 and "length" in found:
        lengths = _checked_lengths(found["length"], values.shape, path)
        values, mask = _cut(values, lengths), None if mask is None else _cut(mask, lengths)
    others = {argument: found.get(name) for name, argument in _ARRAYS.items()}
    given = {name: None if array is None else array.tolist() for name, array in others.items()}
    return {"timeseries": values, "mask": mask, **given, "path": path}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name."""
    if not path.is_file():
        raise DataError(f"No such file: {path}.")
    advice = "Write plain arrays with numpy.save or numpy.savez."
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if not is_archive:
        return {"timeseries": read_npy(path, MAX_BYTES, advice=advice)}
    found = read_npz(path, path, MAX_BYTES, advice=advice, ratio=MAX_RATIO)
    known = ("timeseries", "mask", "length", *_ARRAYS)
    strangers = [name for name in found if name not in known]
    if strangers:
        raise DataError(f"{path}: {unknown_name('array', strangers[0], known)}")
    if "timeseries" not in found:
        raise DataError(f"{path} has no array 'timeseries' of (series, time, features).")
    return found


def _checked_lengths(
    lengths: np.ndarray, shape: tuple[int, ...], path: Path
) -> Int64[np.ndarray, "series"]:
    fits = lengths.shape == shape[:1] and lengths.dtype.kind in "iu"
    if not fits or (lengths < 1).any() or (lengths > shape[1]).any():
        raise DataError(
            f"{path}: length must hold {shape[0]} whole numbers from 1 to {shape[1]}, one per "
            f"series."
        )
    return lengths.astype(np.int64)


def _cut(padded: np.ndarray, lengths: Iterable[int]) -> list[np.ndarray]:
    return [row[:n] for row, n in zip(padded, lengths, strict=True)]
