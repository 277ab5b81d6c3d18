"""Columns of metadata: texts as numbers where they are numbers, and conditions on rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from molfun.errors import ConfigError, DataError
from molfun.text import counted, listing, nearest, unknown_name

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})", re.ASCII)
_PADDED = re.compile(r"[+-]?0\d", re.ASCII)


def typed(texts: list[str]) -> pd.Series:
    """Return integers, else floats, where every value that is present parses; else text.

    Numbers with leading zeros are codes: they stay text.
    """
    present = list(filter(None, texts))
    # the first of a column of words is one, so that not all of it need be looked at
    if not any(map(NUMBER.fullmatch, present[:1])) or any(map(_PADDED.match, present)):
        return pd.Series(texts, dtype=object)
    if all(map(_INTEGER.fullmatch, present)):
        whole = [int(text) if text else None for text in texts]
        return pd.Series(whole, dtype="int64" if len(present) == len(texts) else "Int64")
    if all(map(NUMBER.fullmatch, present)):
        return pd.Series([float(text) if text else math.nan for text in texts], dtype="float64")
    return pd.Series(texts, dtype=object)


def rows_meeting(conditions: Mapping[str, Any], metadata: pd.DataFrame, source: str) -> np.ndarray:
    """Apply `filter_rows`; raise a `DataError` that names the source if no row is left."""
    kept = filter_rows(metadata, conditions)
    if len(kept) == 0:
        shown = ", ".join(f"{key}={value}" for key, value in conditions.items())
        raise DataError(f"No sample of {source} meets {shown}.")
    return kept


def row_of(metadata: pd.DataFrame, index: int) -> dict[str, Any]:
    """Return one row as plain Python values, None for a blank number."""
    values = {}
    for name in metadata.columns:
        value: Any = metadata[name].iat[index]
        if isinstance(value, np.generic):
            value = value.item()
        values[str(name)] = None if np.ndim(value) == 0 and pd.isna(value) else value
    return values


def filter_rows(metadata: pd.DataFrame, conditions: Mapping[str, Any]) -> np.ndarray:
    """Return rows that meet every condition.

    Parameters
    ----------
    metadata
        Typed columns.
    conditions
        ``column=value`` for equality (a list, tuple or set: any of them), ``min_column=value``
        and ``max_column=value`` for inclusive bounds. Rows where the cell is blank meet no
        condition.

    Returns
    -------
    numpy.ndarray
        Indices in order.

    Raises
    ------
    ConfigError
        If a column does not exist, or a bound is put on a text column.

    Examples
    --------
    >>> metadata = pd.DataFrame({"year": [2014, 2016], "resolution": [1.9, 2.8]})
    >>> filter_rows(metadata, {"min_year": 2015}).tolist()
    [1]
    """
    kept = np.ones(len(metadata), bool)
    for key, value in conditions.items():
        kept &= _test_for(metadata, key)(value)
    return np.flatnonzero(kept)


def _test_for(metadata: pd.DataFrame, key: str) -> Callable[[Any], np.ndarray]:
    if key in metadata.columns:
        return lambda value: _equal(metadata[key], value)
    prefix, _, name = key.partition("_")
    if prefix not in ("min", "max") or name not in metadata.columns:
        allowed = [str(column) for column in metadata.columns]
        bounds = [f"{end}_{column}" for end in ("min", "max") for column in numeric(metadata)]
        if not allowed:
            raise ConfigError(f"Cannot filter by {key!r}: the table has no columns to filter by.")
        raise ConfigError(unknown_name("filter", key, [*allowed, *bounds]))
    column = metadata[name]
    if name not in numeric(metadata):
        raise ConfigError(
            f"{key} needs numbers, and column {name!r} holds text such as {column.iloc[0]!r}. "
            f"Use {name}=... for equality."
        )
    return lambda value: _bounded(column, key, value, is_minimum=prefix == "min")


def _equal(column: pd.Series, value: Any) -> np.ndarray:
    values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
    if column.dtype == object:
        values = [str(item) for item in values]
    return column.isin(values).to_numpy(bool)


def _bounded(column: pd.Series, key: str, value: Any, *, is_minimum: bool) -> np.ndarray:
    try:
        bound = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} must be a number, got {value!r}.") from None
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    # comparisons with NaN (a blank cell) are false
    return numbers >= bound if is_minimum else numbers <= bound


def numeric(metadata: pd.DataFrame) -> list[str]:
    """Return the names of the columns that hold numbers."""
    return [str(name) for name in metadata.columns if metadata[name].dtype != object]


def check_weights(dataset: Any, column: str) -> None:
    """Refuse a column that does not weigh every sample of a data set.

    Raises
    ------
    DataError
        Listing the samples without a number of at least 0.
    """
    columns = dataset.metadata
    if column not in columns:
        names = [str(name) for name in columns]
        raise DataError(
            f"{dataset!r} has no column {column!r} of weights; its other columns are: "
            f"{', '.join(names) or 'none'}.{nearest(column, names)}"
        )
    values = pd.to_numeric(columns[column], errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if bad.size:
        raise DataError(
            f"{counted(len(bad), 'sample')} whose weight in column {column!r} is no number of at "
            f"least 0:\n{listing([f'{dataset.ids[i]}: {columns[column].iloc[i]}' for i in bad])}"
        )
    if not values.any():
        raise DataError(f"All weights in column {column!r} are 0: nothing would be learned.")
