"""Proteins and complexes with one measured number each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from molfun._paths import as_path
from molfun.data.affinity_files import Parsed, Source, drop_missing, locate
from molfun.data.cells import Required, noted
from molfun.data.columns import rows_meeting
from molfun.data.structure_dataset import StructureDataset
from molfun.data.structure_files import StructureFiles
from molfun.data.tables import Table, read_table
from molfun.errors import ConfigError
from molfun.protein import CropPolicy, Protein

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


class AffinityDataset(StructureFiles):
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

    def structures(self, *, resolution: float | None = None) -> StructureDataset:
        """Return the same samples with their structures as labels, for a model of both tasks.

        Nothing is read twice. Samples whose coordinates are no label have none, which is said.

        Parameters
        ----------
        resolution
            Resolution in angstrom that structures without one are taken to have.

        Raises
        ------
        DataError
            If files are bad, or disagree with a column ``sequence``; all of them are listed.

        Examples
        --------
        >>> from molfun.data import AffinityDataset, NamedTargets
        >>> affinity = AffinityDataset.synthetic(2)
        >>> both = NamedTargets({"affinity": affinity, "structure": affinity.structures()})
        >>> both.targets[0]  # synthetic samples have no coordinates
        {'affinity': 6.8757}
        """
        return StructureDataset.of_source(self._table, self._source, resolution=resolution)


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
