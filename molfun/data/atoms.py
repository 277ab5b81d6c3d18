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
    KEYS,
    KINDS,
    Frame,
    LabelShape,
    as_label,
    check_keys,
    label_shape,
    labels_of_all,
    names_in,
    raise_for,
    volume_of,
)
from molfun.data.atoms_unused import IN_MEMORY, MANY, unused_labels
from molfun.data.base import TableDataset
from molfun.data.cells import Required, noted
from molfun.data.labels import objects
from molfun.data.tables import Table
from molfun.errors import DataError
from molfun.sample import Sample, is_missing
from molfun.text import counted, listing, nearest

logger = logging.getLogger(__name__)

SAME_ENERGY = 1e-6
"""Difference below which two energies of one structure are the same."""


class AtomsDataset(TableDataset):
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
        self._origins = list(origins or [""] * n)
        names = list(map(str, ids or (f"structure_{i + 1}" for i in range(n))))
        places = names if origins is None else self._origins
        labels = self._carried(places) if targets is None else list(targets)
        given = {"targets": labels, "ids": names, "origins": self._origins, **(metadata or {})}
        _check_lengths(n, given)
        table = Table(
            path=Path("structures"),
            ids=names,
            targets=objects(self._settled(labels, places)),
            metadata=pd.DataFrame(metadata or {}),
        )
        super().__init__(table, columns=columns)
        self.label_shape: LabelShape | None = None

    def _carried(self, places: Sequence[str]) -> list[Any]:
        """Take the labels that the structures carry; warn of others."""
        frames = list(map(Frame.of, self._atoms, places))
        labels = labels_of_all(frames, KEYS)
        _say(unused_labels(frames, KEYS, IN_MEMORY))
        return [label or None for label in labels]

    def _settled(self, labels: Sequence[Any], places: Sequence[str]) -> list[Any]:
        """Bring labels by name into their form, or refuse all that cannot be brought there."""
        settled, problems = list(labels), []
        for i, label in enumerate(labels):
            if not isinstance(label, Mapping) or not set(label) <= set(KINDS):
                continue
            given = {kind: value for kind, value in label.items() if value is not None}
            try:
                settled[i] = as_label(given, self._atoms[i])
            except DataError as error:
                problems.append(f"{places[i]}: {error}")
        raise_for(problems, "cannot be used")
        return settled

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
        """Take structures that carry their labels, as ASE's calculators and readers leave them.

        Parameters
        ----------
        atoms
            The structures.
        energy_key, forces_key, stress_key, virial_key, target_key
            As in `from_files`.
        """
        structures = list(atoms)
        wrong = [type(a).__name__ for a in structures if not hasattr(a, "get_atomic_numbers")]
        if wrong:
            raise DataError(f"Expected ase.Atoms, got {wrong[0]}.")
        keys = _given(energy=energy_key, forces=forces_key, stress=stress_key, virial=virial_key)
        check_keys(keys)
        frames = [Frame.of(a, f"structure {i}") for i, a in enumerate(structures, start=1)]
        return cls._read(frames, IN_MEMORY, keys, target_key)

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
        require_target: Required = False,
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
            Whether a structure without any label is refused; with ``"column"`` single structures
            may be without, as where each label is that of one of several heads.
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
        frames = [
            Frame.of(atoms, f"{path}, structure {i}")
            for path in paths
            for i, atoms in enumerate(read_frames(path), start=1)
        ]
        others = f" and {counted(len(paths) - 1, 'other file')}" if len(paths) > 1 else ""
        where = f"{paths[0]}{others}" if paths else ""
        dataset = cls._read(frames, where, keys, target_key, leave_out=leave_out, optional=optional)
        dataset._columns |= noted(require_target)
        if require_target is True:
            _refuse_unlabelled(frames, dataset.targets)
        return dataset

    @classmethod
    def _read(
        cls,
        frames: Sequence[Frame],
        where: str,
        named: dict[str, str],
        target_key: str | None,
        *,
        leave_out: Sequence[str] = (),
        optional: Collection[str] = (),
    ) -> AtomsDataset:
        asked = named | ({"target": target_key} if target_key else {})
        if frames:
            _check_names([n for kind, n in asked.items() if kind not in optional], frames, where)
        targets: list[Any]
        shape = None
        if target_key is not None:
            targets = [frame.get(target_key) for frame in frames]
            shape = label_shape(frames, target_key)
        else:
            names = _names_of(named, leave_out)
            targets = list(labels_of_all(frames, names))
            _say(unused_labels(frames, names, where, ignored=_with_others(leave_out)))
            _say(_without_volume(frames, targets, where))
            _say(_conflicts(frames, targets, where))
        structures = [frame.atoms for frame in frames]
        dataset = cls(
            structures, targets, ids=_ids_of(structures, where), metadata=_plain_columns(frames),
            origins=[frame.place for frame in frames],
            columns={f"{k}_key": v for k, v in asked.items()},
        )  # fmt: skip
        dataset.label_shape = shape
        return dataset

    # --- a map-style data set --------------------------------------------------------------------

    def __getitem__(self, index: int) -> Sample:
        index = self.place(index)
        return Sample(
            id=self.ids[index],
            atoms=self._atoms[index],
            target=self._table.targets[index],
            metadata=self.row(index),
            origin=self._origins[index],
        )

    def __repr__(self) -> str:
        n = sum(len(a) for a in self._atoms)
        return f"AtomsDataset({counted(len(self), 'structure')}, {counted(n, 'atom')})"

    @property
    def targets(self) -> list[Any]:
        """Labels in order."""
        return list(self._table.targets)

    @property
    def atoms(self) -> list[Any]:
        """Structures in order."""
        return list(self._atoms)

    @property
    def origins(self) -> list[str]:
        """File and place each was read from; empty texts where that is not known."""
        return list(self._origins)

    @property
    def lengths(self) -> np.ndarray:
        """Atoms of each structure."""
        return np.array([len(a) for a in self._atoms])

    def sequences(self) -> list[tuple[str, ...]]:
        """Return a text of the positions of each structure: equal ones stay together in splits."""
        return [(_content(a),) for a in self._atoms]

    @property
    def input_settings(self) -> dict[str, Any]:
        """Settings that read labels; a checkpoint keeps them."""
        return {"kind": "atoms", **self._columns}

    def _take(self, places: np.ndarray) -> None:
        self._atoms = [self._atoms[i] for i in places]
        self._origins = [self._origins[i] for i in places]


def _check_lengths(n: int, given: Mapping[str, Sequence[Any]]) -> None:
    wrong = {name: len(values) for name, values in given.items() if len(values) != n}
    if wrong:
        raise DataError(f"{counted(n, 'structure')}, but {wrong}. Give one for each.")


def _given(**names: str | None) -> dict[str, str]:
    """Return the names of labels that the caller gives."""
    return {kind: name for kind, name in names.items() if name is not None}


def _names_of(named: Mapping[str, str], leave_out: Sequence[str]) -> dict[str, str]:
    """Return the name of each kind of label that is read; virials take the place of a stress."""
    names = {**KEYS, **named}
    if "virial" in named:
        del names["stress"]
    if "stress" in leave_out:
        names.pop("virial", None)
    return {kind: name for kind, name in names.items() if kind not in leave_out}


def _with_others(kinds: Iterable[str]) -> set[str]:
    """Return kinds of labels, and those that say the same with another sign or unit."""
    others = {"stress": "virial", "forces": "gradient"}
    return {name for kind in kinds for name in (kind, others.get(kind, kind))}


def _say(texts: Iterable[str]) -> None:
    for text in texts:
        logger.warning("%s", text)


def _without_volume(frames: Sequence[Frame], labels: Sequence[Any], where: str) -> Iterator[str]:
    pairs = zip(frames, labels, strict=True)
    flat = sum("stress" in label and not volume_of(frame.atoms) for frame, label in pairs)
    if flat:
        yield (
            f"{where}: {flat:,} of {len(frames):,} structures have a stress or virial, which "
            f"is not used: they are not periodic in all directions, so they have no volume."
        )


def _conflicts(frames: Sequence[Frame], labels: Sequence[Any], where: str) -> Iterator[str]:
    """Find equal structures with different energies: often two levels of theory in one file."""
    known: dict[str, tuple[Frame, float]] = {}
    pairs = []
    for frame, label in zip(frames, labels, strict=True):
        energy = label.get("energy")
        if energy is None or np.isnan(energy):
            continue
        earlier = known.setdefault(_content(frame.atoms), (frame, energy))
        if not np.isclose(earlier[1], energy, rtol=1e-9, atol=SAME_ENERGY):
            pairs.append((*earlier, frame, energy))
    if pairs:
        before, energy, after, other = pairs[0]
        yield (
            f"{where}: {counted(len(pairs), 'structure')} with another energy than an equal "
            f"structure before ({before.place}: {energy:.6g}; {after.place}: {other:.6g}). If they "
            f"are of two levels of theory, give them two names."
        )


def _content(atoms: Any) -> str:
    """Return a text that is the same for equal structures."""
    return Sample(id="", atoms=atoms).content_key()


def _ids_of(frames: Sequence[Any], where: str) -> list[str]:
    """Return the ``id`` or ``name`` of each structure; numbers where these are not unique."""
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


def _check_names(names: Sequence[str], frames: Sequence[Frame], where: str) -> None:
    """Refuse a name of a label that no structure has."""
    known = names_in(frames)
    for name in names:
        if all(frame.get(name) is None for frame in frames):
            raise DataError(
                f"No structure of {where} has {name!r}. They have: "
                f"{', '.join(known) or 'no labels'}.{nearest(name, known)}"
            )


def _refuse_unlabelled(frames: Sequence[Frame], targets: Sequence[Any]) -> None:
    """Refuse structures without any label."""
    bare = [frame.place for frame, t in zip(frames, targets, strict=True) if not _labelled(t)]
    if bare:
        raise DataError(
            f"{counted(len(bare), 'structure')} without a label:\n{listing(bare, MANY)}\n"
            f"They have: {', '.join(names_in(frames)) or 'no labels'}. Name the label with "
            f"--energy-key or --target-key."
        )


def _labelled(target: Any) -> bool:
    """Return True for a label with any number."""
    if isinstance(target, Mapping):
        return any(np.isfinite(value).any() for value in target.values())
    return not is_missing(target)


def _plain_columns(frames: Sequence[Frame]) -> dict[str, list[Any]]:
    """Return the texts and numbers that every structure has."""
    kinds = str | int | float | bool | np.number
    columns = {name: [f.atoms.info.get(name) for f in frames] for name in names_in(frames)}
    return {
        name: values
        for name, values in columns.items()
        if name != "id" and all(isinstance(value, kinds) for value in values)
    }
