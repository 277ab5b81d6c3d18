"""Proteins and complexes with one measured number each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from molfun._paths import as_path
from molfun._shapes import Int64
from molfun.data.affinity_files import Parsed, Source, drop_missing, locate
from molfun.data.base import TableDataset
from molfun.data.cells import Required, noted
from molfun.data.columns import rows_meeting
from molfun.data.faults import kind_of, report
from molfun.data.tables import Table, read_table
from molfun.errors import ConfigError, DataError
from molfun.protein import CropPolicy, Protein
from molfun.sample import Sample
from molfun.text import listing

logger = logging.getLogger(__name__)


_HYDROPATHY = dict(
    zip(
        "ARNDCQEGHILKMFPSTWYV",
        (1.8, -4.5, -3.5, -3.5, 2.5, -3.5, -3.5, -0.4, -3.2, 4.5,
         3.8, -3.9, 1.9, 2.8, -1.6, -0.8, -0.7, -0.9, -1.3, 4.2),
        strict=True,
    )
)  # fmt: skip
"""Kyte and Doolittle, J. Mol. Biol. 157, 105 (1982), table 2."""


class AffinityDataset(TableDataset):
    """Structures (or pre-computed features) with an affinity each, as a map-style data set.

    Make one with `from_csv` or `synthetic`. Parsed structures stay in memory, so that only the
    first epoch reads files; call `check` before training to parse all of them and to see every
    fault at once. Works with ``torch.utils.data.DataLoader`` and its workers.

    Parameters
    ----------
    table
        Ids, targets and other columns.
    source
        Where the samples come from.
    """

    kind = "structures"

    def __init__(self, table: Table, source: Source) -> None:
        super().__init__(table, max_length=source.max_length, columns=source.columns)
        self._source = source

    @classmethod
    def from_csv(
        cls,
        csv: str | Path,
        pdb_dir: str | Path | None = None,
        *,
        features_dir: str | Path | None = None,
        alignments_dir: str | Path | None = None,
        max_length: int | None = None,
        crop: CropPolicy = "auto",
        skip_missing: bool = False,
        id_column: str = "pdb_id",
        target_column: str = "affinity",
        require_target: Required = True,
        filters: Mapping[str, Any] | None = None,
    ) -> AffinityDataset:
        """Read a table and find the files of its rows.

        Parameters
        ----------
        csv
            Table with the columns `id_column` and `target_column`; others are kept as metadata.
        pdb_dir
            Folder of structures named after the ids (``1a4w.cif``, ``.pdb``, ``.gz`` ...).
        features_dir
            Folder of pre-computed features (``1a4w.pkl``, ``.npz``, ``.safetensors``). An id
            with a file here does not need a structure.
        alignments_dir
            Folder with a folder of ``.a3m`` or ``.sto`` files (or with ``.gz``) for each id.
            Without it, a folder ``alignments`` next to `pdb_dir` is used if there is one.
        max_length
            Residues kept of each structure (`molfun.protein.Protein.crop`). Lower it when memory
            runs out. Pre-computed features are cropped by the backbone.
        crop
            Which residues are kept.
        skip_missing
            Leave out rows without a file, with a warning, where an error would be raised.
        id_column, target_column
            Names of the columns.
        require_target
            False for prediction: labels may be absent; ``"column"``: as `read_table` has it.
        filters
            Conditions as in `filter`, applied before files are looked for.

        Raises
        ------
        TableError
            If the table has bad rows or columns.
        DataError
            If files are missing; all of them are listed.
        ConfigError
            If neither folder is given, or a setting is not allowed.
        """
        if pdb_dir is None and features_dir is None:
            raise ConfigError("Give pdb_dir (structures) or features_dir (features), or both.")
        Protein.from_sequence("A").crop(max_length, crop)  # refuses wrong settings now
        named = {"id_column": id_column, "target_column": target_column}
        table = read_table(csv, **named, require_target=require_target)
        if filters:
            table = table.take(rows_meeting(filters, table.metadata, f"{table.path}"))
        source = locate(table.ids, pdb_dir, features_dir, alignments_dir)
        source.max_length, source.crop = max_length, crop
        source.columns = named | noted(require_target)
        folders = " and ".join(str(as_path(d)) for d in (pdb_dir, features_dir) if d)
        return cls(drop_missing(table, source, folders, skip_missing=skip_missing), source)

    @classmethod
    def synthetic(cls, n: int = 8, length: int = 32, seed: int = 0) -> AffinityDataset:
        """Make random sequences whose target follows from their composition, for demos and tests.

        The target is ``7 + 2/3 * (mean hydropathy)`` (Kyte-Doolittle) plus noise below 0.05, so
        it lies in the range of a pK and can be learned from the sequence. The same arguments
        give the same data on every machine. There are no coordinates.

        Parameters
        ----------
        n
            Number of samples.
        length
            Residues in each.
        seed
            Another seed gives other sequences.

        Raises
        ------
        ConfigError
            If `n` or `length` is below 1.

        Examples
        --------
        >>> dataset = AffinityDataset.synthetic(3, length=12)
        >>> dataset.ids, len(dataset[0].protein)
        (['demo_000', 'demo_001', 'demo_002'], 12)
        """
        if n < 1 or length < 1:
            raise ConfigError(f"n and length must be at least 1, got {n} and {length}.")
        # the raw stream of PCG64 never changes between numpy versions; distributions may
        stream = np.random.PCG64(seed)
        samples = [_synthetic_sample(stream, length) for _ in range(n)]
        ids = [f"demo_{i:03d}" for i in range(n)]
        table = Table(
            path=Path("synthetic"),
            ids=ids,
            targets=np.array([target for _, target in samples]),
        )
        source = Source()
        for name, (sequence, _) in zip(ids, samples, strict=True):
            protein = Protein.from_sequence(sequence, name=name)
            source.parsed[name] = Parsed(protein=protein, chains=(sequence,))
        return cls(table, source)

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
        return f"AffinityDataset({len(self)} samples from {self._table.path})"

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
        >>> [len(chain) for chain in AffinityDataset.synthetic(1, length=7).sequences()[0]]
        [7]
        """
        return self._collect(self._source.sequences)

    def check(self, *, workers: int = 0) -> AffinityDataset:
        """Parse every file now, and keep the parsed structures for training.

        Call it before a DataLoader with workers starts: the workers then inherit the structures
        and read nothing again.

        Parameters
        ----------
        workers
            Processes that parse structures, if these are many (200 or more).

        Returns
        -------
        AffinityDataset
            This data set.

        Raises
        ------
        DataError
            If files are bad; all of them are listed.
        """
        self._source.parse_all(self.ids, workers)
        self._collect(self._source.protein)
        self._collect(self._source.read_features, keep=False)
        bad = self._source.unreadable
        if not bad:  # where faults are collected, files that cannot be read are left out
            return self
        return self.subset([i for i, name in enumerate(self.ids) if name not in bad])

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Return what reading changed or chose, for each structure where it did."""
        proteins = dict(zip(self.ids, self._collect(self._source.protein), strict=True))
        return {name: p.notes for name, p in proteins.items() if p is not None and p.notes}

    def notes_in_brief(self) -> str:
        """Say in one line what reading changed: each kind of note, and in how many structures.

        Examples
        --------
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
                f"{len(texts)} of {len(self)} samples cannot be read:\n{listing(texts)}\n"
                f"Repair these files, or remove their rows from {self._table.path}."
            )
            for name, text in problems.items():
                report(self._table.path, [text], failure, kind_of(text, self._source.file(name)))
            self._source.unreadable |= problems.keys()
        return results


# Synthetic samples


def _synthetic_sample(stream: np.random.PCG64, length: int) -> tuple[str, float]:
    """Make a sequence between polar and hydrophobic, and its target."""
    ranked = sorted(_HYDROPATHY, key=lambda letter: (_HYDROPATHY[letter], letter))
    window = 10
    start = int(stream.random_raw()) % (len(ranked) - window + 1)
    draws = stream.random_raw(length)
    sequence = "".join(ranked[start + int(draw) % window] for draw in draws)
    hydropathy = sum(_HYDROPATHY[letter] for letter in sequence) / length
    noise = 0.05 * (int(stream.random_raw()) % 2001 - 1000) / 1000
    return sequence, round(7 + hydropathy * 2 / 3 + noise, 4)
