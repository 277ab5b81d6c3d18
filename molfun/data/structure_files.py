"""Base of the data sets whose samples are files: of structures, or of features made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from molfun._shapes import Int64
from molfun.data.affinity_files import Source
from molfun.data.base import TableDataset
from molfun.data.faults import kind_of, report
from molfun.data.tables import Table
from molfun.errors import DataError
from molfun.sample import Sample
from molfun.text import listing


class StructureFiles(TableDataset):
    """Samples that are structures or pre-computed features, each a file of its own.

    Parsed structures stay in memory, so that only the first epoch reads files; call `check` before
    training to parse all of them and to see every fault at once.

    Parameters
    ----------
    table
        Ids, labels and other columns.
    source
        Where the samples come from.
    """

    kind = "structures"
    _verb, _rows_of = "read", "their rows from"

    def __init__(self, table: Table, source: Source) -> None:
        super().__init__(table, max_length=source.max_length, columns=source.columns)
        self._source = source

    def __getitem__(self, index: int) -> Sample:
        index = self.place(index)
        name = self.ids[index]
        return Sample(
            id=name,
            protein=self._source.protein(name),
            features=self._source.read_features(name),
            alignment_dir=self._source.alignments.get(name),
            target=self._label(index),
            metadata=self.row(index),
            max_length=self.max_length,
            origin=str(self._source.features.get(name, "")),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples from {self._table.path})"

    @property
    def lengths(self) -> Int64[np.ndarray, "samples"]:
        """Residues of each sample that the model sees at most; files not read yet are read."""
        return self._cropped(sum(map(len, chains)) for chains in self.sequences())

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings of the inputs; a checkpoint keeps them to prepare new ones the same way."""
        aligned = any(name in self._source.alignments for name in self.ids)
        return {
            "max_length": self.max_length,
            "crop": self._source.crop,
            "alignments": aligned,
            **self._columns,
        }

    def sequences(self) -> list[tuple[str, ...]]:
        """Return the sequence of each chain, before any crop.

        Raises
        ------
        DataError
            If files are bad; all of them are listed.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> [len(chain) for chain in AffinityDataset.synthetic(1, length=7).sequences()[0]]
        [7]
        """
        return self._collect(self._source.sequences)

    def check(self, *, workers: int = 0) -> Self:
        """Parse every file now, and keep the parsed structures for training.

        Call it before a DataLoader with workers starts: the workers then inherit the structures
        and read nothing again.

        Parameters
        ----------
        workers
            Processes that parse structures, if these are many (200 or more).

        Returns
        -------
        StructureFiles
            This data set.

        Raises
        ------
        DataError
            If files are bad; all of them are listed.
        """
        self._source.parse_all(self.ids, workers)
        self._collect(self._examined)
        self._collect(self._source.read_features, keep=False)
        bad = self._source.unreadable
        if not bad:  # where faults are collected, files that cannot be read are left out
            return self
        return self.subset([i for i, name in enumerate(self.ids) if name not in bad])

    def _examined(self, name: str) -> Any:
        """Read one sample, and raise a `DataError` if it cannot be used."""
        return self._source.protein(name)

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Return what reading changed or chose, for each structure where it did."""
        proteins = dict(zip(self.ids, self._collect(self._source.protein), strict=True))
        return {name: p.notes for name, p in proteins.items() if p is not None and p.notes}

    def notes_in_brief(self) -> str:
        """Say in one line what reading changed: each kind of note, and in how many structures.

        Examples
        --------
        >>> from molfun.data import AffinityDataset
        >>> AffinityDataset.synthetic(3).notes_in_brief()
        ''
        """
        kinds = Counter(
            kind
            for notes in self.notes().values()
            for kind in dict.fromkeys(getattr(note, "kind", "other") for note in notes)
        )
        return ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common())

    def _collect(self, read: Callable[[str], Any], *, keep: bool = True) -> list[Any]:
        """Read every sample, and report all bad ones in one error."""
        results, problems = [], {}
        for name in self.ids:
            try:
                result = read(name)
            except DataError as error:
                problems[name] = str(error)
            else:
                results.append(result if keep else None)
        if problems:
            texts = list(problems.values())
            failure = DataError(
                f"{len(texts)} of {len(self)} samples cannot be {self._verb}:\n{listing(texts)}\n"
                f"Repair these files, or remove {self._rows_of} {self._table.path}."
            )
            for name, text in problems.items():
                report(self._table.path, [text], failure, kind_of(text, self._source.file(name)))
            self._source.unreadable |= problems.keys()
        return results
