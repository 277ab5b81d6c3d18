"""Files of structures, features and alignments that samples of a table come from."""

from __future__ import annotations

import functools
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from molfun._paths import as_path
from molfun.data.experiment import Experiment
from molfun.data.faults import report
from molfun.data.feature_files import FEATURE_SUFFIXES, read_features
from molfun.data.folders import FolderIndex, with_alignments
from molfun.data.structure_labels import label_fault
from molfun.data.structures import STRUCTURE_SUFFIXES, read_with_experiment
from molfun.data.tables import Table
from molfun.data.unobserved import with_unobserved
from molfun.errors import DataError, UnsafeFileError
from molfun.protein import RESIDUE_LETTERS_WITH_X, CropPolicy, Protein
from molfun.text import counted, few, listing

logger = logging.getLogger(__name__)

_MISSING = "files are missing (--skip-missing leaves their rows out)"
MOST_LOOKED_FOR = 100
"""Missing files up to which names like theirs are looked for, each in the whole folder."""

MANY_FILES = 200
"""Structures from which on starting processes to parse them (2 s) pays."""


@dataclass
class Parsed:
    """A structure as it is kept in memory: the crop, and the whole chains for the splits."""

    protein: Protein
    chains: tuple[str, ...]
    experiment: Experiment = field(default_factory=Experiment)
    fault: str = ""
    """Reason why nothing can be learned from its coordinates; empty where something can."""
    whole: Protein | None = None
    """Structure before the crop, where it is needed and another one."""


@dataclass
class Source:
    """Files that samples come from; shared by a data set and all its subsets."""

    structures: dict[str, Path] = field(default_factory=dict)
    features: dict[str, Path] = field(default_factory=dict)
    alignments: dict[str, Path] = field(default_factory=dict)
    max_length: int | None = None
    crop: CropPolicy = "auto"
    beside: dict[str, str] = field(default_factory=dict)
    """For ids without a file of a kind that is read: the files of other kinds there are."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Where a table names the file of each id: the path it gives, whether there is one or not."""
    noun: str = "structures"
    example: str = ".cif"
    parsed: dict[str, Parsed] = field(default_factory=dict)
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    keep_whole: bool = False
    """True to keep whole structures next to their crops, for crops that are drawn in training and
    for the copies of a chain."""
    with_unobserved: bool = False
    """True to read residues without coordinates as well, as labels of structures have them."""
    columns: Mapping[str, str] = field(
        default_factory=lambda: {"id_column": "pdb_id", "target_column": "affinity"}
    )

    def file(self, name: str) -> Path | None:
        """Return the file that stands for a sample."""
        return self.features.get(name) or self.structures.get(name)

    def protein(self, name: str) -> Protein | None:
        """Return the cropped protein; None where features stand for it."""
        return None if name in self.features else self._parse(name).protein

    def experiment(self, name: str) -> Experiment:
        """Return what the file of a structure states of its experiment."""
        return Experiment() if name in self.features else self._parse(name).experiment

    def resolution_of(self, name: str) -> float | None:
        """Return the resolution of a structure in angstrom: stated, or taken; None without one."""
        protein = self.protein(name)
        return None if protein is None else protein.resolution

    def assume(self, resolutions: Mapping[str, float]) -> None:
        """Give structures without a resolution these, in angstrom; NaN is none."""
        for name, value in resolutions.items():
            if self.resolution_of(name) is None and value == value and name not in self.features:
                held = self._parse(name)
                held.protein = replace(held.protein, resolution=float(value))

    def whole(self, name: str) -> Protein | None:
        """Return a structure before its crop, read again where only the crop was kept."""
        protein = self.protein(name)
        if protein is None or len(protein) == len(protein.full_sequence):
            return protein
        held = self._parse(name)
        if held.whole is None:
            held.whole, _ = _whole(self.structures[name], self.with_unobserved)
        return replace(held.whole, resolution=protein.resolution)

    def label_fault(self, name: str) -> str:
        """Return why the coordinates of a sample are no label; empty if they are one."""
        if name in self.features:
            return "holds features without coordinates to learn from. Give its structure."
        return self._parse(name).fault

    def read_features(self, name: str) -> dict[str, Any] | None:
        """Return the pre-computed features of a sample, None if it has none."""
        path = self.features.get(name)
        return None if path is None else read_features(path)

    def sequences(self, name: str) -> tuple[str, ...]:
        """Return the sequence of each chain, before any crop."""
        if name not in self.features:
            return self._parse(name).chains
        if name not in self.chains:
            self.chains[name] = _feature_sequence(self.features[name])
        return self.chains[name]

    def _parse(self, name: str) -> Parsed:
        if name not in self.parsed:
            self._keep(name, self._read(self.structures[name]))
        return self.parsed[name]

    @property
    def _read(self) -> Callable[[Path], Parsed]:
        """Function that reads a file; it can be sent to other processes."""
        return functools.partial(
            _parsed, max_length=self.max_length, crop=self.crop, keep_whole=self.keep_whole,
            unobserved=self.with_unobserved,
        )  # fmt: skip

    def _keep(self, name: str, found: Parsed) -> None:
        self.parsed[name] = found
        if found.protein.notes:
            logger.info("%s: %s", name, "; ".join(found.protein.notes))

    def parse_all(self, names: Sequence[str], workers: int) -> None:
        """Parse structures in processes of their own, if there are many.

        A file that cannot be read is left to whoever asks for it, who then reports it.
        """
        left = [n for n in names if n in self.structures and n not in self.parsed]
        if workers < 1 or len(left) < MANY_FILES:
            return
        # spawn, since a fork would copy threads of torch that hold locks
        spawn = multiprocessing.get_context("spawn")
        read = functools.partial(_or_none, self._read)
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            paths = [self.structures[name] for name in left]
            for name, found in zip(left, pool.map(read, paths, chunksize=16), strict=True):
                if found is not None:
                    self._keep(name, found)


def _parsed(
    path: Path, *, max_length: int | None, crop: CropPolicy, keep_whole: bool, unobserved: bool
) -> Parsed:
    protein, experiment = _whole(path, unobserved)
    cropped = protein.crop(max_length, crop)
    return Parsed(
        # a table of crops in memory may be all that fits
        protein=cropped if keep_whole else replace(cropped, whole=None),
        whole=protein if keep_whole and cropped is not protein else None,
        chains=_split_chains(protein),
        # the residues are in the protein, and thousands of files are kept
        experiment=replace(experiment, unobserved=()),
        fault=label_fault(protein),
    )


def _whole(path: Path, unobserved: bool) -> tuple[Protein, Experiment]:
    protein, experiment = read_with_experiment(path)
    return with_unobserved(protein, experiment.unobserved) if unobserved else protein, experiment


def _or_none(read: Callable[[Path], Parsed], path: Path) -> Parsed | None:
    try:
        return read(path)
    except DataError:
        return None


# Finding files


def locate(
    ids: Sequence[str],
    pdb_dir: str | Path | None,
    features_dir: str | Path | None,
    alignments_dir: str | Path | None,
) -> Source:
    """Return the paths of all ids, each folder scanned once."""
    refused: list[str] = []
    source = Source()
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
        error = UnsafeFileError(f"Refused {counted(len(refused), 'file')}:\n{listing(refused)}")
        report(pdb_dir or features_dir or "", refused, error)
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


def drop_missing(table: Table, source: Source, folders: str, *, skip_missing: bool) -> Table:
    """Return the rows whose files are there.

    Raises
    ------
    DataError
        If files are missing that may not be, all of them, or the rows are not to be skipped.
    """
    located = source.structures.keys() | source.features.keys()
    present = [i for i, name in enumerate(table.ids) if name in located]
    absent = [name for name in table.ids if name not in located]
    if not absent:
        return table
    if not present:
        report(folders, absent, _all_missing(absent, source, folders), _MISSING)
        return table.take(present)
    summary = f"{len(absent)} of {len(table)} {source.noun} are missing in {folders}"
    if not skip_missing:
        shown = [
            f"{name} (there is {source.beside[name]}, which is not read)"
            if name in source.beside
            else str(source.paths.get(name, name))
            for name in absent
        ]
        error = DataError(
            f"{summary}:\n{listing(shown)}\nAdd the files, or continue without these rows: "
            f"--skip-missing (skip_missing=True)."
        )
        report(folders, shown, error, _MISSING)
        return table.take(present)
    logger.warning("%s and are skipped: %s", summary, few(absent, limit=10))
    return table.take(present)


def _all_missing(absent: Sequence[str], source: Source, folders: str) -> DataError:
    other = next((name for name in absent if name in source.beside), None)
    if other is not None:
        return DataError(
            f"All {len(absent)} {source.noun} are missing in {folders}; for {other} there is "
            f"{source.beside[other]}, which is not read. Write {other}{source.example} or another "
            f"kind that is read."
        )
    if source.paths:
        return DataError(
            f"All {len(absent)} {source.noun} are missing in {folders}; the first would be "
            f"{source.paths[absent[0]]}. Paths are as seen from the folder of the table."
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
