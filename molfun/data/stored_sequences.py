"""Sequences without labels that stay in their files: as many as the disk holds."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from molfun.data.arrow_files import TextFile, files_in, open_files
from molfun.data.base import TableDataset
from molfun.data.sequence_texts import NOT_NAMED, digests_of, warn_dna
from molfun.data.tables import Table
from molfun.errors import ConfigError
from molfun.sample import Sample

logger = logging.getLogger(__name__)


class StoredSequences(TableDataset):
    """Sequences of Arrow or Parquet files, read when they are asked for.

    A data set as `SequenceDataset`, without labels and other columns; its `from_arrow` and
    `from_parquet` make them. The files must stay as they are while the data set is used. In memory
    are, for each sequence, its place in a part of the data set (4 bytes), and its length once it
    was asked for (1 or 2).

    Parameters
    ----------
    files
        The opened files.
    sequence_column, id_column
        Names of the columns. Without `id_column` the rows are called seq_1, seq_2 ...
    max_length
        Residues kept of each sequence.
    opened_with
        Arguments of `open`, with which another process opens the files itself.
    """

    kind = "sequences"

    def __init__(
        self,
        files: Sequence[TextFile],
        *,
        sequence_column: str,
        id_column: str | None,
        max_length: int | None,
        opened_with: tuple[Any, ...],
    ) -> None:
        columns = {"sequence_column": sequence_column, "id_column": id_column}
        path = files[0].path if len(files) == 1 else files[0].path.parent
        nothing = Table(path=path, ids=[], targets=np.zeros(0), word="row")
        super().__init__(nothing, max_length=max_length, columns=columns)
        self._files, self._opened_with = list(files), opened_with
        sizes = [len(file.columns[sequence_column]) for file in files]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._places: np.ndarray | None = None

    @classmethod
    def open(
        cls,
        source: str | Path | Sequence[str | Path],
        suffixes: Sequence[str],
        *,
        sequence_column: str = "sequence",
        id_column: str | None = None,
        max_length: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Open files; see `SequenceDataset.from_arrow`."""
        if id_column == sequence_column:
            raise ConfigError(f"{id_column!r} cannot be the column of both ids and sequences.")
        given = {"sequence_column": sequence_column, "id_column": id_column}
        columns = {name: setting for setting, name in given.items() if name is not None}
        options = {**given, "max_length": max_length}
        files = open_files(files_in(source, suffixes), columns, cache_dir)
        again = (source, suffixes, {**options, "cache_dir": cache_dir})
        dataset = cls(files, **options, opened_with=again)  # type: ignore[arg-type]  # as given
        if id_column is None and "id" in files[0].header and sequence_column != "id":
            logger.warning(NOT_NAMED, files[0].path)
        warn_dna(files[0].path, files[0].columns[sequence_column][:200])
        return dataset

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker that is no fork maps the files itself
        return _open_again, (type(self), *self._opened_with, self._places)

    # --- samples -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._places is None else len(self._places)

    def __getitem__(self, index: int) -> Sample:
        file, row = self._found(index)
        return Sample(
            id=self._name(file, row),
            sequence=self._texts(file)[row],
            max_length=self.max_length,
            origin=f"{self._files[file].path.name}, row {row + 1}",
        )

    def _found(self, index: int) -> tuple[int, int]:
        """Return the number of the file of a sample, and its row there."""
        row = self.place(index)
        if self._places is not None:
            row = int(self._places[row])
        file = bisect_right(self._starts, row) - 1
        return file, row - self._starts[file]

    def _texts(self, file: int) -> Any:
        return self._files[file].columns[self._columns["sequence_column"]]

    def _name(self, file: int, row: int) -> str:
        column = self._columns["id_column"]
        if column is None:
            return f"seq_{self._starts[file] + row + 1}"
        return self._files[file].columns[column][row]

    @property
    def ids(self) -> Any:
        """Ids in order, each made when it is asked for."""
        return _Lazy(len(self), lambda index: self._name(*self._found(index)))

    @property
    def targets(self) -> np.ndarray:
        """NaN for each: there are no labels."""
        return np.broadcast_to(np.float64("nan"), len(self))

    @property
    def metadata(self) -> pd.DataFrame:
        """A frame without columns: other columns of the files are not read."""
        return pd.DataFrame(index=range(len(self)))

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings of the inputs, as those of `SequenceDataset`."""
        return {"kind": self.kind, "max_length": self.max_length, **self._columns}

    def __repr__(self) -> str:
        return f"StoredSequences({len(self)} sequences from {self._table.path})"

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the samples at `indices`, in that order; the files are shared."""
        places = self.positions(indices)
        part = copy(self)
        rows = places if self._places is None else self._places[places]
        part._places = rows.astype(np.min_scalar_type(max(self._starts[-1] - 1, 0)), copy=False)
        return part

    # --- all of them -----------------------------------------------------------------------------

    @property
    def lengths(self) -> np.ndarray:
        """Residues of each sequence that the model sees at most."""
        parts = [self._texts(file).lengths for file in range(len(self._files))]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self._places is not None:
            whole = whole[self._places]
        return self._cropped(whole)

    def has_only(self, letters: bytes) -> bool:
        """Return True if no sequence of the files has other letters; all of them are read once."""
        return all(self._texts(file).has_only(letters) for file in range(len(self._files)))

    def sequences(self) -> Any:
        """Return the sequence of each sample, each read when it is asked for."""
        return _Lazy(len(self), lambda index: (self._sequence(index),))

    def _sequence(self, index: int) -> str:
        file, row = self._found(index)
        return str(self._texts(file)[row])

    def digests(self) -> list[str]:
        """Return a short sha256 of each sequence as the model sees it."""
        return digests_of(map(self._sequence, range(len(self))), self.max_length)

    def input_codes(self) -> np.ndarray:
        """Return a number of 32 bits for each sample, equal for equal sequences in either case."""
        parts = [self._texts(file).codes() for file in range(len(self._files))]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole if self._places is None else whole[self._places]

    def fingerprint(self) -> str:
        """Return the sha256 of all ids and sequences in order, to tell changed files."""
        found = hashlib.sha256()
        for file in self._files:
            for texts in file.columns.values():
                found.update(texts.digest.encode())
        if self._places is not None:
            found.update(self._places.astype("<i8").tobytes())
        return found.hexdigest()


class _Lazy(Sequence[Any]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, n: int, make: Any) -> None:
        self._n, self._make = n, make

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._n))]
        if not -self._n <= index < self._n:
            raise IndexError(index)
        return self._make(index % self._n)

    def __iter__(self) -> Iterator[Any]:
        return map(self._make, range(self._n))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | _Lazy) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list


def _open_again(
    cls: type[StoredSequences], source: Any, suffixes: Any, options: Any, places: Any
) -> StoredSequences:
    dataset = cls.open(source, suffixes, **options)
    dataset._places = places
    return dataset
