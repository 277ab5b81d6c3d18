"""What every data set here is: samples by number, with ids, labels and columns beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from molfun.data.columns import row_of, rows_meeting
from molfun.data.tables import Table
from molfun.errors import ConfigError
from molfun.registry import DATASETS
from molfun.sample import Sample, SampleBatch
from molfun.text import counted

if TYPE_CHECKING:
    from jaxtyping import Int64


class SampleDataset(ABC):
    """A map-style data set of `Sample`, for ``DataLoader``, `DataSplitter` and `fit`.

    The same index always gives the same sample.
    """

    kind: ClassVar[str | None] = None
    """Registered name of the kind of data (`molfun.registry.DATASETS`), where it is one."""
    draws_nothing = True

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
        """The other columns, a row a sample."""

    @property
    @abstractmethod
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Residues, frames or atoms of each sample that the model sees at most."""

    @property
    @abstractmethod
    def input_settings(self) -> dict[str, Any]:
        """How inputs are prepared, so that a checkpoint can prepare new ones alike."""

    @property
    def id_name(self) -> str:
        """Column of the ids."""
        return "id"

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """One sample; an index below 0 counts from the end."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def sequences(self) -> list[tuple[str, ...]]:
        """Sequences of each sample, or words for what it is: equal ones stay together in splits."""

    @abstractmethod
    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Samples at `indices`, in that order; what was read is shared, not copied."""

    def filter(self, **conditions: Any) -> Self:
        """Samples that meet every condition on the columns of `metadata`, or on the ids.

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
        """Position from 0 for an index that may count from the end.

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

    def places(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        """Positions from 0 for indices as scikit-learn's splitters give them, or for a mask.

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
            return _marked(array, n)
        if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
            raise ConfigError(
                "subset takes positions (whole numbers) or a mask (a boolean per sample). To "
                "choose by ids or columns use filter(...)."
            )
        given = [int(i) for i in array]
        beyond = [i for i in given if not -n <= i < n]
        if beyond:
            raise ConfigError(f"There is no position {beyond[0]} among {counted(n, 'sample')}.")
        return [i % n for i in given]


def _marked(mask: np.ndarray, n: int) -> list[int]:
    """Positions at which a mask of `n` samples is True."""
    if mask.shape != (n,):
        raise ConfigError(f"The mask has {mask.size} values for {counted(n, 'sample')}.")
    return [int(i) for i in np.flatnonzero(mask)]


class TableDataset(SampleDataset):
    """A data set whose ids, labels and columns are those of a table.

    Parameters
    ----------
    table
        A row a sample.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    @property
    def ids(self) -> list[str]:
        """Ids in order."""
        return self._table.ids

    @property
    def targets(self) -> np.ndarray:
        """Labels in order: float64 with NaN where there is none, or objects and None."""
        return self._table.targets

    @property
    def metadata(self) -> pd.DataFrame:
        """The other columns of the table, numbers where all present values are numbers."""
        return self._table.metadata

    def row(self, index: int) -> dict[str, Any]:
        """Metadata of a sample as plain values, None for a blank number."""
        return row_of(self.metadata, index)
