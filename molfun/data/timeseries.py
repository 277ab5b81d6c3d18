"""Time series with gaps: several features over time, and a label for each series."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from molfun._paths import as_path
from molfun.data import trajectories
from molfun.data.base import TableDataset
from molfun.data.clusters import union
from molfun.data.sequences import Labels, label_array
from molfun.data.splits import DataSplitter
from molfun.data.tables import Table
from molfun.data.timeseries_files import RESERVED, SeriesTable, from_values, read_numpy
from molfun.data.timeseries_spans import (
    Spans,
    WindowLabel,
    check_windows,
    whole,
    window_starts,
)
from molfun.data.timeseries_tables import TEMPLATE, Layout, TableFormat, read_series_table
from molfun.data.timeseries_ts import read_ts
from molfun.errors import ConfigError, DataError
from molfun.sample import Sample, SampleBatch, is_missing
from molfun.strict import check_choice
from molfun.text import counted, listing, unknown_name

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

logger = logging.getLogger(__name__)

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class TimeSeriesDataset(TableDataset):
    """Time series with labels, as a map-style data set.

    Make one with `from_arrays`, `from_ts`, `from_csv`, `from_parquet`, `from_numpy` or
    `from_trajectories`, or let `open_timeseries` choose. Works with
    ``torch.utils.data.DataLoader`` and its workers, with `LengthBatchSampler` and with
    `DataSplitter`, whose splits never part a group: windows of one series, series of one subject
    or trajectory, or equal series.

    A sample's ``features`` are ``timeseries``, float32 (time, features), and ``mask``, bool
    (time, features), True where a value was observed; elsewhere ``timeseries`` is 0. Its
    ``metadata`` has the ``group``, the ``start`` (first frame in the series) and the other columns.

    Parameters
    ----------
    table
        Ids, labels and other columns, a row for each sample.
    series
        (frames, features) float32, NaN where nothing was observed.
    feature_names
        Names of the features.
    spans
        The part of a series that each sample is; by default each sample is a whole series.
    max_length
        Frames kept of each sample, from the start.
    columns
        Names of the columns and what the labels are, as given to `from_csv`.
    named
        Whether ids or groups were given by the user; numbers for want of ids say nothing of what
        another data set has in common with this one.
    """

    kind = "series"

    def __init__(
        self,
        table: Table,
        series: Sequence[Float32[np.ndarray, "frames features"]],
        *,
        feature_names: Sequence[str],
        spans: Spans | None = None,
        max_length: int | None = None,
        columns: Mapping[str, Any] | None = None,
        named: bool = True,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {max_length}.")
        self._series = list(series)
        spans = whole(self._series) if spans is None else spans
        if max_length is not None:
            stop = np.minimum(spans.stop, spans.start + max_length)
            spans = Spans(series=spans.series, start=spans.start, stop=stop)
        self._spans = spans
        super().__init__(_placed(table, spans))
        self.feature_names = list(feature_names)
        self.max_length = max_length
        self._columns = dict(columns or {})
        self._named = named
        self._digests: dict[int, str] = {}

    # Readers

    @classmethod
    def from_arrays(
        cls,
        timeseries: Any,
        labels: Any = None,
        ids: Sequence[Any] | None = None,
        groups: Sequence[Any] | None = None,
        *,
        mask: Any = None,
        feature_names: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        path: str | Path = "list",
    ) -> TimeSeriesDataset:
        """Make a data set of arrays.

        Float32 arrays without a `mask` are used as they are, not copied.

        Parameters
        ----------
        timeseries
            (series, time, features), or a list of (time, features) of any lengths; (time,) in a
            list is one feature. NaN where nothing was observed.
        labels
            Numbers, class names, or several class names each; None where there is none.
        ids
            Names; by default series_1, series_2 ...
        groups
            Subject or trajectory of each series, which splits keep together; by default each
            series is a group.
        mask
            Shaped as `timeseries`: True where a value was observed, for data that has other
            values than NaN in its gaps.
        feature_names
            By default feature_0, feature_1 ...
        metadata
            Other columns, one value a series.
        max_length
            Frames kept of each series, from the start.
        path
            Where they come from, for messages.

        Raises
        ------
        ConfigError
            If labels, ids, groups, masks or names are more or fewer than needed.
        DataError
            If a series has no frame or no observed value, infinite values, another number of
            features than the first, or a mask of another shape; all of them are listed.

        Examples
        --------
        >>> data = TimeSeriesDataset.from_arrays([[[1.0], [np.nan]], [[3.0]]], labels=["a", "b"])
        >>> data[0].features["timeseries"].tolist(), data[0].features["mask"].tolist()
        ([[1.0], [0.0]], [[True], [False]])
        >>> data.ids, data.lengths.tolist(), data[1].target
        (['series_1', 'series_2'], [2, 1], 'b')
        """
        found = from_values(
            timeseries,
            mask=mask,
            labels=labels,
            ids=ids,
            groups=groups,
            feature_names=feature_names,
            metadata=metadata,
            path=Path(path),
        )
        return cls._of(found, max_length)

    @classmethod
    def from_ts(cls, path: str | Path, *, max_length: int | None = None) -> TimeSeriesDataset:
        r"""Read a ``.ts`` file of the time series archives (also ``.ts.gz``).

        Labels of ``@classLabel`` are names, labels of ``@targetLabel`` numbers; ``?`` for either a
        value or a label that is not there. Where ``@timeStamps`` is true, the dimensions of a
        series are put on all their times together, with gaps where one has no value.

        Parameters
        ----------
        path
            The file.
        max_length
            Frames kept of each series, from the start.

        Raises
        ------
        DataError
            If the file is missing, a tag is unknown, or any line does not fit the header or is no
            series; all of them are listed.

        References
        ----------
        The .ts file format: https://www.aeon-toolkit.org/en/stable/api_reference/data_format.html

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.ts"
        >>> header = "@problemName demo\n@univariate false\n@classLabel true up down\n@data\n"
        >>> _ = path.write_text(header + "1,2,3:0,?,0:up\n3,2:0,0:down\n")
        >>> data = TimeSeriesDataset.from_ts(path)
        >>> data.lengths.tolist(), data.n_features, data.targets.tolist()
        ([3, 2], 2, ['up', 'down'])
        """
        return cls._of(read_ts(as_path(path)), max_length)

    @classmethod
    def from_csv(
        cls,
        csv: str | Path,
        *,
        layout: Layout = "long",
        id_column: str | None = "id",
        time_column: str = "time",
        feature_columns: Sequence[str] | str | None = None,
        pattern: str = TEMPLATE,
        target_column: str | None = "target",
        labels: Labels = "number",
        group_column: str = "group",
        max_length: int | None = None,
        require_target: bool = True,
        filters: Mapping[str, Any] | None = None,
    ) -> TimeSeriesDataset:
        r"""Read a CSV, TSV or Parquet table of series.

        An empty cell (also ``?``, ``NA``, ``nan``) is a value that was not observed.

        Parameters
        ----------
        csv
            The table.
        layout
            ``"long"``: one row a time step, with columns for the id, the time and each feature;
            the rows of a series may come in any order and are sorted by time. ``"wide"``: one row
            a series, with a column for each feature and time; time steps after the last observed
            value are padding and left out.
        id_column
            Names of the series. None for a wide table without any: series_1, series_2 ...
        time_column
            Numbers, or dates as ``2024-05-01 12:30``; in a long table.
        feature_columns
            Features to read, in this order, as a list or as ``"hr,bp"``. By default, in a long
            table all columns that have no other role, in a wide one all that fit the `pattern`;
            those that may be no measurements (row counters, copies of the time, labels, folds, one
            value per series) are then refused. Other columns are metadata.
        pattern
            How the columns of a wide table are named; ``"{time}"`` for a single feature with
            columns 0, 1, 2 ...
        target_column
            The label, the same in all rows of a series; None if there is none.
        labels
            Whether labels are numbers (``"number"``), the name of a class (``"class"``), or
            names with ``;`` between them (``"classes"``, blank for none of them).
        group_column
            Subject or trajectory, which splits keep together. A column ``group`` is taken if it is
            there; any other has to be.
        max_length
            Frames kept of each series, from the start.
        require_target
            False for prediction: labels may be absent.
        filters
            Conditions as in `filter`.

        Raises
        ------
        ConfigError
            If `layout` or `labels` is unknown, the pattern has no ``{time}``, or `feature_columns`
            names none, one twice, the id or the label.
        TableError
            If a column is missing or may be no measurement, a series has a time twice or two
            labels, or any row is bad; all of them are listed.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "long.csv"
        >>> _ = path.write_text("id,time,hr,bp,target\na,0,1,5,0.5\na,1,2,,0.5\nb,0,3,6,1.5\n")
        >>> data = TimeSeriesDataset.from_csv(path)
        >>> data.ids, data.feature_names, data[0].features["mask"].tolist()
        (['a', 'b'], ['hr', 'bp'], [[True, True], [True, False]])
        >>> _ = path.write_text("id,x_0,x_1,x_2,target\na,1,,2,0.5\nb,3,4,,1.5\n")
        >>> TimeSeriesDataset.from_csv(path, layout="wide").lengths.tolist()
        [3, 2]
        """
        check_choice("layout", layout, get_args(Layout))
        check_choice("labels", labels, get_args(Labels))
        form = TableFormat(
            layout=layout,
            id_column=id_column,
            time_column=time_column,
            feature_columns=feature_columns,
            pattern=pattern,
            target_column=target_column,
            labels=labels,
            group_column=group_column,
            require_target=require_target,
        )
        found = read_series_table(as_path(csv), form)
        columns = {name: value for name, value in asdict(form).items() if name != "require_target"}
        dataset = cls._of(found, max_length, columns)
        return dataset.filter(**filters) if filters else dataset

    @classmethod
    def from_parquet(cls, path: str | Path, **options: Any) -> TimeSeriesDataset:
        """Read a Parquet table of either layout, whatever the file is called.

        Parameters
        ----------
        path
            The table.
        **options
            As in `from_csv`.

        Raises
        ------
        TableError
            As in `from_csv`, or if the file's name does not end in .parquet or .pq.
        """
        if as_path(path).suffix.lower() not in (".parquet", ".pq"):
            raise DataError(f"{path}: Parquet is read from .parquet and .pq; rename the file.")
        return cls.from_csv(path, **options)

    @classmethod
    def from_numpy(cls, path: str | Path, *, max_length: int | None = None) -> TimeSeriesDataset:
        """Read ``.npy``, or ``.npz`` with labels; files with pickled objects are refused.

        Parameters
        ----------
        path
            ``.npy`` of (series, time, features), or ``.npz`` with the array ``timeseries`` and
            any of ``mask`` (shaped alike, True where observed), ``label``, ``id``, ``group``,
            ``length`` (frames of each series that are no padding) and ``feature_names``.
        max_length
            Frames kept of each series, from the start.

        Raises
        ------
        DataError
            If the file is missing or damaged, an array is unknown, or a series is bad.
        ConfigError
            If there are more or fewer labels, ids, groups or names than needed.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.npz"
        >>> np.savez(path, timeseries=np.zeros((2, 5, 3)), label=[0.5, 1.5], length=[5, 4])
        >>> data = TimeSeriesDataset.from_numpy(path)
        >>> data.lengths.tolist(), data.targets.tolist(), data[1].origin
        ([5, 4], [0.5, 1.5], 'data.npz, series 2')
        """
        return cls._of(read_numpy(as_path(path)), max_length)

    @classmethod
    def from_trajectories(
        cls,
        source: str | Path | Iterable[Sequence[Any]],
        *,
        labels: Labels = "number",
        max_length: int | None = None,
        **options: Any,
    ) -> TimeSeriesDataset:
        """Compute observables of simulations, one series a trajectory; needs ``molfun[md]``.

        Features that some trajectories have and others have not (angles of residues, as systems
        differ) are masked in the others, and that is said.

        Parameters
        ----------
        source
            Rows of (id, topology, trajectory, label, group), of which the last three may be None
            or left out; or a table with the columns ``id``, ``topology`` and optionally
            ``trajectory``, ``target`` and ``group``, whose paths are relative to its folder. The
            default group is the id.
        labels
            What the labels in a table are, as in `from_csv`.
        max_length
            Frames kept of each series, from the start.
        **options
            As in `molfun.data.trajectories.observables`.

        Raises
        ------
        MissingDependencyError
            If MDAnalysis is not installed.
        DataError
            If files are missing (all of them are listed) or cannot be read.
        ConfigError
            If an option is not allowed.
        """
        found = trajectories.read_all(source, labels=labels, options=options)
        return cls._of(found, max_length, {"observables": options} if options else None)

    @classmethod
    def _of(
        cls,
        found: SeriesTable,
        max_length: int | None,
        columns: Mapping[str, Any] | None = None,
    ) -> TimeSeriesDataset:
        taken = [name for name in RESERVED if name in found.table.metadata.columns]
        if taken:
            raise DataError(
                f"{found.table.path} has a column {taken[0]!r}, a name that the data set needs for "
                f"where a window begins and what it is cut from. Rename the column."
            )
        return cls(
            found.table,
            found.series,
            feature_names=found.feature_names,
            max_length=max_length,
            columns={**(columns or {}), "feature_columns": found.feature_names},
            named=found.named,
        )

    # Samples

    def __getitem__(self, index: int) -> Sample:
        index = self.place(index)
        target = self.targets[index]
        if isinstance(target, np.floating):
            target = float(target)
        values = self._values(index)
        mask = ~np.isnan(values)
        return Sample(
            id=self.ids[index],
            features={"timeseries": np.where(mask, values, np.float32(0)), "mask": mask},
            target=None if is_missing(target) else target,
            metadata=self.row(index),
            origin=self._table.origin(index),
        )

    def _values(self, index: int) -> Float32[np.ndarray, "time features"]:
        """A view of the frames of a sample."""
        spans = self._spans
        whole_series = self._series[spans.series[index]]
        return np.asarray(whole_series[spans.start[index] : spans.stop[index]])

    def __repr__(self) -> str:
        return (
            f"TimeSeriesDataset({len(self)} samples of {counted(self.n_features, 'feature')} "
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
    def id_name(self) -> str:
        """Column of the ids."""
        return str(self._columns.get("id_column") or "id")

    @property
    def target_name(self) -> str:
        """Column of the labels."""
        return str(self._columns.get("target_column") or "target")

    @property
    def input_settings(self) -> dict[str, Any]:
        """How inputs are prepared, so that a checkpoint can prepare new ones alike."""
        return {"kind": "timeseries", "max_length": self.max_length, **self._columns}

    def digests(self) -> list[str]:
        """Short sha256 of each sample as the model sees it."""
        return [_digest(self._values(index)) for index in range(len(self))]

    def sequences(self) -> list[tuple[str, ...]]:
        """A word for each sample, the same for those that a split must not part.

        These are samples of one group, and samples of equal series. The splits take words for
        sequences of proteins, so they are spelt with the letters of amino acids; their likeness
        means nothing, and `DataSplitter.by_identity` has no meaning here.
        """
        places = self._spans.series.tolist()
        keys = [
            [("group", group), ("content", self._series_digest(place))]
            for group, place in zip(self.groups, places, strict=True)
        ]
        first: dict[tuple[str, str], int] = {}
        pairs = [(first.setdefault(key, i), i) for i, both in enumerate(keys) for key in both]
        return [(_word(root),) for root in union(len(self), pairs)]

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

    # Parts

    def subset(self, indices: Sequence[int] | np.ndarray) -> TimeSeriesDataset:
        """Samples at `indices`, in that order; the arrays are shared."""
        chosen = np.asarray(self.places(indices), np.int64)
        return self._with(self._table.take(chosen), self._spans.take(chosen))

    def with_features(self, names: Sequence[str]) -> TimeSeriesDataset:
        """The same samples with some of their features, in the order of `names`.

        Raises
        ------
        DataError
            If there is no such feature.

        Examples
        --------
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
        return TimeSeriesDataset(
            self._table,
            [series[:, places] for series in self._series],
            feature_names=names,
            spans=self._spans,
            max_length=self.max_length,
            columns={**self._columns, "feature_columns": list(names)},
            named=self._named,
        )

    def windows(
        self,
        length: int,
        *,
        stride: int | None = None,
        drop_short: bool = False,
        label: WindowLabel = "keep",
    ) -> TimeSeriesDataset:
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
        cut = replace(table, ids=names, targets=targets)
        how = {"length": length, "stride": stride, "drop_short": drop_short, "label": label}
        return self._with(cut, spans, {"windows": how})

    def split(
        self, val_frac: float = 0.1, test_frac: float = 0.1, seed: int = 42
    ) -> tuple[TimeSeriesDataset, TimeSeriesDataset, TimeSeriesDataset]:
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
        >>> data = TimeSeriesDataset.from_arrays(
        ...     np.arange(40.0).reshape(10, 4, 1), groups=list("aabbccddee")
        ... )
        >>> [sorted(set(part.groups)) for part in data.windows(2).split(0.2, 0.2)]
        [['a', 'b', 'd'], ['c'], ['e']]
        """
        return DataSplitter.by_group(
            self, "group", val_frac=val_frac, test_frac=test_frac, seed=seed
        )

    def _with(
        self, table: Table, spans: Spans, columns: Mapping[str, Any] | None = None
    ) -> TimeSeriesDataset:
        """The same series, as far as they are needed, with other samples of them."""
        needed, places = np.unique(spans.series, return_inverse=True)
        return TimeSeriesDataset(
            table,
            [self._series[place] for place in needed],
            feature_names=self.feature_names,
            spans=Spans(series=places, start=spans.start, stop=spans.stop),
            max_length=self.max_length,
            columns={**self._columns, **(columns or {})},
            named=self._named,
        )


def check_groups(**parts: TimeSeriesDataset | None) -> None:
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
    for place, (name, part) in enumerate(given):
        for other_name, other in given[place + 1 :]:
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


def open_timeseries(path: str | Path, **options: Any) -> TimeSeriesDataset:
    """Read a file of time series as its name says.

    Parameters
    ----------
    path
        ``.ts``, ``.csv``, ``.tsv``, ``.txt`` (all of them also with ``.gz``), ``.parquet``,
        ``.pq``, ``.npy`` or ``.npz``.
    **options
        As in the reader of that kind: `TimeSeriesDataset.from_ts`, `from_csv`, `from_numpy`.

    Raises
    ------
    DataError
        If files of this kind are not read, or the file is bad.
    ConfigError
        If the reader has no such option.

    Examples
    --------
    >>> open_timeseries("run.xlsx")
    Traceback (most recent call last):
    molfun.errors.DataError: run.xlsx: time series are read from .csv, .npy, .npz, .parquet, .pq,
    .ts, .tsv, .txt (also .csv.gz, .ts.gz, .tsv.gz, .txt.gz). Convert the file.
    """
    name = Path(path).name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    readers = _readers()
    if suffix not in readers or (packed and suffix not in _TEXTS):
        raise DataError(
            f"{path}: time series are read from {', '.join(sorted(readers))} (also "
            f"{', '.join(f'{text}.gz' for text in sorted(_TEXTS))}). Convert the file."
        )
    reader = readers[suffix]
    allowed = list(inspect.signature(reader).parameters)[1:]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"{path}: {unknown_name(f'option of a {suffix} file', option, allowed)}"
            )
    return reader(path, **options)


_TEXTS = (".ts", ".csv", ".tsv", ".txt")


def _readers() -> dict[str, Callable[..., TimeSeriesDataset]]:
    kind = TimeSeriesDataset
    tables = dict.fromkeys((".csv", ".tsv", ".txt", ".parquet", ".pq"), kind.from_csv)
    return {**tables, ".ts": kind.from_ts, ".npy": kind.from_numpy, ".npz": kind.from_numpy}


def _placed(table: Table, spans: Spans) -> Table:
    """The table with the group and the first frame of each sample."""
    metadata = table.metadata.copy()
    if "group" not in metadata.columns:
        metadata["group"] = pd.Series(table.ids, dtype=object)
    metadata["start"] = spans.start
    return replace(table, metadata=metadata)


def _shared_groups(one: TimeSeriesDataset, other: TimeSeriesDataset) -> list[str]:
    if not (one._named and other._named):
        return []
    return [repr(group) for group in sorted(set(one.groups) & set(other.groups))]


def _shared_series(one: TimeSeriesDataset, other: TimeSeriesDataset) -> list[str]:
    known = _by_content(one)
    return [
        f"{known[digest]} and {name}"
        for digest, name in _by_content(other).items()
        if digest in known
    ]


def _by_content(dataset: TimeSeriesDataset) -> dict[str, str]:
    """Id of the first sample of each series, by what is in the series."""
    found: dict[str, str] = {}
    for name, place in zip(dataset.ids, dataset._spans.series.tolist(), strict=True):
        found.setdefault(dataset._series_digest(place), name)
    return found


def _digest(values: Float32[np.ndarray, "frames features"]) -> str:
    shape = f"{values.shape}".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def _word(number: int) -> str:
    """A number as letters."""
    letters = ""
    while True:
        number, digit = divmod(number, len(LETTERS))
        letters = LETTERS[digit] + letters
        if number == 0:
            return letters
