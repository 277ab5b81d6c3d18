"""Base of all data sets: samples by number, with ids, labels and columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from molfun._shapes import Int64
from molfun.data.columns import check_weights, row_of, rows_meeting
from molfun.data.tables import Table
from molfun.data.texts import listed
from molfun.errors import ConfigError
from molfun.registry import DATASETS, DEFAULT_KIND
from molfun.sample import Sample, SampleBatch, is_missing
from molfun.text import counted


class SampleDataset(ABC):
    """A map-style data set of `Sample`, for ``DataLoader``, `DataSplitter` and `fit`.

    The same index always gives the same sample.
    """

    kind: ClassVar[str | None] = None
    """Registered name of the kind of data (`molfun.registry.DATASETS`), where it is one."""
    draws_nothing = True
    labels_from_structure: ClassVar[bool] = False
    """True if the label of a sample is its own structure, for tasks that learn coordinates."""

    @property
    def default_batch_size(self) -> int:
        """Samples per batch where no loader says otherwise."""
        return 1 if self.kind is None else DATASETS[self.kind].default_batch_size

    @property
    @abstractmethod
    def ids(self) -> list[str]:
        """Ids in order."""

    @property
    @abstractmethod
    def targets(self) -> Any:
        """Labels in order; NaN or None where there is none."""

    @property
    @abstractmethod
    def metadata(self) -> pd.DataFrame:
        """The other columns, one row per sample."""

    @property
    @abstractmethod
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Residues, frames or atoms of each sample that the model sees at most."""

    @property
    @abstractmethod
    def input_settings(self) -> dict[str, Any]:
        """Settings of the inputs; a checkpoint keeps them to prepare new ones the same way."""

    @property
    def id_name(self) -> str:
        """Column of the ids."""
        return "id"

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return one sample; an index below 0 counts from the end."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def sequences(self) -> list[tuple[str, ...]]:
        """Return each sample's sequences, or texts; splits keep equal ones together."""

    @abstractmethod
    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the samples at `indices`, in that order; what was read is shared, not copied."""

    def filter(self, **conditions: Any) -> Self:
        """Return the samples that meet every condition on the columns of `metadata`, or on the ids.

        Parameters
        ----------
        **conditions
            ``year=2016`` for equality, ``year=[2015, 2016]`` for any of several,
            ``min_year=2015`` and ``max_resolution=2.5`` for inclusive bounds. A blank cell meets
            no condition.

        Raises
        ------
        ConfigError
            If there is no such column, or a bound is put on a text column.
        DataError
            If no sample is left.

        Examples
        --------
        >>> from molfun.data import TimeSeriesDataset
        >>> data = TimeSeriesDataset.from_arrays(np.zeros((3, 5, 1)), groups=["a", "b", "b"])
        >>> data.filter(group="b").ids
        ['series_2', 'series_3']
        """
        columns = self.metadata
        if self.id_name in conditions and self.id_name not in columns:
            columns = columns.assign(**{self.id_name: self.ids})
        return self.subset(rows_meeting(conditions, columns, repr(self)))

    @staticmethod
    def collate_fn(samples: Iterable[Sample]) -> SampleBatch:
        """Put samples into a batch; the backbone makes tensors of it.

        Examples
        --------
        >>> SampleDataset.collate_fn([Sample(id="1a4w", target=6.52)]).targets
        [6.52]
        """
        return SampleBatch(list(samples))

    def place(self, index: int) -> int:
        """Return the position from 0 for an index that may count from the end.

        Raises
        ------
        IndexError
            If there is no such sample, which ends a loop over the data set.
        """
        n = len(self)
        if not isinstance(index, int | np.integer):
            raise ConfigError(
                f"One index gives one sample, got {type(index).__name__}. Use subset(...) for "
                f"several."
            )
        if not -n <= index < n:
            raise IndexError(f"index {index} is out of range for {counted(n, 'sample')}")
        return int(index) % n

    def positions(self, indices: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "chosen"]:
        """Return positions from 0 for indices as scikit-learn's splitters give them, or for a mask.

        Parameters
        ----------
        indices
            Whole numbers, which may count from the end, or a boolean for each sample.

        Raises
        ------
        ConfigError
            If they are anything else, or there is no such sample.
        """
        n, array = len(self), np.asarray(indices)
        if array.dtype == bool:
            if array.shape != (n,):
                raise ConfigError(f"The mask has {array.size} values for {counted(n, 'sample')}.")
            return np.flatnonzero(array)
        if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
            raise ConfigError(
                "subset takes positions (whole numbers) or a mask (a boolean per sample). To "
                "choose by ids or columns use filter(...)."
            )
        beyond = array[(array < -n) | (array >= n)]
        if beyond.size:
            raise ConfigError(f"There is no position {beyond[0]} among {counted(n, 'sample')}.")
        # an empty list has no whole numbers, but places in no samples either
        return np.where(array < 0, array + n, array).astype(np.int64)


class TableDataset(SampleDataset):
    """A data set whose ids, labels and columns are those of a table.

    A subclass that holds more for each sample takes its part of it in `_take`.

    Parameters
    ----------
    table
        One row per sample.
    max_length
        Residues or frames kept of each sample.
    columns
        Names of the columns and what the labels are, for checkpoints.
    """

    def __init__(
        self,
        table: Table,
        *,
        max_length: int | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {max_length}.")
        self._table = table
        self.max_length = max_length
        self._columns = dict(columns or {})

    @property
    def ids(self) -> list[str]:
        """Ids in order."""
        return listed(self._table.ids)

    @property
    def targets(self) -> Any:
        """Labels in order: float64 with NaN where there is none, or objects and None."""
        return self._table.targets

    @property
    def metadata(self) -> pd.DataFrame:
        """The other columns of the table, numbers where all present values are numbers."""
        return self._table.metadata

    @property
    def id_name(self) -> str:
        """Column of the ids."""
        return self._columns.get("id_column") or "id"

    @property
    def target_name(self) -> str:
        """Column of the labels; of several columns, their names with commas."""
        return ",".join(self.target_names)

    @property
    def target_names(self) -> list[str]:
        """Columns of the labels."""
        names = self._columns.get("target_column") or "target"
        return [names] if isinstance(names, str) else list(names)

    def row(self, index: int) -> dict[str, Any]:
        """Return the metadata of a sample as plain values, None for a blank number."""
        return row_of(self.metadata, index)

    def weighted_by(self, column: str) -> Self:
        r"""Return the same samples, of which those with a larger number in a column count more.

        The training loss of a sample is multiplied by its weight over the mean weight; metrics
        know no weights.

        Parameters
        ----------
        column
            Column of `metadata` with a number of at least 0 for every sample, such as 1 over the
            variance of a measurement.

        Raises
        ------
        DataError
            If there is no such column, or rows have no such number; all are listed.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> from molfun.data import SequenceDataset
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.csv"
        >>> _ = path.write_text("sequence,target,n\nMKV,0.5,3\nACD,1.5,1\n")
        >>> SequenceDataset.from_csv(path).weighted_by("n").input_settings["weight_column"]
        'n'
        """
        check_weights(self, column)
        weighted = copy(self)
        weighted._columns = {**self._columns, "weight_column": column}
        return weighted

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the samples at `indices`, in that order; what was read is shared, not copied."""
        places = self.positions(indices)
        part = copy(self)
        part._table = self._table.take(places)
        part._take(places)
        return part

    def _take(self, places: Int64[np.ndarray, "kept"]) -> None:
        """Keep what is held for the samples at `places` in addition to their rows."""

    def _label(self, index: int) -> Any:
        """Return the label of a sample as a plain value, None where there is none."""
        target = self._table.targets[index]
        if is_missing(target):
            return None
        return float(target) if isinstance(target, np.floating) else target

    def _cropped(self, lengths: Iterable[int] | np.ndarray) -> Int64[np.ndarray, "samples"]:
        """Return the lengths that the model sees at most."""
        given = lengths if isinstance(lengths, np.ndarray) else list(lengths)
        whole = np.array(given, dtype=np.int64)
        return whole if self.max_length is None else np.minimum(whole, self.max_length)


def settings_with_kind(data: Any) -> dict[str, Any]:
    """Return `input_settings` of a data set with the kind of data that its class names.

    A data set derived from another one need not repeat its kind there.

    Parameters
    ----------
    data
        A data set; one without settings has none.
    """
    settings = dict(getattr(data, "input_settings", {}))
    kind = getattr(data, "kind", None)
    known = DATASETS.resolve(settings.get("kind", DEFAULT_KIND))[0]
    return {**settings, "kind": kind} if kind in DATASETS and kind != known else settings
