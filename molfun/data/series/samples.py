"""Samples as parts of series with gaps: their values, windows, features and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from molfun._shapes import Float32, Int64
from molfun.data.base import TableDataset
from molfun.data.clusters import linked
from molfun.data.labels import label_array
from molfun.data.splits import DataSplitter
from molfun.data.tables import Table
from molfun.errors import ConfigError, DataError
from molfun.sample import Sample, SampleBatch
from molfun.strict import wrong_counts
from molfun.text import counted, listing, unknown_name

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_AS_LETTERS = str.maketrans("0123456789ABCDEFGHIJ", LETTERS)


class SeriesSamples(TableDataset):
    """Samples of time series; `TimeSeriesDataset` adds the readers.

    Parameters
    ----------
    table
        Ids, labels and other columns, one row per series.
    series
        (frames, features) float32, NaN where nothing was observed.
    feature_names
        Names of the features.
    max_length
        Frames kept of each sample, from the start.
    columns
        Names of the columns and what the labels are, as given to `TimeSeriesDataset.from_csv`.
    named
        False where ids are mere numbers: equal ones then mean nothing in another data set.
    """

    kind = "series"

    def __init__(
        self,
        table: Table,
        series: Sequence[Float32[np.ndarray, "frames features"]],
        *,
        feature_names: Sequence[str],
        max_length: int | None = None,
        columns: Mapping[str, Any] | None = None,
        named: bool = True,
    ) -> None:
        super().__init__(table, max_length=max_length, columns=columns)
        self._series = list(series)
        self.feature_names = list(feature_names)
        self._named = named
        spans = whole(self._series)
        stop = spans.start + self._cropped(spans.stop)
        self._place(table, replace(spans, stop=stop))

    def _place(self, table: Table, spans: Spans) -> None:
        """Make samples of parts of the series, which are kept as far as they are needed."""
        needed, places = np.unique(spans.series, return_inverse=True)
        self._series = [self._series[place] for place in needed]
        self._spans = replace(spans, series=places)
        self._digests: dict[int, str] = {}
        metadata = table.metadata.copy()
        if "group" not in metadata.columns:
            metadata["group"] = pd.Series(table.ids, dtype=object)
        metadata["start"] = spans.start
        self._table = replace(table, metadata=metadata)

    def __getitem__(self, index: int) -> Sample:
        index = self.place(index)
        values = self._values(index)
        mask = ~np.isnan(values)
        return Sample(
            id=self.ids[index],
            features={"timeseries": np.where(mask, values, np.float32(0)), "mask": mask},
            target=self._label(index),
            metadata=self.row(index),
            origin=self._table.origin(index),
        )

    def _values(self, index: int) -> Float32[np.ndarray, "time features"]:
        """Return a view of the frames of a sample."""
        spans = self._spans
        whole_series = self._series[spans.series[index]]
        return np.asarray(whole_series[spans.start[index] : spans.stop[index]])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} samples of {counted(self.n_features, 'feature')} "
            f"from {self._table.path})"
        )

    @property
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Frames of each sample."""
        return np.asarray(self._spans.stop - self._spans.start)

    @property
    def n_features(self) -> int:
        """Features observed at each time step."""
        return len(self.feature_names)

    @property
    def groups(self) -> list[str]:
        """Subject or trajectory of each sample: what a split must not part."""
        return [str(group) for group in self.metadata["group"]]

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings of the inputs; a checkpoint keeps them to prepare new ones the same way."""
        return {"kind": "timeseries", "max_length": self.max_length, **self._columns}

    def digests(self) -> list[str]:
        """Return the short sha256 of each sample as the model sees it."""
        return [_digest(self._values(index)) for index in range(len(self))]

    def sequences(self) -> list[tuple[str, ...]]:
        """Return a text for each sample, the same for samples that a split must keep together.

        These are samples of one group, and samples of equal series. The splits take words for
        sequences of proteins, so they are spelt with the letters of amino acids; their likeness
        means nothing, and `DataSplitter.by_identity` has no meaning here.
        """
        places = self._spans.series.tolist()
        keys = [
            [("group", group), ("content", self._series_digest(place))]
            for group, place in zip(self.groups, places, strict=True)
        ]
        words = (np.base_repr(root, len(LETTERS)) for root in linked(keys))
        return [(word.translate(_AS_LETTERS),) for word in words]

    def _series_digest(self, place: int) -> str:
        if place not in self._digests:
            self._digests[place] = _digest(self._series[place])
        return self._digests[place]

    @staticmethod
    def collate_tensors(samples: Iterable[Sample]) -> dict[str, torch.Tensor]:
        """Put samples into a dict of padded tensors, as Lightning's loaders give them.

        ``timeseries``, ``mask``, ``padding_mask`` and, where every sample has a number for one,
        ``label``.
        """
        found = list(samples)
        features = [s.features or {} for s in found]
        parts: dict[str, list[torch.Tensor]] = {
            "timeseries": [torch.as_tensor(f["timeseries"]) for f in features],
            "mask": [torch.as_tensor(f["mask"]) for f in features],
        }
        parts["padding_mask"] = [torch.ones(len(m), dtype=torch.bool) for m in parts["mask"]]
        batch = {k: pad_sequence(v, batch_first=True) for k, v in parts.items()}
        labels = SampleBatch(found).targets
        if all(isinstance(label, int | float | np.number) for label in labels):
            batch["label"] = torch.tensor([float(label) for label in labels])
        return batch

    def _take(self, places: Int64[np.ndarray, "kept"]) -> None:
        self._place(self._table, self._spans.take(places))

    def with_features(self, names: Sequence[str]) -> Self:
        """Return the same samples with some of their features, in the order of `names`.

        Raises
        ------
        DataError
            If there is no such feature.

        Examples
        --------
        >>> from molfun.data import TimeSeriesDataset
        >>> data = TimeSeriesDataset.from_arrays(
        ...     np.zeros((1, 5, 2)), feature_names=["hr", "bp"]
        ... )
        >>> data.with_features(["bp"]).feature_names
        ['bp']
        """
        for name in names:
            if name not in self.feature_names:
                raise DataError(unknown_name("feature", name, self.feature_names))
        places = [self.feature_names.index(name) for name in names]
        part = copy(self)
        part._series = [series[:, places] for series in self._series]
        part._digests = {}
        part.feature_names = list(names)
        part._columns = {**self._columns, "feature_columns": list(names)}
        return part

    def windows(
        self,
        length: int,
        *,
        stride: int | None = None,
        drop_short: bool = False,
        label: WindowLabel = "keep",
    ) -> Self:
        """Cut every sample into windows, which are views of it: nothing is copied.

        Windows begin every `stride` frames; the last one ends with the sample, so every frame is
        in a window. The id of a window is ``<id>@<start>``; its metadata has the ``group`` of its
        series, the ``start``, and in ``series`` the id it was cut from.

        Parameters
        ----------
        length
            Frames of a window.
        stride
            Frames from the start of a window to that of the next, at most `length`; by default
            `length`, so that only the last two windows can overlap.
        drop_short
            Leave out samples of fewer than `length` frames, which otherwise are one window each.
        label
            ``"keep"``: windows have the label of their series; ``"none"``: they have none, for
            pre-training.

        Raises
        ------
        ConfigError
            If an argument is not allowed; all of them are named.
        DataError
            If no window is left.

        Examples
        --------
        >>> from molfun.data import TimeSeriesDataset
        >>> data = TimeSeriesDataset.from_arrays(np.zeros((1, 10, 2)), ids=["a"])
        >>> windows = data.windows(4, stride=3)
        >>> windows.ids, windows.lengths.tolist(), windows[1].metadata["group"]
        (['a@0', 'a@3', 'a@6'], [4, 4, 4], 'a')
        """
        stride = length if stride is None else stride
        check_windows(length, stride, label)
        if len(self) == 0:
            return self
        starts = [
            window_starts(int(n), length, stride, drop_short=drop_short) for n in self.lengths
        ]
        parent = np.repeat(np.arange(len(self)), [len(part) for part in starts])
        if len(parent) == 0:
            raise DataError(
                f"No sample of {self._table.path} has {length} frames; the longest has "
                f"{int(self.lengths.max())}. Take a shorter length, or drop_short=False."
            )
        outer = self._spans.take(parent)
        start = outer.start + np.concatenate(starts)
        spans = Spans(series=outer.series, start=start, stop=np.minimum(start + length, outer.stop))
        table = self._table.take(parent)
        names = [f"{name}@{first}" for name, first in zip(table.ids, start.tolist(), strict=True)]
        table.metadata["series"] = pd.Series(table.ids, dtype=object)
        targets = table.targets if label == "keep" else label_array([None] * len(parent))
        how = {"length": length, "stride": stride, "drop_short": drop_short, "label": label}
        cut = copy(self)
        cut._place(replace(table, ids=names, targets=targets), spans)
        cut._columns = {**self._columns, "windows": how}
        return cut

    def split(
        self, val_frac: float = 0.1, test_frac: float = 0.1, seed: int = 42
    ) -> tuple[Self, Self, Self]:
        """Split into train, validation and test by group, never by window.

        A series without a subject or trajectory is a group by itself.

        Parameters
        ----------
        val_frac, test_frac
            Fractions of the samples; 0 leaves the part empty. As groups stay together, parts may
            be smaller.
        seed
            Another seed gives another choice of groups.

        Raises
        ------
        ConfigError
            If the fractions are negative or leave nothing for train.
        DataError
            If there are too few groups for the parts.

        Examples
        --------
        >>> from molfun.data import TimeSeriesDataset
        >>> data = TimeSeriesDataset.from_arrays(
        ...     np.arange(40.0).reshape(10, 4, 1), groups=list("aabbccddee")
        ... )
        >>> [sorted(set(part.groups)) for part in data.windows(2).split(0.2, 0.2)]
        [['a', 'b', 'd'], ['c'], ['e']]
        """
        return DataSplitter.by_group(
            self, "group", val_frac=val_frac, test_frac=test_frac, seed=seed
        )


def check_groups(**parts: SeriesSamples | None) -> None:
    """Refuse parts of a split that share a group or a series.

    Groups are compared where both data sets have names of their own, and not numbers for want of
    them; equal series are found in any case.

    Parameters
    ----------
    **parts
        Data sets by the name to use in the message; None is passed over.

    Raises
    ------
    DataError
        Naming what two of the parts share.

    Examples
    --------
    >>> from molfun.data import TimeSeriesDataset
    >>> data = TimeSeriesDataset.from_arrays(np.arange(12.0).reshape(3, 4, 1), ids=["a", "b", "c"])
    >>> train, val, test = data.windows(2).split(0.3, 0.3)
    >>> check_groups(train=train, validation=val, test=test)
    >>> check_groups(train=data, test=test)
    Traceback (most recent call last):
    molfun.errors.DataError: train and test share 1 group:
      'c'
    What a model learns of a group in one part shows in the other. Split by group: dataset.split().
    """
    given = [(name, part) for name, part in parts.items() if part is not None]
    for (name, part), (other_name, other) in combinations(given, 2):
        groups = _shared_groups(part, other)
        shared = groups or _shared_series(part, other)
        if shared:
            n = len(shared)
            what = counted(n, "group") if groups else f"{counted(n, 'pair')} of equal series"
            raise DataError(
                f"{name} and {other_name} share {what}:\n{listing(shared)}\nWhat a model "
                f"learns of a group in one part shows in the other. Split by group: "
                f"dataset.split()."
            )


def _shared_groups(one: SeriesSamples, other: SeriesSamples) -> list[str]:
    if not (one._named and other._named):
        return []
    return [repr(group) for group in sorted(set(one.groups) & set(other.groups))]


def _shared_series(one: SeriesSamples, other: SeriesSamples) -> list[str]:
    known = _by_content(one)
    return [
        f"{known[digest]} and {name}"
        for digest, name in _by_content(other).items()
        if digest in known
    ]


def _by_content(dataset: SeriesSamples) -> dict[str, str]:
    """Return the id of the first sample of each series, by what is in the series."""
    found: dict[str, str] = {}
    for name, place in zip(dataset.ids, dataset._spans.series.tolist(), strict=True):
        found.setdefault(dataset._series_digest(place), name)
    return found


def _digest(values: Float32[np.ndarray, "frames features"]) -> str:
    shape = f"{values.shape}".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


# Windows


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
