"""Time series with gaps: several features over time, and a label for each series."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, get_args

import pandas as pd

from molfun._paths import as_path
from molfun.data.cells import Required, noted
from molfun.data.labels import LabelForm
from molfun.data.series import arrays
from molfun.data.series.samples import SeriesSamples
from molfun.data.series.tables import TEMPLATE, Layout, TableFormat, read_series_table
from molfun.data.series.trajectories import read_all
from molfun.data.series.ts import read_ts
from molfun.data.tables import Table
from molfun.errors import ConfigError, DataError
from molfun.strict import check_choice
from molfun.text import unknown_name

RESERVED = ("start", "series")
"""Columns of the metadata that the data set writes itself."""


class TimeSeriesDataset(SeriesSamples):
    """Time series with labels, as a map-style data set.

    Make one with `from_arrays`, `from_ts`, `from_csv`, `from_parquet`, `from_numpy` or
    `from_trajectories`, or let `open_timeseries` choose. Works with
    ``torch.utils.data.DataLoader`` and its workers, with `LengthBatchSampler` and with
    `DataSplitter`, whose splits never part a group: windows of one series, series of one subject
    or trajectory, or equal series.

    A sample's ``features`` are ``timeseries``, float32 (time, features), and ``mask``, bool
    (time, features), True where a value was observed; elsewhere ``timeseries`` is 0. Its
    ``metadata`` has the ``group``, the ``start`` (first frame in the series) and the other columns.
    """

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
    ) -> Self:
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
            Other columns, one value per series.
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
        >>> import numpy as np
        >>> data = TimeSeriesDataset.from_arrays([[[1.0], [np.nan]], [[3.0]]], labels=["a", "b"])
        >>> data[0].features["timeseries"].tolist(), data[0].features["mask"].tolist()
        ([[1.0], [0.0]], [[True], [False]])
        >>> data.ids, data.lengths.tolist(), data[1].target
        (['series_1', 'series_2'], [2, 1], 'b')
        """
        path = Path(path)
        values = arrays.listed_arrays(timeseries, "timeseries")
        masks = None if mask is None else arrays.listed_arrays(mask, "mask")
        n = len(values)
        columns = dict(metadata or {})
        given = {"labels": labels, "ids": ids, "groups": groups, "mask": masks, **columns}
        arrays.check_lengths(n, given)
        if n == 0:
            raise DataError(f"{path}: there are no series.")
        names = arrays.numbered(n) if ids is None else [str(name) for name in ids]
        series = arrays.checked_series(values, masks, names, path)
        if groups is not None:
            columns["group"] = list(map(str, groups))
        table = Table(
            path=path,
            ids=names,
            targets=arrays.targets_of(labels, n),
            metadata=pd.DataFrame({k: arrays.column_of(v) for k, v in columns.items()}),
            word="series" if path.suffix else "",
        )
        found = arrays.SeriesTable(
            table=table,
            series=series,
            feature_names=arrays.checked_names(feature_names, series[0].shape[1], path),
            named=ids is not None or groups is not None,
        )
        return cls._of(found, max_length)

    @classmethod
    def from_ts(cls, path: str | Path, *, max_length: int | None = None) -> Self:
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
        labels: LabelForm = "number",
        group_column: str = "group",
        max_length: int | None = None,
        require_target: Required = True,
        filters: Mapping[str, Any] | None = None,
    ) -> Self:
        r"""Read a CSV, TSV or Parquet table of series.

        An empty cell (also ``?``, ``NA``, ``nan``) is a value that was not observed.

        Parameters
        ----------
        csv
            The table.
        layout
            ``"long"``: one row per time step, with columns for the id, the time and each feature;
            the rows of a series may come in any order and are sorted by time. ``"wide"``: one row
            per series, with a column for each feature and time; time steps after the last observed
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
            False for prediction: labels may be absent. ``"column"`` for one of several labels: its
            column must be there, and its cells may be blank.
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
        check_choice("labels", labels, get_args(LabelForm))
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
        columns = asdict(form)
        del columns["require_target"]
        columns |= noted(require_target)
        dataset = cls._of(found, max_length, columns)
        return dataset.filter(**filters) if filters else dataset

    @classmethod
    def from_parquet(cls, path: str | Path, **options: Any) -> Self:
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
    def from_numpy(cls, path: str | Path, *, max_length: int | None = None) -> Self:
        """Read ``.npy``, or ``.npz`` with labels; files with pickled objects are refused.

        Parameters
        ----------
        path
            ``.npy`` of (series, time, features), or ``.npz`` with the array ``timeseries`` and
            any of ``mask`` (of the same shape, True where observed), ``label``, ``id``, ``group``,
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
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.npz"
        >>> np.savez(path, timeseries=np.zeros((2, 5, 3)), label=[0.5, 1.5], length=[5, 4])
        >>> data = TimeSeriesDataset.from_numpy(path)
        >>> data.lengths.tolist(), data.targets.tolist(), data[1].origin
        ([5, 4], [0.5, 1.5], 'data.npz, series 2')
        """
        return cls.from_arrays(**arrays.read_numpy(as_path(path)), max_length=max_length)

    @classmethod
    def from_trajectories(
        cls,
        source: str | Path | Iterable[Sequence[Any]],
        *,
        labels: LabelForm = "number",
        max_length: int | None = None,
        **options: Any,
    ) -> Self:
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
            As in `molfun.data.series.trajectories.observables`.

        Raises
        ------
        MissingDependencyError
            If MDAnalysis is not installed.
        DataError
            If files are missing (all of them are listed) or cannot be read.
        ConfigError
            If an option is not allowed.
        """
        given, cells = read_all(source, labels=labels, options=options)
        dataset = cls.from_arrays(**given, max_length=max_length)
        if options:
            dataset._columns["observables"] = options
        if cells is not None:
            dataset._table = replace(dataset._table, lines=cells.lines, word=cells.word)
        return dataset

    @classmethod
    def _of(
        cls,
        found: arrays.SeriesTable,
        max_length: int | None,
        columns: Mapping[str, Any] | None = None,
    ) -> Self:
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
