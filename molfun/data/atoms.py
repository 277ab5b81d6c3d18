"""Structures of atoms with energies, forces or other labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from molfun._paths import as_path
from molfun.data.atoms_files import read_frames
from molfun.data.atoms_labels import (
    IN_MEMORY,
    KEYS,
    KINDS,
    MANY,
    LabelShape,
    as_label,
    check_keys,
    columns_of,
    label_shape,
    labels_of_all,
    names_in,
    raise_for,
    unused_labels,
    volume_of,
)
from molfun.data.base import SampleDataset
from molfun.errors import DataError
from molfun.sample import Sample, is_missing
from molfun.text import counted, listing, nearest

logger = logging.getLogger(__name__)

SAME_ENERGY = 1e-6
"""Difference below which two energies of one structure are the same."""


class AtomsDataset(SampleDataset):
    """``ase.Atoms`` with labels, as a map-style data set.

    Make one with `from_files` or `from_atoms`. Works with ``torch.utils.data.DataLoader`` and
    `DataSplitter`, which keeps equal structures together, and those of one ``group``.

    Parameters
    ----------
    atoms
        The structures.
    targets
        A label each: for energies a dict with ``energy`` (eV), ``forces`` (atoms, 3) and
        ``stress`` (3, 3), else a number, a class, or one for each atom. By default the energies,
        forces and stress that the structures carry.
    ids
        A name each.
    metadata
        Further columns, a value each.
    origins
        Where each was read, for messages.
    columns
        Names of the labels in the file, for checkpoints.

    Examples
    --------
    >>> from ase.build import molecule
    >>> data = AtomsDataset([molecule("H2O"), molecule("CH4")], [{"energy": -14.2}, None])
    >>> len(data), data[0].target
    (2, {'energy': -14.2})
    """

    kind = "atoms"

    def __init__(
        self,
        atoms: Sequence[Any],
        targets: Sequence[Any] | None = None,
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Sequence[Any]] | None = None,
        origins: Sequence[str] | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        n = len(atoms)
        self._atoms = list(atoms)
        self._origins = [""] * n if origins is None else list(origins)
        self._ids = [f"structure_{i + 1}" for i in range(n)] if ids is None else list(map(str, ids))
        places = self._origins if origins is not None else self._ids
        self._targets = self._carried(places) if targets is None else list(targets)
        self._metadata = {key: list(values) for key, values in (metadata or {}).items()}
        self._columns = dict(columns or {})
        self.label_shape: LabelShape | None = None
        self._check_lengths()
        self._settle(places)

    def _carried(self, places: Sequence[str]) -> list[Any]:
        """Take the labels that the structures carry; warn of others."""
        found = [columns_of(a) for a in self._atoms]
        labels = labels_of_all(self._atoms, found, KEYS, places)
        _say(unused_labels(self._atoms, found, KEYS, IN_MEMORY))
        return [label or None for label in labels]

    def _check_lengths(self) -> None:
        n = len(self._atoms)
        lengths: dict[str, list[Any]] = {
            "targets": self._targets,
            "ids": self._ids,
            "origins": self._origins,
            **self._metadata,
        }
        wrong = {name: len(values) for name, values in lengths.items() if len(values) != n}
        if wrong:
            raise DataError(f"{counted(n, 'structure')}, but {wrong}. Give one for each.")

    def _settle(self, places: Sequence[str]) -> None:
        """Bring labels by name into their form; say which stress cannot be used."""
        problems = []
        for i, target in enumerate(self._targets):
            if not isinstance(target, Mapping) or not set(target) <= set(KINDS):
                continue
            given = {kind: value for kind, value in target.items() if value is not None}
            try:
                self._targets[i] = as_label(given, self._atoms[i])
            except DataError as error:
                problems.append(f"{places[i]}: {error}")
        raise_for(problems, "cannot be used")

    @classmethod
    def from_atoms(
        cls,
        atoms: Iterable[Any],
        *,
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
        virial_key: str | None = None,
        target_key: str | None = None,
    ) -> AtomsDataset:
        """Structures that carry their labels, as ASE's calculators and readers leave them.

        Parameters
        ----------
        atoms
            The structures.
        energy_key, forces_key, stress_key, virial_key, target_key
            As in `from_files`.
        """
        frames = list(atoms)
        wrong = [type(a).__name__ for a in frames if not hasattr(a, "get_atomic_numbers")]
        if wrong:
            raise DataError(f"Expected ase.Atoms, got {wrong[0]}.")
        keys = _given(energy=energy_key, forces=forces_key, stress=stress_key, virial=virial_key)
        check_keys(keys)
        places = [f"structure {i + 1}" for i in range(len(frames))]
        return cls._read(frames, places, IN_MEMORY, keys, target_key)

    @classmethod
    def from_files(
        cls,
        paths: str | Path | Sequence[str | Path],
        *,
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
        virial_key: str | None = None,
        target_key: str | None = None,
        leave_out: Sequence[str] = (),
        require_target: bool = False,
        optional: Collection[str] = (),
    ) -> AtomsDataset:
        """Read extended-xyz files, or any other that ASE reads.

        What looks like an energy, forces, stress or virial by name and shape and is not read is
        named in a warning.

        Parameters
        ----------
        paths
            One file or several.
        energy_key, forces_key, stress_key
            Names of the labels where they are not ``energy`` (eV), ``forces`` (eV/angstrom) and
            ``stress`` (eV/angstrom^3, positive under tension as in ASE).
        virial_key
            Name of virials (eV), which are read as ``stress = -virial / volume``. A stress or
            virial has six numbers (xx, yy, zz, yz, xz, xy), nine, or is a matrix.
        target_key
            Name of another label, of the structure or of each atom, in place of all these: a
            number, a class, a vector or a matrix.
        leave_out
            Of ``"energy"``, ``"forces"`` and ``"stress"`` those that are not read.
        require_target
            Whether a structure without any label is refused.
        optional
            Of ``"energy"``, ``"forces"``, ``"stress"``, ``"virial"`` and ``"target"`` those whose
            names need not be in the files: structures to predict have no labels.

        Raises
        ------
        ConfigError
            If a name says that its label is something else, such as ``stress_key="virial"``.
        DataError
            If a file cannot be read or has no such label; the text names what there is.
        """
        if not isinstance(paths, Iterable):
            paths = as_path(paths)
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        keys = _given(energy=energy_key, forces=forces_key, stress=stress_key, virial=virial_key)
        check_keys(keys)
        frames, places = [], []
        for path in paths:
            read = read_frames(path)
            frames += read
            places += [f"{path}, structure {i + 1}" for i in range(len(read))]
        others = f" and {counted(len(paths) - 1, 'other file')}" if len(paths) > 1 else ""
        where = f"{paths[0]}{others}" if paths else ""
        dataset = cls._read(
            frames, places, where, keys, target_key, leave_out=leave_out, optional=optional
        )
        if require_target:
            dataset._refuse_unlabelled()
        return dataset

    def _refuse_unlabelled(self) -> None:
        """Refuse structures without any label."""
        bare = [p for p, t in zip(self._origins, self._targets, strict=True) if not _labelled(t)]
        if bare:
            names = names_in([columns_of(a) for a in self._atoms])
            raise DataError(
                f"{counted(len(bare), 'structure')} without a label:\n{listing(bare, MANY)}\n"
                f"They have: {', '.join(names) or 'no labels'}. Name the label with --energy-key "
                f"or --target-key."
            )

    @classmethod
    def _read(
        cls,
        frames: list[Any],
        places: list[str],
        where: str,
        named: dict[str, str],
        target_key: str | None,
        *,
        leave_out: Sequence[str] = (),
        optional: Collection[str] = (),
    ) -> AtomsDataset:
        columns = [columns_of(a) for a in frames]
        known = names_in(columns)
        asked = named | ({"target": target_key} if target_key else {})
        if frames:
            _check_names([n for kind, n in asked.items() if kind not in optional], columns, where)
        targets: list[Any]
        shape = None
        if target_key is not None:
            targets = [c.get(target_key) for c in columns]
            shape = label_shape(frames, targets, target_key, places)
        else:
            names = _names_of(named, leave_out)
            targets = list(labels_of_all(frames, columns, names, places))
            ignored = _with_others(leave_out)
            _say(unused_labels(frames, columns, names, where, ignored=ignored))
            _say(_without_volume(frames, targets, where))
            _say(_conflicts(frames, targets, where, places))
        dataset = cls(
            frames, targets, ids=_ids_of(frames, where), metadata=_plain_columns(frames, known),
            origins=places, columns={f"{k}_key": v for k, v in asked.items()},
        )  # fmt: skip
        dataset.label_shape = shape
        return dataset

    # --- a map-style data set --------------------------------------------------------------------

    def __getitem__(self, index: int) -> Sample:
        index = self.place(index)
        return Sample(
            id=self.ids[index],
            atoms=self._atoms[index],
            target=self._targets[index],
            metadata={key: values[index] for key, values in self._metadata.items()},
            origin=self._origins[index],
        )

    def __repr__(self) -> str:
        n = sum(len(a) for a in self._atoms)
        return f"AtomsDataset({counted(len(self), 'structure')}, {counted(n, 'atom')})"

    @property
    def ids(self) -> list[str]:
        """Ids in order."""
        return self._ids

    @property
    def targets(self) -> list[Any]:
        """Labels in order."""
        return list(self._targets)

    @property
    def atoms(self) -> list[Any]:
        """Structures in order."""
        return list(self._atoms)

    @property
    def origins(self) -> list[str]:
        """Where each was read; empty texts where that is not known."""
        return list(self._origins)

    @property
    def metadata(self) -> pd.DataFrame:
        """Further columns, a row each."""
        return pd.DataFrame(self._metadata, index=range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Atoms of each structure."""
        return np.array([len(a) for a in self._atoms])

    def sequences(self) -> list[tuple[str, ...]]:
        """Positions of each structure: the same ones stay together in splits."""
        return [(Sample(id="", atoms=a).content_key(),) for a in self._atoms]

    @property
    def input_settings(self) -> dict[str, Any]:
        """How labels are read, for a checkpoint."""
        return {"kind": "atoms", **self._columns}

    def subset(self, indices: Sequence[int] | np.ndarray) -> AtomsDataset:
        """The structures at these positions."""
        rows = self.places(indices)

        def take(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in rows]

        part = AtomsDataset(
            take(self._atoms),
            take(self._targets),
            ids=take(self.ids),
            metadata={key: take(values) for key, values in self._metadata.items()},
            origins=take(self._origins),
            columns=self._columns,
        )
        part.label_shape = self.label_shape
        return part


def _given(**names: str | None) -> dict[str, str]:
    """Names of labels that the caller gives."""
    return {kind: name for kind, name in names.items() if name is not None}


def _names_of(named: Mapping[str, str], leave_out: Sequence[str]) -> dict[str, str]:
    """Name of each kind of label that is read; virials take the place of a stress."""
    names = {**KEYS, **named}
    if "virial" in named:
        del names["stress"]
    if "stress" in leave_out:
        names.pop("virial", None)
    return {kind: name for kind, name in names.items() if kind not in leave_out}


def _with_others(kinds: Iterable[str]) -> set[str]:
    """Kinds of labels, and those that say the same with another sign or unit."""
    others = {"stress": "virial", "forces": "gradient"}
    return {name for kind in kinds for name in (kind, others.get(kind, kind))}


def _say(texts: Iterable[str]) -> None:
    for text in texts:
        logger.warning("%s", text)


def _without_volume(frames: Sequence[Any], labels: Sequence[Any], where: str) -> Iterator[str]:
    flat = ["stress" in label and not volume_of(a) for a, label in zip(frames, labels, strict=True)]
    if any(flat):
        yield (
            f"{where}: {sum(flat):,} of {len(frames):,} structures have a stress or virial, which "
            f"is not used: they are not periodic in all directions, so they have no volume."
        )


def _conflicts(
    frames: Sequence[Any], labels: Sequence[Mapping[str, Any]], where: str, places: Sequence[str]
) -> Iterator[str]:
    """Equal structures with different energies: often two levels of theory in one file."""
    known: dict[str, int] = {}
    pairs = []
    for i, (atoms, label) in enumerate(zip(frames, labels, strict=True)):
        energy = label.get("energy")
        if energy is None or np.isnan(energy):
            continue
        j = known.setdefault(Sample(id="", atoms=atoms).content_key(), i)
        if not np.isclose(labels[j]["energy"], energy, rtol=1e-9, atol=SAME_ENERGY):
            pairs.append((j, i))
    if pairs:
        j, i = pairs[0]
        yield (
            f"{where}: {counted(len(pairs), 'structure')} with another energy than an equal "
            f"structure before ({places[j]}: {labels[j]['energy']:.6g}; {places[i]}: "
            f"{labels[i]['energy']:.6g}). If they are of two levels of theory, give them two names."
        )


def _ids_of(frames: Sequence[Any], where: str) -> list[str]:
    """The ``id`` or ``name`` of each structure; numbers where these are not unique."""
    numbers = [str(i + 1) for i in range(len(frames))]
    ids = [
        str(a.info.get("id", a.info.get("name", n))) for a, n in zip(frames, numbers, strict=True)
    ]
    twice = [name for name, n in Counter(ids).items() if n > 1]
    if twice and any("id" in a.info for a in frames):
        logger.warning(
            "%s: ids are not unique (%r), so structures are called by their number.",
            where,
            twice[0],
        )
    return numbers if twice else ids


def _check_names(names: Sequence[str], columns: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse a name of a label that no structure has."""
    known = names_in(columns)
    for name in names:
        if not any(column.get(name) is not None for column in columns):
            raise DataError(
                f"No structure of {where} has {name!r}. They have: "
                f"{', '.join(known) or 'no labels'}.{nearest(name, known)}"
            )


def _labelled(target: Any) -> bool:
    """Return True for a label with any number."""
    if isinstance(target, Mapping):
        return any(np.isfinite(value).any() for value in target.values())
    return not is_missing(target)


def _plain_columns(frames: Sequence[Any], known: Iterable[str]) -> dict[str, list[Any]]:
    """Texts and numbers that every structure has."""
    names = [n for n in known if all(n in a.info for a in frames)]
    kinds = str | int | float | bool | np.number
    return {
        n: [a.info[n] for a in frames]
        for n in names
        if n != "id" and all(isinstance(a.info[n], kinds) for a in frames)
    }
