"""Read protein sequences with one label each, or with one label per residue."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np

from molfun._paths import as_path
from molfun.data.base import TableDataset
from molfun.data.cells import (
    Cells,
    Required,
    noted,
    read_cells,
    repeated_ids,
)
from molfun.data.chains import chain_columns, first_name, joined_chains, residues_seen
from molfun.data.fasta import read_fasta
from molfun.data.faults import report
from molfun.data.labels import (
    LabelForm,
    Level,
    label_array,
    read_targets,
)
from molfun.data.representations import (
    Representations,
    as_representations,
    read_representations,
)
from molfun.data.residue_labels import Residues, length_problem
from molfun.data.sequence_texts import NOT_NAMED, digests_of, warn_dna
from molfun.data.tables import Table
from molfun.data.texts import ArrowTexts, LazyTexts, listed
from molfun.data.variant_tables import read_variant_table
from molfun.errors import ConfigError, DataError, TableError
from molfun.sample import CHAIN_SEPARATOR, Sample, is_missing
from molfun.strict import check_choice
from molfun.text import counted, listing

if TYPE_CHECKING:
    from molfun.data.stored_sequences import StoredSequences

logger = logging.getLogger(__name__)


class SequenceDataset(TableDataset):
    """Sequences with labels, as a map-style data set.

    Make one with `from_csv`, `from_fasta` or `from_list`, or of files that do not fit into memory
    with `from_arrow` or `from_parquet`. Works with
    ``torch.utils.data.DataLoader`` and its workers, and with `DataSplitter`.

    Parameters
    ----------
    table
        Ids, labels and other columns.
    sequences
        One-letter sequences in the same order.
    max_length
        Residues kept of each sequence, from the start.
    columns
        Names of the columns, and kind and level of the labels, as given to `from_csv`.
    representations
        Outputs of a backbone, see `with_representations`.
    structure_letters
        Letters of the structure of each sequence, for models that read them; blank where there
        are none.
    """

    kind = "sequences"

    def __init__(
        self,
        table: Table,
        sequences: Sequence[str],
        *,
        max_length: int | None = None,
        columns: Mapping[str, Any] | None = None,
        representations: Representations | None = None,
        structure_letters: Sequence[str] | None = None,
    ) -> None:
        super().__init__(table, max_length=max_length, columns=columns)
        self._structure_letters = structure_letters
        self._sequences = sequences if isinstance(sequences, ArrowTexts) else list(sequences)
        self._representations = representations

    @property
    def sequence_names(self) -> list[str]:
        """Columns of the sequences, one per chain where a table has several."""
        names = self._columns.get("sequence_column", "sequence")
        return [names] if isinstance(names, str) else list(names)

    @classmethod
    def from_csv(
        cls,
        csv: str | Path,
        *,
        sequence_column: str | Sequence[str] = "sequence",
        target_column: str | Sequence[str] = "target",
        id_column: str | None = None,
        labels: LabelForm = "number",
        level: Level = "sequence",
        mask_column: str | None = None,
        structure_column: str | None = None,
        max_length: int | None = None,
        require_target: Required = True,
        filters: Mapping[str, Any] | None = None,
    ) -> SequenceDataset:
        r"""Read a CSV, TSV or Parquet table with a sequence and a label in each row.

        Parameters
        ----------
        csv
            The table; columns that are not named here are kept as metadata.
        sequence_column, target_column, id_column
            Names of the columns. Without `id_column` the rows are called seq_1, seq_2 ... A sample
            of several chains has them in one column, ``A:B``, or in several, one chain in each.
            Several columns of numbers are one label, for the task ``multitarget``; blank cells
            are numbers that are missing.
        labels
            ``"number"``, ``"class"`` for the name of a class, or ``"classes"`` for any number of
            names with ``;`` between them (blank for none of them).
        level
            ``"residue"`` for a label on each residue: as many letters as the sequence, or as many
            numbers with blanks, commas or semicolons between them; ``?`` (or nan among numbers)
            where there is none.
        mask_column
            For residues: a text of 0 and 1 as long as the sequence; labels at 0 are left out.
            One that is shorter lost its leading zeros to a program that took it for a number (so
            it is in the secondary-structure set of FLIP); they are put back, with a warning.
        structure_column
            Letters of structures (Foldseek's 3Di alphabet, ``#`` for unknown), one per residue, for
            models that read them beside the sequence; blank where there are none.
        max_length
            Residues kept of each sequence.
        require_target
            False for prediction: labels may be absent. ``"column"`` for one of several labels: its
            column must be there, and its cells may be blank.
        filters
            Conditions as in `filter`.

        Raises
        ------
        TableError
            If a column is missing or any row is bad; all of them are listed.
        ConfigError
            If `labels` or `level` is unknown, or there is a mask without labels of residues.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.csv"
        >>> _ = path.write_text("sequence,target\nMKV,0.5\nACDEF,1.5\n")
        >>> data = SequenceDataset.from_csv(path)
        >>> data.ids, data.targets.tolist(), data[1].sequence
        (['seq_1', 'seq_2'], [0.5, 1.5], 'ACDEF')
        """
        _check_choices(labels, level, mask_column)
        cells = read_cells(as_path(csv), first_name(sequence_column))
        names = [target_column] if isinstance(target_column, str) else list(target_column)
        label = dict.fromkeys(names, "target_column") if require_target else {}
        others = _named(
            id_column=id_column, mask_column=mask_column, structure_column=structure_column
        )
        chains = chain_columns(sequence_column, cells.header)
        cells.require({**dict.fromkeys(chains, "sequence_column"), **others, **label})
        sequences = joined_chains(cells, chains, level)
        residues = Residues(cells, sequences, mask_column)
        fit = residues.fit if level == "residue" else None
        targets = read_targets(cells, names, labels, level, required=require_target, fit=fit)
        cells.raise_problems(goes_on=True)
        residues.warn()
        used = {*chains, *names, *others}
        if id_column is None:
            _warn_of_ids(cells, used)
        ids = _ids(cells, id_column)
        table = Table.of(cells, ids, targets, used=used)
        columns = {
            "sequence_column": chains[0] if len(chains) == 1 else list(chains),
            "target_column": names[0] if len(names) == 1 else names,
            "id_column": id_column,
            "mask_column": mask_column,
            "labels": labels,
            "level": level,
        } | noted(require_target)
        letters = None
        if structure_column is not None:
            columns["structure_column"] = structure_column
            letters = cells.column(structure_column)
        dataset = cls(
            table, sequences, max_length=max_length, columns=columns, structure_letters=letters
        )
        dataset = _without_bad(dataset, cells)
        dataset._warn_dna()
        return dataset.filter(**filters) if filters else dataset

    @classmethod
    def from_variants(cls, csv: str | Path, wild_type: str, **columns: Any) -> SequenceDataset:
        r"""Read a table of mutations of one protein.

        Parameters
        ----------
        csv
            The table; columns that are not named here are kept as metadata.
        wild_type
            Letters of the protein, or a FASTA file with it alone.
        **columns
            ``mutant_column`` ("mutant"), with names as `molfun.data.variants.parse_variant` reads
            them; ``target_column`` ("target"); ``id_column``, by default the names of the variants,
            or seq_1, seq_2 ... if some occur twice; ``offset`` (0), the number of the first residue
            minus 1; ``labels``, ``max_length`` and ``require_target`` as in `from_csv`.

        Raises
        ------
        DataError
            If the wild type cannot be read.
        TableError
            If a column is missing; if a variant cannot be read or does not fit the wild type, or a
            label or an id is bad: all of them are listed.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "variants.csv"
        >>> _ = path.write_text("mutant,target\nK2E,0.5\nM1A:V3G,1.5\n")
        >>> data = SequenceDataset.from_variants(path, "MKV")
        >>> data.ids, data[1].sequence
        (['K2E', 'M1A:V3G'], 'AKG')
        """
        return read_variant_table(cls, csv, wild_type, **columns)

    @property
    def wild_type(self) -> str | None:
        """Sequence of which the samples are variants, if it is known."""
        return self._columns.get("wild_type")

    @classmethod
    def from_arrow(
        cls,
        files: str | Path | Sequence[str | Path],
        *,
        sequence_column: str = "sequence",
        id_column: str | None = None,
        max_length: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> StoredSequences:
        """Open sequences without labels in Arrow files, which are mapped and not read.

        For more sequences than fit into memory: ten million open in seconds. Blank cells, repeated
        ids and damaged tables of contents are found when files are opened, other letters than the
        model's when training begins; both without holding the sequences.

        Parameters
        ----------
        files
            A file (``.arrow``, ``.feather`` or ``.ipc``), several, or a folder of them, such as the
            one that ``save_to_disk`` of ``datasets`` writes.
        sequence_column, id_column
            Names of the columns. Without `id_column` the rows are called seq_1, seq_2 ...
        max_length
            Residues kept of each sequence.
        cache_dir
            Folder for copies of what cannot be mapped: compressed files, and texts coded as numbers
            of words. By default ``.molfun`` beside each file.

        Raises
        ------
        TableError
            If a file is missing or damaged, a column is missing or holds no texts, cells are blank
            (all are counted), or ids are repeated.

        Examples
        --------
        >>> import pyarrow, pyarrow.feather, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.arrow"
        >>> table = pyarrow.table({"sequence": ["MKV", "ACDEF"]})
        >>> pyarrow.feather.write_feather(table, path, compression="uncompressed")
        >>> data = SequenceDataset.from_arrow(path)
        >>> len(data), data[1].id, data[1].sequence
        (2, 'seq_2', 'ACDEF')
        """
        from molfun.data.arrow_files import ARROW
        from molfun.data.stored_sequences import StoredSequences

        return StoredSequences.open(
            files,
            ARROW,
            sequence_column=sequence_column,
            id_column=id_column,
            max_length=max_length,
            cache_dir=cache_dir,
        )

    @classmethod
    def from_parquet(
        cls,
        files: str | Path | Sequence[str | Path],
        *,
        sequence_column: str = "sequence",
        id_column: str | None = None,
        max_length: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> StoredSequences:
        """Open sequences without labels in Parquet files; `from_csv` reads those with labels.

        A Parquet file is unpacked by groups of rows, so that a shuffled order would unpack one
        group per sequence. Files of more than 64 MB are therefore copied to Arrow files once, which
        are mapped as by `from_arrow`; processes that ask for the same copy wait for one of them.

        Parameters
        ----------
        files
            A file (``.parquet`` or ``.pq``), several, or a folder of them.
        sequence_column, id_column, max_length
            As in `from_arrow`.
        cache_dir
            Folder for the copies; by default ``.molfun`` beside each file.

        Raises
        ------
        TableError
            As in `from_arrow`.
        RunError
            If a copy cannot be written.

        Examples
        --------
        >>> import pyarrow, pyarrow.parquet, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.parquet"
        >>> pyarrow.parquet.write_table(pyarrow.table({"sequence": ["MKV", "AC"]}), path)
        >>> SequenceDataset.from_parquet(path)[0].sequence
        'MKV'
        """
        from molfun.data.arrow_files import PARQUET
        from molfun.data.stored_sequences import StoredSequences

        return StoredSequences.open(
            files,
            PARQUET,
            sequence_column=sequence_column,
            id_column=id_column,
            max_length=max_length,
            cache_dir=cache_dir,
        )

    @classmethod
    def from_fasta(
        cls,
        fasta: str | Path,
        *,
        targets: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        level: Level = "sequence",
    ) -> SequenceDataset:
        r"""Read a FASTA file (also ``.gz``); the id is the first word of a header.

        Parameters
        ----------
        fasta
            The file.
        targets
            Labels by id, where there are any; records without one have none.
        max_length
            Residues kept of each sequence.
        level
            As in `from_list`.

        Raises
        ------
        DataError
            If the file is missing or no FASTA file, or an id comes twice with two sequences.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.fasta"
        >>> _ = path.write_text(">a first\nMKV\nAC\n>b\nGG\n")
        >>> data = SequenceDataset.from_fasta(path, targets={"b": 2.0})
        >>> data.ids, data[0].sequence, data[1].target
        (['a', 'b'], 'MKVAC', 2.0)
        """
        path = as_path(fasta)
        records: dict[str, str] = {}
        repeated, clashes = [], []
        for name, sequence in read_fasta(path):
            known = records.setdefault(name, sequence)
            if known != sequence:
                clashes.append(name)
            elif known is not sequence:
                repeated.append(name)
        if clashes:
            error = DataError(
                f"{path}: {counted(len(clashes), 'id')} with two different sequences:\n"
                f"{listing(clashes)}\nThe id is the first word after '>'; make them different."
            )
            report(path, clashes, error, "one id with two different sequences")
        if repeated:
            logger.warning(
                "%s repeats %s; each is kept once.", path, counted(len(repeated), "record")
            )
        strangers = sorted(set(targets or {}) - set(records))
        if strangers:
            logger.warning(
                "%s has no record for %s:\n%s",
                path,
                counted(len(strangers), "label"),
                listing(strangers, 5),
            )
        items = [(s, (targets or {}).get(n)) for n, s in records.items()]
        return cls.from_list(
            items, ids=list(records), max_length=max_length, level=level, path=path
        )

    @classmethod
    def from_list(
        cls,
        items: Iterable[str | tuple[str, Any]],
        *,
        ids: Sequence[str] | None = None,
        max_length: int | None = None,
        level: Level = "sequence",
        path: str | Path = "list",
    ) -> SequenceDataset:
        """Make a data set of sequences, or of (sequence, label) pairs.

        Parameters
        ----------
        items
            The sequences; labels are numbers, class names, or one per residue, as the task takes
            them.
        ids
            Names; by default seq_1, seq_2 ...
        max_length
            Residues kept of each sequence.
        level
            ``"residue"`` checks that there is a label for each residue of a sequence (before it
            is cut to `max_length`); ``"sequence"`` takes labels as they are.
        path
            Where they come from, for messages.

        Raises
        ------
        ConfigError
            If `ids` do not fit the items, or `level` is unknown.
        DataError
            If a sample has more or fewer labels than residues.

        Examples
        --------
        >>> SequenceDataset.from_list([("MKV", 1.0), ("AC", 2.0)]).targets.tolist()
        [1.0, 2.0]
        """
        check_choice("level", level, get_args(Level))
        pairs = [(item, None) if isinstance(item, str) else item for item in items]
        names = _numbered(len(pairs)) if ids is None else list(ids)
        if len(names) != len(pairs):
            raise ConfigError(f"{len(names)} ids for {len(pairs)} sequences.")
        if level == "residue":
            _check_lengths(names, pairs)
        table = Table(
            path=Path(path),
            ids=names,
            targets=label_array([target for _, target in pairs]),
            word="record" if path != "list" else "",
        )
        dataset = cls(table, [sequence for sequence, _ in pairs], max_length=max_length)
        dataset._warn_dna()
        return dataset

    def __getitem__(self, index: int) -> Sample:
        index = self.place(index)
        return Sample(
            id=self.ids[index],
            sequence=self._sequences[index],
            structure_letters=self._letters(index),
            features=self._features(index),
            target=self._label(index),
            metadata=self.row(index),
            max_length=self.max_length,
            origin=self._table.origin(index),
        )

    def _letters(self, index: int) -> str | None:
        letters = None if self._structure_letters is None else self._structure_letters[index]
        return letters or None

    def _warn_dna(self) -> None:
        sequences = self._sequences
        first = sequences.first(200) if isinstance(sequences, ArrowTexts) else sequences[:200]
        warn_dna(self._table.path, first)

    def _features(self, index: int) -> dict[str, np.ndarray] | None:
        if self._representations is None:
            return None
        return {self._representations.name: self._representations.arrays[index]}

    def __repr__(self) -> str:
        return f"SequenceDataset({len(self)} sequences from {self._table.path})"

    @property
    def lengths(self) -> np.ndarray:
        """Residues of each sequence that the model sees at most."""
        most = self.max_length
        return np.array([residues_seen(text, most) for text in self._sequences], np.int64)

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings of the inputs; a checkpoint keeps them to prepare new ones the same way."""
        settings = {"kind": "sequences", "max_length": self.max_length, **self._columns}
        if self._representations is not None:
            settings["representations"] = self._representations.model
        return settings

    def has_only(self, letters: bytes) -> bool:
        """Return True if it is quickly seen that no sequence is empty or has other letters."""
        return isinstance(self._sequences, ArrowTexts) and self._sequences.has_only(letters)

    def digests(self) -> list[str]:
        """Return a short sha256 of each sequence as the model sees it."""
        return digests_of(self._sequences, self.max_length)

    def sequences(self) -> list[tuple[str, ...]]:
        """Return the sequences of the chains of each sample, as the splits take them."""
        return [tuple(sequence.split(CHAIN_SEPARATOR)) for sequence in self._sequences]

    def _take(self, places: np.ndarray) -> None:
        sequences = listed(self._sequences)
        self._sequences = [sequences[i] for i in places]
        if self._structure_letters is not None:
            self._structure_letters = [self._structure_letters[i] for i in places]
        if self._representations is not None:
            self._representations = self._representations.take(places)

    def with_representations(self, source: str | Path | np.ndarray | Sequence[np.ndarray]) -> Self:
        """Attach what a backbone gave for the samples, so that it need not run again.

        Heads then train in seconds wherever the representations came from; what trains has to be
        the head alone.

        Parameters
        ----------
        source
            ``.npz`` file of ``molfun embed``, in shards or not (samples are found by their ids and
            compared by their sequences), or arrays in the order of the samples: (samples,
            channels) means, or one (length, channels) each.

        Raises
        ------
        DataError
            If the file cannot be read, samples are missing in it, it was made from other
            sequences, or the numbers differ.

        Examples
        --------
        >>> data = SequenceDataset.from_list([("MKV", 1.0), ("AC", 2.0)])
        >>> data.with_representations(np.zeros((2, 320)))[1].features["mean"].shape
        (320,)
        """
        found = (
            read_representations(as_path(source), self.ids, self.digests())
            if isinstance(source, str | Path) or not isinstance(source, Iterable)
            else as_representations(source)
        )
        arrays = found.arrays
        if len(arrays) != len(self):
            raise DataError(f"{len(arrays)} representations for {len(self)} samples.")
        lengths = self.lengths
        wrong = [
            f"{name}: {len(array)} vectors for {counted(int(n), 'residue')}"
            for name, array, n in zip(self.ids, arrays, lengths, strict=True)
            if array.ndim == 2 and len(array) != n
        ]
        if wrong:
            raise DataError(f"Representations do not fit the sequences:\n{listing(wrong)}")
        whole = copy(self)
        whole._representations = found
        return whole


# Rows of a table


def _check_choices(labels: str, level: str, mask_column: str | None) -> None:
    check_choice("labels", labels, get_args(LabelForm))
    check_choice("level", level, get_args(Level))
    if mask_column and level != "residue":
        raise ConfigError(
            f"mask_column={mask_column!r} is for labels of residues, got level={level!r}. Set "
            f"level='residue', or leave mask_column out."
        )


def _without_bad(dataset: SequenceDataset, cells: Cells) -> SequenceDataset:
    """Leave out rows with a fault, of which there are some where faults are collected."""
    return dataset.subset(cells.good()) if cells.bad else dataset


def _named(**columns: str | None) -> dict[str, str]:
    """Return the columns that have a name, each with its setting."""
    return {column: setting for setting, column in columns.items() if column}


def _warn_of_ids(cells: Cells, used: Container[str]) -> None:
    if "id" in cells.header and "id" not in used:
        logger.warning(NOT_NAMED, cells.path)


def _ids(cells: Cells, column: str | None) -> Sequence[str]:
    """Return the ids of all rows; number them without a column."""
    if column is None:
        return _numbered(len(cells))
    ids = cells.column(column)
    blank = [row for row, name in enumerate(ids) if not name]
    problems = [f"{cells.where(row)}: the id is blank" for row in blank]
    problems += repeated_ids(ids)
    if problems:
        error = TableError(
            f"{cells.path} has {counted(len(problems), 'bad id')} in column {column!r}:\n"
            f"{listing(problems)}\nLeave id_column out to number the rows."
        )
        report(cells.path, problems, error)
        first = {name: row for row, name in reversed(list(enumerate(ids)))}
        cells.bad |= {*blank, *(row for row, name in enumerate(ids) if first[name] != row)}
    return ids


def _numbered(n: int) -> LazyTexts:
    return LazyTexts(n, lambda: [f"seq_{i}" for i in range(1, n + 1)])


def _check_lengths(ids: Sequence[str], pairs: Sequence[tuple[str, Any]]) -> None:
    problems = [
        f"{name} {problem}"
        for name, (sequence, target) in zip(ids, pairs, strict=True)
        if not is_missing(target) and (problem := _residues_problem(target, sequence))
    ]
    if problems:
        raise DataError(
            f"{counted(len(problems), 'sample')} whose labels do not fit the sequence:\n"
            f"{listing(problems)}\nGive a label for each residue, None where there is none."
        )


def _residues_problem(target: Any, sequence: str) -> str | None:
    try:
        return length_problem(target, sequence)
    except TypeError:
        return f"has the label {target!r} for the whole sequence"
