"""Proteins and complexes with one measured number each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from molfun._paths import as_path
from molfun._shapes import Int64
from molfun.data.base import TableDataset
from molfun.data.cells import Required, noted
from molfun.data.columns import rows_meeting
from molfun.data.feature_files import FEATURE_SUFFIXES, read_features
from molfun.data.folders import FolderIndex, with_alignments
from molfun.data.structures import STRUCTURE_SUFFIXES, read_structure
from molfun.data.tables import Table, read_table
from molfun.errors import ConfigError, DataError, UnsafeFileError
from molfun.protein import RESIDUE_LETTERS_WITH_X, CropPolicy, Protein
from molfun.sample import Sample
from molfun.text import counted, few, listing

logger = logging.getLogger(__name__)

MOST_LOOKED_FOR = 100
"""Missing files up to which names like theirs are looked for, each in the whole folder."""

_HYDROPATHY = dict(
    zip(
        "ARNDCQEGHILKMFPSTWYV",
        (1.8, -4.5, -3.5, -3.5, 2.5, -3.5, -3.5, -0.4, -3.2, 4.5,
         3.8, -3.9, 1.9, 2.8, -1.6, -0.8, -0.7, -0.9, -1.3, 4.2),
        strict=True,
    )
)  # fmt: skip
"""Kyte and Doolittle, J. Mol. Biol. 157, 105 (1982), table 2."""


@dataclass
class _Parsed:
    """A structure as it is kept in memory: the crop, and the whole chains for the splits."""

    protein: Protein
    chains: tuple[str, ...]


@dataclass
class _Source:
    """Files that samples come from; shared by a data set and all its subsets."""

    structures: dict[str, Path] = field(default_factory=dict)
    features: dict[str, Path] = field(default_factory=dict)
    alignments: dict[str, Path] = field(default_factory=dict)
    max_length: int | None = None
    crop: CropPolicy = "auto"
    beside: dict[str, str] = field(default_factory=dict)
    """For ids without a file of a kind that is read: the files of other kinds there are."""
    noun: str = "structures"
    example: str = ".cif"
    parsed: dict[str, _Parsed] = field(default_factory=dict)
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(
        default_factory=lambda: {"id_column": "pdb_id", "target_column": "affinity"}
    )

    def protein(self, name: str) -> Protein | None:
        """Return the cropped protein; None where features stand for it."""
        return None if name in self.features else self._parse(name).protein

    def read_features(self, name: str) -> dict[str, Any] | None:
        path = self.features.get(name)
        return None if path is None else read_features(path)

    def sequences(self, name: str) -> tuple[str, ...]:
        """Return the sequence of each chain, before any crop."""
        if name not in self.features:
            return self._parse(name).chains
        if name not in self.chains:
            self.chains[name] = _feature_sequence(self.features[name])
        return self.chains[name]

    def _parse(self, name: str) -> _Parsed:
        if name not in self.parsed:
            protein = read_structure(self.structures[name])
            self.parsed[name] = _Parsed(
                protein=protein.crop(self.max_length, self.crop), chains=_split_chains(protein)
            )
            if protein.notes:
                logger.info("%s: %s", name, "; ".join(protein.notes))
        return self.parsed[name]


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

    def __init__(self, table: Table, source: _Source) -> None:
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
        source = _locate(table.ids, pdb_dir, features_dir, alignments_dir)
        source.max_length, source.crop = max_length, crop
        source.columns = named | noted(require_target)
        folders = " and ".join(str(as_path(d)) for d in (pdb_dir, features_dir) if d)
        return cls(_drop_missing(table, source, folders, skip_missing=skip_missing), source)

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
        source = _Source()
        for name, (sequence, _) in zip(ids, samples, strict=True):
            protein = Protein.from_sequence(sequence, name=name)
            source.parsed[name] = _Parsed(protein=protein, chains=(sequence,))
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

    def check(self) -> AffinityDataset:
        """Parse every file now, and keep the parsed structures for training.

        Call it before a DataLoader with workers starts: the workers then inherit the structures
        and read nothing again.

        Returns
        -------
        AffinityDataset
            This data set.

        Raises
        ------
        DataError
            If files are bad; all of them are listed.
        """
        self._collect(self._source.protein)
        self._collect(self._source.read_features, keep=False)
        return self

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
        results, problems = [], []
        for name in self.ids:
            try:
                result = read(name)
            except DataError as error:
                problems.append(str(error))
            else:
                results.append(result if keep else None)
        if problems:
            raise DataError(
                f"{len(problems)} of {len(self)} samples cannot be read:\n{listing(problems)}\n"
                f"Repair these files, or remove their rows from {self._table.path}."
            )
        return results


# Finding files


def _locate(
    ids: Sequence[str],
    pdb_dir: str | Path | None,
    features_dir: str | Path | None,
    alignments_dir: str | Path | None,
) -> _Source:
    """Return the paths of all ids, each folder scanned once."""
    refused: list[str] = []
    source = _Source()
    if pdb_dir is None:
        source.noun, source.example = "feature files", ".pkl"
    if features_dir is not None:
        index = FolderIndex(features_dir)
        source.features = _find_all(index, ids, FEATURE_SUFFIXES, refused)
        source.beside.update(_others(index, ids, source.features))
    if pdb_dir is not None:
        rest = [name for name in ids if name not in source.features]
        index = FolderIndex(pdb_dir)
        source.structures = _find_all(index, rest, STRUCTURE_SUFFIXES, refused)
        source.beside.update(_others(index, rest, source.structures))
    folder = _alignment_folder(pdb_dir, alignments_dir)
    if folder is not None:
        found = _find_all(FolderIndex(folder), ids, ("",), refused)
        source.alignments = with_alignments(folder, found, ids)
    if refused:
        raise UnsafeFileError(f"Refused {counted(len(refused), 'file')}:\n{listing(refused)}")
    return source


def _find_all(
    index: FolderIndex, ids: Sequence[str], suffixes: Sequence[str], refused: list[str]
) -> dict[str, Path]:
    found = {}
    for name in ids:
        try:
            path = index.find(name, suffixes)
        except UnsafeFileError as error:
            refused.append(str(error))
        else:
            if path is not None:
                found[name] = path
    return found


def _others(
    index: FolderIndex, ids: Sequence[str], found: Mapping[str, Path]
) -> Iterator[tuple[str, str]]:
    """Return ids that were not found, with the files of other kinds that are named after them."""
    absent = [name for name in ids if name not in found]
    for name in absent if len(absent) < MOST_LOOKED_FOR else []:
        others = index.beside(name)
        if others:
            yield name, ", ".join(others[:3])


def _alignment_folder(pdb_dir: str | Path | None, alignments_dir: str | Path | None) -> Path | None:
    if alignments_dir is not None:
        return as_path(alignments_dir)
    if pdb_dir is None:
        return None
    beside = as_path(pdb_dir).resolve().parent / "alignments"
    return beside if beside.is_dir() else None


def _drop_missing(table: Table, source: _Source, folders: str, *, skip_missing: bool) -> Table:
    located = source.structures.keys() | source.features.keys()
    present = [i for i, name in enumerate(table.ids) if name in located]
    absent = [name for name in table.ids if name not in located]
    if not absent:
        return table
    if not present:
        raise _all_missing(absent, source, folders)
    summary = f"{len(absent)} of {len(table)} {source.noun} are missing in {folders}"
    if not skip_missing:
        shown = [
            f"{name} (there is {source.beside[name]}, which is not read)"
            if name in source.beside
            else name
            for name in absent
        ]
        raise DataError(
            f"{summary}:\n{listing(shown)}\nAdd the files, or continue without these rows: "
            f"--skip-missing (skip_missing=True)."
        )
    logger.warning("%s and are skipped: %s", summary, few(absent, limit=10))
    return table.take(present)


def _all_missing(absent: Sequence[str], source: _Source, folders: str) -> DataError:
    other = next((name for name in absent if name in source.beside), None)
    if other is not None:
        return DataError(
            f"All {len(absent)} {source.noun} are missing in {folders}; for {other} there is "
            f"{source.beside[other]}, which is not read. Write {other}{source.example} or another "
            f"kind that is read."
        )
    return DataError(
        f"All {len(absent)} {source.noun} are missing in {folders}; the first would be "
        f"{absent[0]}{source.example}. Check the folder and the id column."
    )


# Sequences


def _split_chains(protein: Protein) -> tuple[str, ...]:
    letters = np.array(list(protein.sequence))
    return tuple(
        "".join(letters[protein.chain_index == chain]) for chain in np.unique(protein.chain_index)
    )


def _feature_sequence(path: Path) -> tuple[str, ...]:
    """Return the sequence in a feature file: openfold's ``sequence`` text, or its ``aatype``."""
    features = read_features(path)
    try:
        if "sequence" in features:
            text = np.asarray(features["sequence"]).reshape(-1)[0]
            return (text.decode() if isinstance(text, bytes) else str(text),)
        if "aatype" in features:
            numbers = _residue_types(features)
            return ("".join(RESIDUE_LETTERS_WITH_X[min(int(i), 20)] for i in numbers),)
    except (IndexError, ValueError, TypeError) as error:
        key = "sequence" if "sequence" in features else "aatype"
        raise DataError(
            f"{path}: {key!r} holds no sequence of residues. Compute the features again."
        ) from error
    raise DataError(
        f"{path} has neither 'sequence' nor 'aatype', so the split cannot see which samples "
        f"are alike. Add one of them."
    )


def _residue_types(features: Mapping[str, Any]) -> np.ndarray:
    """Return the index of each residue's type, of raw features (one-hot) or processed ones.

    Processed features have a recycling dimension, last in openfold's files and first in others:
    along it the types are the same.
    """
    aatype = np.asarray(features["aatype"])
    if aatype.ndim == 2 and aatype.shape[1] in (20, 21, 22) and aatype.max() <= 1:
        return aatype.argmax(-1)
    if aatype.ndim == 2 and "target_feat" in features:
        is_first = np.shape(features["target_feat"])[-1] == 22 and len(aatype) != 22
        if is_first or (aatype == aatype[:1]).all() > (aatype == aatype[:, :1]).all():
            return aatype[0]
    return aatype.reshape(len(aatype), -1)[:, 0]


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
