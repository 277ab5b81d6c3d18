"""Structures of atoms with energies, forces or other labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from molfun.data.base import SampleDataset
from molfun.data.words import counted
from molfun.errors import DataError, MissingDependencyError, listing, nearest
from molfun.sample import Sample, is_missing

KEYS = {"energy": "energy", "forces": "forces", "stress": "stress"}
MANY = 5


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

    default_batch_size = 16
    """Structures in a batch where no loader says otherwise; metatrain's default."""

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
        if targets is None:
            targets = [label or None for label in _labels_of_all(self._atoms, KEYS, origins)]
        self._targets = list(targets)
        self._ids = [f"structure_{i + 1}" for i in range(n)] if ids is None else list(map(str, ids))
        self._metadata = {key: list(values) for key, values in (metadata or {}).items()}
        self._origins = [""] * n if origins is None else list(origins)
        self._columns = dict(columns or {})
        lengths: dict[str, list[Any]] = {
            "targets": self._targets,
            "ids": self._ids,
            **self._metadata,
        }
        wrong = {name: len(values) for name, values in lengths.items() if len(values) != n}
        if wrong:
            raise DataError(f"{counted(n, 'structure')}, but {wrong}. Give one for each.")
        self._check()

    def _check(self) -> None:
        """Forces fit the atoms."""
        problems = []
        for name, atoms, target in zip(self.ids, self._atoms, self._targets, strict=True):
            forces = target.get("forces") if isinstance(target, Mapping) else None
            if forces is not None and np.shape(forces) != (len(atoms), 3):
                problems.append(f"{name}: forces {np.shape(forces)} for {len(atoms)} atoms")
        if problems:
            raise DataError(
                f"{counted(len(problems), 'structure')} whose forces do not fit:\n"
                f"{listing(problems)}\nForces are (atoms, 3)."
            )

    @classmethod
    def from_atoms(cls, atoms: Iterable[Any], **keys: str | None) -> AtomsDataset:
        """Structures that carry their labels, as ASE's calculators and readers leave them.

        Parameters
        ----------
        atoms
            The structures.
        keys
            As in `from_files`.
        """
        frames = list(atoms)
        wrong = [type(a).__name__ for a in frames if not hasattr(a, "get_atomic_numbers")]
        if wrong:
            raise DataError(f"Expected ase.Atoms, got {wrong[0]}.")
        return cls._read(frames, [f"structure {i + 1}" for i in range(len(frames))], **keys)

    @classmethod
    def from_files(
        cls,
        paths: str | Path | Sequence[str | Path],
        *,
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
        target_key: str | None = None,
        require_target: bool = False,
    ) -> AtomsDataset:
        """Read extended-xyz files, or any other that ASE reads.

        Parameters
        ----------
        paths
            One file or several.
        energy_key, forces_key, stress_key
            Names of the labels where they are not ``energy`` (eV), ``forces`` (eV/angstrom) and
            ``stress`` (eV/angstrom^3).
        target_key
            Name of another label, of the structure or of each atom, in place of all these.
        require_target
            Whether a structure without any label is refused.

        Raises
        ------
        DataError
            If a file cannot be read or has no such label; the text names what there is.
        """
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        frames, origins = [], []
        for path in paths:
            read = read_frames(path)
            frames += read
            origins += [f"{path}, structure {i + 1}" for i in range(len(read))]
        dataset = cls._read(
            frames,
            origins,
            energy_key=energy_key,
            forces_key=forces_key,
            stress_key=stress_key,
            target_key=target_key,
        )
        bare = [o for o, t in zip(origins, dataset._targets, strict=True) if not _labelled(t)]
        if require_target and bare:
            raise DataError(
                f"{counted(len(bare), 'structure')} without a label:\n{listing(bare, MANY)}\n"
                f"They have: {_names_in(frames)}. Name the label with --energy-key or --target-key."
            )
        return dataset

    @classmethod
    def _read(
        cls,
        frames: list[Any],
        origins: list[str],
        *,
        target_key: str | None = None,
        **keys: str | None,
    ) -> AtomsDataset:
        named = {k.removesuffix("_key"): v for k, v in keys.items() if v is not None}
        wrong = sorted(set(named) - set(KEYS))
        if wrong:
            raise DataError(f"{wrong[0]}_key is no setting; there are {', '.join(KEYS)}.")
        for name in [*named.values(), *([target_key] if target_key else [])]:
            if frames and not any(columns_of(a).get(name) is not None for a in frames):
                known = _all_names(frames)
                raise DataError(
                    f"No structure has {name!r}. They have: {_names_in(frames)}."
                    f"{nearest(name, known)}"
                )
        targets: list[Any]
        if target_key is not None:
            targets = [columns_of(a).get(target_key) for a in frames]
        else:
            targets = _labels_of_all(frames, {**KEYS, **named}, origins)
        ids = [str(a.info.get("id", a.info.get("name", i + 1))) for i, a in enumerate(frames)]
        if len(set(ids)) != len(ids):
            ids = [str(i + 1) for i in range(len(frames))]
        columns = {**named, **({"target": target_key} if target_key else {})}
        plain = _plain_columns(frames)
        return cls(
            frames, targets, ids=ids, metadata=plain, origins=origins,
            columns={f"{k}_key": v for k, v in columns.items()},
        )  # fmt: skip

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
    def metadata(self) -> pd.DataFrame:
        """Further columns, a row each."""
        return pd.DataFrame(self._metadata, index=range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Atoms of each structure."""
        return np.array([len(a) for a in self._atoms])

    def sequences(self) -> list[tuple[str, ...]]:
        """What makes two structures the same, for splits: all their positions."""
        return [(Sample(id="", atoms=a).content_key(),) for a in self._atoms]

    @property
    def input_settings(self) -> dict[str, Any]:
        """How labels are read, for a checkpoint."""
        return {"kind": "atoms", **self._columns}

    def subset(self, indices: Sequence[int] | np.ndarray) -> AtomsDataset:
        """The structures at these positions."""
        rows = [int(i) for i in indices]

        def take(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in rows]

        return AtomsDataset(
            take(self._atoms),
            take(self._targets),
            ids=take(self.ids),
            metadata={key: take(values) for key, values in self._metadata.items()},
            origins=take(self._origins),
            columns=self._columns,
        )


def read_frames(path: str | Path) -> list[Any]:
    """All structures of a file.

    Raises
    ------
    DataError
        If it cannot be read, or is empty.
    """
    try:
        from ase.io import iread
    except ImportError as error:
        raise MissingDependencyError(
            "Structures of atoms need the package ase. Install it: pip install 'molfun[pet]'"
        ) from error
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    frames: list[Any] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames.extend(iread(path, index=":"))
    except Exception as error:  # each of ASE's eighty readers fails in ways of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        place = f" behind structure {len(frames)}" if frames else ""
        raise DataError(f"{path} cannot be read as structures{place}: {reason}") from error
    if not frames:
        raise DataError(f"{path} has no structure.")
    return frames


def columns_of(atoms: Any) -> dict[str, Any]:
    """All that a structure carries by name: what a calculator left, or columns of the file.

    Results of a calculator that was asked about other positions are left out.
    """
    calculator = atoms.calc
    results: Mapping[str, Any] = getattr(calculator, "results", None) or {}
    if results and hasattr(calculator, "check_state") and calculator.check_state(atoms):
        results = {}
    columns: dict[str, Any] = {}
    for place in (results, atoms.info, atoms.arrays):
        for name in place:
            columns.setdefault(name, place[name])
    return columns


def _labels_of_all(
    frames: Sequence[Any], names: Mapping[str, str], origins: Sequence[str] | None
) -> list[dict[str, Any]]:
    found = []
    for i, atoms in enumerate(frames):
        try:
            found.append(_labels(atoms, names))
        except DataError as error:
            place = origins[i] if origins else f"structure {i + 1}"
            raise DataError(f"{place}: {error}") from error
    return found


def _labels(atoms: Any, names: Mapping[str, str]) -> dict[str, Any]:
    columns = columns_of(atoms)
    found = {kind: columns.get(name) for kind, name in names.items()}
    label = {kind: value for kind, value in found.items() if value is not None}
    if "stress" in label:
        label["stress"] = _as_matrix(np.asarray(label["stress"], dtype=float))
    if "energy" in label:
        energy = np.asarray(label["energy"])
        if energy.size != 1 or energy.dtype.kind not in "fiu":
            raise DataError(f"An energy is one number, got {label['energy']!r}.")
        label["energy"] = float(energy.reshape(()))
    return label


def _as_matrix(stress: np.ndarray) -> np.ndarray:
    """A stress in Voigt's six numbers, nine, or a matrix, as a matrix."""
    if stress.size == 6:
        xx, yy, zz, yz, xz, xy = stress.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if stress.size != 9:
        raise DataError(f"A stress has 6 or 9 numbers, got {stress.size}.")
    return stress.reshape(3, 3)


def _labelled(target: Any) -> bool:
    return bool(target) if isinstance(target, Mapping) else not is_missing(target)


def _all_names(frames: Sequence[Any]) -> list[str]:
    names: dict[str, None] = {}
    for atoms in frames[:MANY]:
        names.update(dict.fromkeys(columns_of(atoms)))
    return [name for name in names if name not in ("numbers", "positions")]


def _names_in(frames: Sequence[Any]) -> str:
    return ", ".join(_all_names(frames)) or "no labels"


def _plain_columns(frames: Sequence[Any]) -> dict[str, list[Any]]:
    """Texts and numbers that every structure has."""
    names = [n for n in _all_names(frames) if all(n in a.info for a in frames)]
    kinds = str | int | float | bool | np.number
    return {
        n: [a.info[n] for a in frames]
        for n in names
        if n != "id" and all(isinstance(a.info[n], kinds) for a in frames)
    }
