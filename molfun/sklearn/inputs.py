"""Turn the X of scikit-learn into samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from molfun.data.folders import FolderIndex
from molfun.data.series.dataset import TimeSeriesDataset
from molfun.data.structures import STRUCTURE_SUFFIXES, read_structure
from molfun.errors import DataError
from molfun.models.given import GivenSamples
from molfun.sample import Sample
from molfun.text import listing, shown

TAKEN = (
    "X is a list, array or Series of sequences, of ids of structures with folder=..., or of "
    "molfun.Sample; for series an array of numbers."
)
"""Advice for errors."""
WEIGHT = "sample_weight"
"""Column of the weights of samples, where they have any."""


def rows_of(X: Any) -> list[Any]:  # noqa: N803  (scikit-learn's name)
    """Return the items of X, which has one item per sample.

    A table or array of one column counts as its column: steps of a pipeline give such arrays.

    Raises
    ------
    DataError
        If X is empty, one text, or has several columns.

    Examples
    --------
    >>> rows_of(np.array([["MKV"], ["ACD"]]))
    ['MKV', 'ACD']
    """
    if isinstance(X, str | bytes) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        raise DataError(f"X is {shown(X)}, not a list of samples. {TAKEN}")
    values = X.to_numpy() if hasattr(X, "iloc") else X
    if isinstance(values, np.ndarray):
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise DataError(f"X is an array of shape {values.shape}, not one of samples. {TAKEN}")
        values = values.tolist()
    if not len(values):
        raise DataError("X is empty: there are 0 sample(s) in it, and 1 is needed.")
    return list(values)


def samples_of(
    rows: Sequence[Any],
    targets: Sequence[Any] | None = None,
    *,
    folder: str | Path | None = None,
    max_length: int | None = None,
    weights: Sequence[float] | None = None,
) -> GivenSamples:
    """Return samples, sequences or ids as a data set.

    Parameters
    ----------
    rows
        Samples, sequences, or ids of files in `folder`.
    targets
        One label per row; those that samples bring are not used.
    folder
        Folder of structures named after the ids.
    max_length
        Residues kept of each structure.
    weights
        Weight of each sample in the training loss.

    Raises
    ------
    DataError
        If a row is of another type, or a file is missing; all of them are listed.

    Examples
    --------
    >>> samples_of(["MKV", "ACD"], [0.5, 1.0])[1].target
    1.0
    """
    labels = [None] * len(rows) if targets is None else targets
    if all(isinstance(row, Sample) for row in rows):
        samples = list(rows)
    else:
        _check_texts(rows)
        samples = _sequences(rows) if folder is None else _structures(rows, folder, max_length)
    labelled = [replace(s, target=y) for s, y in zip(samples, labels, strict=True)]
    if weights is None:
        return GivenSamples(labelled)
    both = zip(labelled, weights, strict=True)
    return _Weighted([replace(s, metadata={**s.metadata, WEIGHT: w}) for s, w in both])


class _Weighted(GivenSamples):
    """Samples with weights of their own."""

    input_settings: ClassVar[Mapping[str, Any]] = {"weight_column": WEIGHT}


def series_of(
    values: Any, targets: Sequence[Any] | None = None, weights: Sequence[float] | None = None
) -> TimeSeriesDataset:
    """Return an array of series as a data set.

    Parameters
    ----------
    values
        (series, time, features), or a list of (time, features).
    targets, weights
        One label per series, and its weight in the training loss.
    """
    if weights is None:
        return TimeSeriesDataset.from_arrays(values, labels=targets)
    columns = {WEIGHT: list(weights)}
    data = TimeSeriesDataset.from_arrays(values, labels=targets, metadata=columns)
    return data.weighted_by(WEIGHT)


def _check_texts(rows: Sequence[Any]) -> None:
    wrong = [
        f"row {i}: {'missing (NaN)' if _is_nan(row) else type(row).__name__}"
        for i, row in enumerate(rows)
        if not isinstance(row, str) or not row
    ]
    if wrong:
        raise DataError(f"X holds rows that are no sequence:\n{listing(wrong)}\n{TAKEN}")


def _is_nan(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _sequences(rows: Iterable[str]) -> list[Sample]:
    return [Sample(id=f"seq_{i}", sequence=text) for i, text in enumerate(rows, start=1)]


def _structures(rows: Sequence[str], folder: str | Path, max_length: int | None) -> list[Sample]:
    index = FolderIndex(folder)
    # by id, since resampling repeats rows and each file needs to be read only once
    paths = {name: index.find(name, STRUCTURE_SUFFIXES) for name in rows}
    absent = [name for name, path in paths.items() if path is None]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(paths)} structures are missing in {index.folder}:\n"
            f"{listing(absent)}"
        )
    proteins = {n: read_structure(p).crop(max_length) for n, p in paths.items() if p is not None}
    return [Sample(id=name, protein=proteins[name]) for name in rows]
