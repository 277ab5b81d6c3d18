"""Structures that are inputs and labels at once: a folder, or a table of ids or paths."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from molfun._paths import as_path
from molfun.data.affinity_files import Source, drop_missing, locate
from molfun.data.cells import Cells, read_cells
from molfun.data.columns import numeric
from molfun.data.folders import FolderIndex
from molfun.data.structure_files import StructureFiles, check_resolutions
from molfun.data.structure_labels import label_fault, sequence_fault, structure_label
from molfun.data.structures import STRUCTURE_SUFFIXES, name_of_file
from molfun.data.tables import Table, read_table
from molfun.errors import ConfigError, DataError, StructureError, TableError
from molfun.protein import CropPolicy, Protein
from molfun.text import counted, few

logger = logging.getLogger(__name__)

PATHS, SEQUENCES, RESOLUTION, RELEASED, METHOD = (
    *("path", "sequence", "resolution", "released", "method"),
)
"""Columns of a table that are read, and those that the files add."""
LONG = 512
"""Residues above which training on a whole structure is unusual; AlphaFold's largest crop has 384
(AlphaFold 2, supplement, table 4)."""


class StructureDataset(StructureFiles):
    """Structures from which a model learns to predict their coordinates.

    The label of a sample is its own `molfun.protein.Protein`, in the crop that the model sees.
    `metadata` has the columns ``resolution`` (angstrom), ``released`` (date of the first release)
    and ``method``, blank where a file does not say. Make one with `from_folder`, or of a data set
    with other labels with `AffinityDataset.structures`.

    Parameters
    ----------
    table
        Ids and other columns.
    source
        Where the samples come from.
    """

    labels_from_structure = True

    @classmethod
    def from_folder(
        cls,
        data: str | Path,
        *,
        pdb_dir: str | Path | None = None,
        alignments_dir: str | Path | None = None,
        max_length: int | None = None,
        crop: CropPolicy = "auto",
        max_resolution: float | None = None,
        released_before: str | date | None = None,
        released_after: str | date | None = None,
        resolution: float | None = None,
        skip_missing: bool = False,
        id_column: str = "pdb_id",
        require_labels: bool = True,
        workers: int = 0,
    ) -> Self:
        r"""Read all structures of a folder, or those that a table names.

        Parameters
        ----------
        data
            Folder whose ``.cif``, ``.pdb``, ``.ent`` and ``.mmcif`` files (also with ``.gz``) are
            the samples; or a table with a column of ids, for files in `pdb_dir`, or with a column
            ``path`` (as seen from the table). A column ``sequence`` has to agree with the
            structures, and a column ``resolution`` stands in where a file states none.
        pdb_dir
            Folder of the structures that a table names by id.
        alignments_dir
            Folder with a folder of ``.a3m`` or ``.sto`` files for each id; by default
            ``alignments`` next to the structures, if there is one.
        max_length
            Residues kept of each structure. `random_crops` draws another part of it in each epoch.
        crop
            Which residues are kept (`molfun.protein.Protein.crop`).
        max_resolution
            Largest resolution in angstrom. Structures without one are left out, which is said; give
            `resolution` to keep them.
        released_before, released_after
            Dates as ``"2018-05-01"``: kept is what was released earlier than the first, and on the
            second or later. Structures without a date are left out, which is said.
        resolution
            Resolution in angstrom that structures without one are taken to have. Losses of
            confidence count only where it is good.
        skip_missing
            Leave out rows without a file, with a warning, where an error would be raised.
        id_column
            Column of ids in a table.
        require_labels
            False for prediction: structures with nothing to learn from are kept, without a label.
        workers
            Processes that parse structures, if these are many (200 or more).

        Raises
        ------
        DataError
            If files are missing, cannot be read, have nothing to learn from, or disagree with the
            table; all of them are listed. Also if the filters leave no structure.
        ConfigError
            If a setting is not allowed.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> from molfun.data import StructureDataset
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> atoms = [("N", 0.0, 1.4, 0.0), ("CA", 0.0, 0.0, 0.0), ("C", 1.5, 0.0, 0.0)]
        >>> lines = [
        ...     f"ATOM      1  {name:<3} GLY A{i:4}    {x + 4 * i:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
        ...     for i in range(3) for name, x, y, z in atoms
        ... ]
        >>> _ = (folder / "1abc.pdb").write_text("\n".join(lines))
        >>> sample = StructureDataset.from_folder(folder)[0]
        >>> sample.id, sample.target is sample.protein, sample.metadata["resolution"]
        ('1abc', True, None)
        """
        Protein.from_sequence("A").crop(max_length, crop)  # refuses wrong settings now
        check_resolutions(max_resolution=max_resolution, resolution=resolution)
        table, source, folders = _found(as_path(data), pdb_dir, alignments_dir, id_column)
        source.max_length, source.crop, source.keep_whole = max_length, crop, max_length is not None
        source.with_unobserved = True
        source.columns = {"id_column": id_column}
        table = drop_missing(table, source, folders, skip_missing=skip_missing)
        dataset = cls(table, source)
        dataset.require_labels = require_labels
        dataset = dataset.check(workers=workers)._described()._assuming(resolution)
        kept = dataset.filter_experiments(
            max_resolution=max_resolution,
            released_before=released_before,
            released_after=released_after,
        )
        kept._warn_of_long()
        return kept

    @classmethod
    def of_source(cls, table: Table, source: Source, *, resolution: float | None = None) -> Self:
        """Make one of samples of another data set; see `AffinityDataset.structures`."""
        check_resolutions(resolution=resolution)
        if source.max_length is not None and not source.keep_whole:
            source.keep_whole = True
            source.parsed.clear()  # what was read came without the copies of its chains
        dataset = cls(table, source)
        dataset.require_labels = False
        dataset = dataset.check()._assuming(resolution)
        without = [name for name in dataset.ids if dataset._structure(name) is None]
        if without:
            logger.warning(
                "%s: %d of %s without coordinates to learn from: %s.",
                table.path, len(without), counted(len(dataset), "sample"), few(without, limit=5),
            )  # fmt: skip
        return dataset

    def __init__(self, table: Table, source: Source) -> None:
        super().__init__(table, source)
        self.require_labels = True
        self._assumed: float | None = None
        self._written = _written(table)
        if not table.word:
            self._rows_of = "them from"

    @property
    def targets(self) -> list[Protein | None]:
        """Structures in order, None where there is nothing to learn from."""
        return list(map(self._structure, self.ids))

    @property
    def target_name(self) -> str:
        """Name of the labels in messages."""
        return "structure"

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings of the inputs; a checkpoint keeps them to prepare new ones the same way."""
        settings = super().input_settings
        return {**settings, "labels": "structure", "resolution": self._assumed}

    def _label(self, index: int) -> Protein | None:
        return self._structure(self.ids[index])

    def _structure(self, name: str) -> Protein | None:
        if self._source.label_fault(name):
            return None
        label = structure_label(self._source.protein(name))
        # the fixed crop may have no frame where the whole structure has; a drawn one is looked at
        # when it is drawn
        if label is not None and self.draw is None and label_fault(label):
            return None
        return label

    _verb = "used"

    def _examined(self, name: str) -> Any:
        """Read a structure, and refuse one that cannot be a label or is not that of its row."""
        found = super()._examined(name)
        file, fault = self._source.file(name), self._source.label_fault(name)
        if fault and self.require_labels:
            raise StructureError(f"{file} {fault}")
        written, origin = self._written.get(name, ("", ""))
        difference = sequence_fault(written, self._source.sequences(name)) if written else ""
        if difference:
            raise DataError(
                f"{origin}: the sequence of {name} {difference} ({file}). Correct one of them."
            )
        return found

    def _warn_of_long(self) -> None:
        """Warn of structures that need more memory than their user may expect."""
        if self.max_length is not None or not len(self):
            return
        lengths = self.lengths
        n, longest = int((lengths > LONG).sum()), int(lengths.argmax())
        if n:
            logger.warning(
                "%s: %d of %s longer than %d residues, up to %d (%s), and max_length "
                "(--max-length) crops none: memory grows with the square of the length. AlphaFold "
                "trained on crops of 256 and 384 residues.",
                self._table.path, n, counted(len(self), "structure"), LONG,
                lengths[longest], self.ids[longest],
            )  # fmt: skip

    def _assuming(self, resolution: float | None) -> Self:
        """Take structures without a resolution to have this one, in angstrom."""
        if resolution is not None:
            self._source.assume(dict.fromkeys(self.ids, resolution))
        self._assumed = resolution
        return self

    def _described(self) -> Self:
        """Return this data set with what the files state of their experiments as columns."""
        columns = self._table.metadata
        found = [self._source.experiment(name) for name in self.ids]
        stated = pd.Series([one.resolution for one in found], dtype="float64")
        if RESOLUTION in columns and RESOLUTION in numeric(columns):
            stated = stated.fillna(columns[RESOLUTION].astype("float64"))
            self._source.assume(dict(zip(self.ids, stated, strict=True)))
        described = columns.copy()
        described[RESOLUTION] = stated
        # a table may have columns of these names, such as the method of a measurement
        if RELEASED not in columns:
            described[RELEASED] = pd.Series([one.released or "" for one in found], dtype=object)
        if METHOD not in columns:
            described[METHOD] = pd.Series([one.method for one in found], dtype=object)
        part = self.subset(range(len(self)))
        part._table = replace(part._table, metadata=described)
        return part


def _written(table: Table) -> dict[str, tuple[str, str]]:
    """Return the sequences that a table gives for its ids, and where each stands."""
    if SEQUENCES not in table.metadata:
        return {}
    texts = table.metadata[SEQUENCES].astype(str)
    return {
        name: (text.strip(), table.origin(i))
        for i, (name, text) in enumerate(zip(table.ids, texts, strict=True))
    }


# Tables and folders


def _found(
    path: Path,
    pdb_dir: str | Path | None,
    alignments_dir: str | Path | None,
    id_column: str,
) -> tuple[Table, Source, str]:
    """Return the samples, where their files are, and the folders in which these were looked for."""
    if not path.exists():
        raise TableError(
            f"{path} does not exist. Give a folder of structures, or a table of their ids or paths."
        )
    if path.is_dir():
        if pdb_dir is not None:
            raise ConfigError(f"{path} is a folder of structures: leave out pdb_dir ({pdb_dir}).")
        ids = _ids_in(path)
        targets = np.full(len(ids), np.nan)
        table = Table(path=path, ids=ids, targets=targets, word="")
        return table, locate(ids, path, None, alignments_dir), str(path)
    if pdb_dir is not None:
        table = read_table(path, id_column=id_column, target_column="", require_target=False)
        return table, locate(table.ids, pdb_dir, None, alignments_dir), str(as_path(pdb_dir))
    table, paths = _of_paths(read_cells(path, PATHS), id_column)
    source = Source(structures={k: v for k, v in paths.items() if v.is_file()}, paths=paths)
    if alignments_dir is not None:
        source.alignments = locate(table.ids, None, None, alignments_dir).alignments
    return table, source, f"{path}"


def _ids_in(folder: Path) -> list[str]:
    """Return the names of the structures of a folder; say which files stand behind others."""
    found = FolderIndex(folder).stems(STRUCTURE_SUFFIXES)
    if not found:
        raise DataError(
            f"{folder} holds no structure. Give a folder of {', '.join(STRUCTURE_SUFFIXES[:4])} "
            f"files (also with .gz); folders in it are not searched."
        )
    several = [names for names in found.values() if len(names) > 1]
    if several:
        logger.warning(
            "%s: %s in several files, of which .cif goes before .pdb before .gz: %s.",
            folder, counted(len(several), "structure"), few([" and ".join(n) for n in several]),
        )  # fmt: skip
    return list(found)


def _of_paths(cells: Cells, id_column: str) -> tuple[Table, dict[str, Path]]:
    """Read a table with the paths of the structures, whether these are there or not."""
    if PATHS not in cells.header:
        raise ConfigError(
            f"{cells.path} has no column {PATHS!r}, and no folder of structures is given: add "
            f"pdb_dir (--pdbs FOLDER)."
        )
    texts = cells.filled(PATHS)
    files = [cells.path.parent / as_path(text) for text in texts]
    has_ids = id_column in cells.header
    ids = list(cells.ids(id_column)) if has_ids else [name_of_file(path) for path in files]
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if first.setdefault(name, row) != row:
            cells.refuse(
                row,
                f"{cells.where(row)}: {name!r} is the name of {cells.where(first[name])} already; "
                f"give them a column {id_column!r} of different ids",
            )
    cells.raise_problems(goes_on=True)
    used = (id_column, PATHS)
    table = Table.of(cells, ids, np.full(len(ids), np.nan), used=used).take(cells.good())
    return table, dict(zip(ids, files, strict=True))
