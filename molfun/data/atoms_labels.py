"""Labels of structures of atoms: their names, forms and shapes.

A virial becomes a stress here: ``stress = -virial / volume``. Stress is positive under tension, as
in ASE: the derivative of the energy by the strain, for each volume.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from molfun.errors import ConfigError, DataError
from molfun.text import counted, listing

KEYS = {"energy": "energy", "forces": "forces", "stress": "stress"}
"""Names of labels where no others are given: ASE's own."""
KINDS = (*KEYS, "virial")
LOPSIDED = 0.1
"""Largest asymmetry of a stress, as a share of its largest number."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_FORCES = {"f", "force", "forces", "frc"}
_GRADIENTS = {"grad", "grads", "gradient", "gradients"}
_ENERGIES = {"e", "etot", "energy", "energies", "toten"}
_NO_LABEL = {
    "cut", "cutoff", "ecut", "err", "error", "fermi", "gap", "homo", "id", "index", "kinetic",
    "lumo", "mask", "max", "sigma", "std", "threshold", "tol", "tolerance", "unit", "units",
    "uncertainty", "var", "variance", "weight", "weights",
}  # fmt: skip
"""Words that tell a setting, a measure of quality or another quantity from a label."""
_SHARES = ("energies", "stresses")
"""ASE's names for the shares of single atoms."""


@dataclass(frozen=True)
class Frame:
    """A structure with all that it carries by name.

    Parameters
    ----------
    atoms
        The structure, an ``ase.Atoms``.
    columns
        What a calculator left, or columns of the file.
    place
        Where it was read, for messages.
    """

    atoms: Any
    columns: Mapping[str, Any]
    place: str

    @classmethod
    def of(cls, atoms: Any, place: str) -> Frame:
        """Make one of a structure, without results of a calculator that are of other positions."""
        return cls(atoms, _columns_of(atoms), place)

    def get(self, name: str | None) -> Any:
        """Return the value that the structure carries under that name; None if there is none."""
        return None if name is None else self.columns.get(name)

    @property
    def size(self) -> str:
        """Number of atoms, for messages."""
        return counted(len(self.atoms), "atom")


def _columns_of(atoms: Any) -> dict[str, Any]:
    calculator = atoms.calc
    results: Mapping[str, Any] = getattr(calculator, "results", None) or {}
    if results and hasattr(calculator, "check_state") and calculator.check_state(atoms):
        results = {}
    columns: dict[str, Any] = {}
    for place in (results, atoms.info, atoms.arrays):
        for name in place:
            columns.setdefault(name, place[name])
    return columns


def names_in(frames: Sequence[Frame]) -> list[str]:
    """Return the names that occur in any structure, except elements and positions."""
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    return [name for name in names if name not in ("numbers", "positions")]


def check_keys(names: Mapping[str, str]) -> None:
    """Refuse names of labels that say they are something else.

    Parameters
    ----------
    names
        Given name of each kind.

    Raises
    ------
    ConfigError
        Naming sign and unit, and what to do.
    """
    if "stress" in names and "virial" in names:
        raise ConfigError(
            f"stress_key={names['stress']!r} and virial_key={names['virial']!r} (--stress-key, "
            f"--virial-key): a virial is read as stress, so give one of them."
        )
    for kind, name in names.items():
        mistake = _MISTAKES.get((kind, kind_of(name)))
        if mistake is not None:
            raise ConfigError(mistake.format(name=name, quoted=repr(name)))
        if kind == "energy" and per_atom(name):
            raise ConfigError(
                f"energy_key={name!r} (--energy-key) names an energy per atom, and labels are "
                f"energies of whole structures. Multiply it by the number of atoms, and write it "
                f"under another name."
            )


_MISTAKES: dict[tuple[str, str | None], str] = {
    ("stress", "virial"): (
        "stress_key={quoted} (--stress-key) names a virial: an energy (eV), of the other "
        "sign. Give virial_key={quoted} (--virial-key {name}), which is read as stress = "
        "-virial / volume; if it is a stress in eV/angstrom^3, rename it."
    ),
    ("virial", "stress"): (
        "virial_key={quoted} (--virial-key) names a stress. Give stress_key={quoted} "
        "(--stress-key {name}); if it is a virial, rename it."
    ),
    ("forces", "gradient"): (
        "forces_key={quoted} (--forces-key) names gradients of the energy, and forces are "
        "minus the gradient. Write them with the other sign under another name."
    ),
}
"""Error for an argument of one kind with a name that says another kind."""


_SIGNS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("stress", lambda word: word.startswith("stress")),
    ("virial", lambda word: word.startswith("virial")),
    ("gradient", lambda word: word in _GRADIENTS),
    ("forces", lambda word: word in _FORCES or word.endswith(("force", "forces"))),
    ("energy", lambda word: word in _ENERGIES or word.endswith("energy")),
)
"""Kinds of labels, with a test of the words of a name; the first that is true decides."""


def kind_of(name: str) -> str | None:
    """Return the kind of label that a name stands for, by its words; None if it is none.

    Examples
    --------
    >>> [kind_of(n) for n in ("REF_forces", "F", "dft_virials", "totalEnergy", "cut_off_energy")]
    ['forces', 'forces', 'virial', 'energy', None]
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if name in _SHARES or _NO_LABEL & set(words):
        return None
    found = (kind for kind, names_it in _SIGNS if any(map(names_it, words)))
    return next(found, "energy" if name == "U0" else None)


def per_atom(name: str) -> bool:
    """Return True for a name that says that its number is per atom.

    Examples
    --------
    >>> per_atom("energy_per_atom"), per_atom("atomization_energy")
    (True, False)
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    return "peratom" in words or ("per" in words and "atom" in words)


# --- labels --------------------------------------------------------------------------------------


def labels_of_all(frames: Sequence[Frame], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return energy, forces and stress of each structure, as far as it has them.

    Parameters
    ----------
    frames
        The structures.
    names
        Name of each kind.

    Raises
    ------
    DataError
        Listing every structure with a label that cannot be one.
    """
    found, problems = [], []
    for frame in frames:
        label = {kind: frame.get(name) for kind, name in names.items()}
        given = {kind: value for kind, value in label.items() if value is not None}
        try:
            found.append(as_label(given, frame.atoms, names))
        except DataError as error:
            problems.append(f"{frame.place}: {error}")
    raise_for(problems, "cannot be used")
    return found


def raise_for(problems: Sequence[str], what: str) -> None:
    """Raise a `DataError` that lists structures whose labels are wrong; none if there are none."""
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        n = counted(len(problems), "structure")
        raise DataError(f"{n} with labels that {what}:\n{listing(problems)}")


def as_label(
    given: Mapping[str, Any], atoms: Any, names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the labels of one structure in the form that tasks take.

    Parameters
    ----------
    given
        ``energy``, ``forces``, ``stress`` or ``virial`` (six numbers in Voigt's order xx, yy, zz,
        yz, xz, xy, nine, or a matrix), any of them missing.
    atoms
        The structure.
    names
        What they are called, for messages.

    Returns
    -------
    dict
        ``energy`` (a float), ``forces`` (atoms, 3) and ``stress`` (3, 3), as far as given.

    Raises
    ------
    DataError
        If one has another shape, or is infinite.
    """
    names, label = names or {}, dict(given)
    for kind in label:
        label[kind] = _numbers(label[kind], names.get(kind, kind))
    if "energy" in label:
        label["energy"] = _as_energy(label["energy"], names.get("energy", "energy"))
    if "forces" in label and label["forces"].shape != (len(atoms), 3):
        raise DataError(
            f"{names.get('forces', 'forces')!r} are no forces, which are (atoms, 3): the shape is "
            f"{label['forces'].shape} for {counted(len(atoms), 'atom')}."
        )
    for kind in ("stress", "virial"):
        if kind in label:
            label[kind] = _as_matrix(label[kind], names.get(kind, kind))
    if "virial" in label:
        virial = label.pop("virial")
        volume = volume_of(atoms)
        # without a volume there is no stress, and the data set says how many lack one
        label["stress"] = -virial / volume if volume else np.full((3, 3), np.nan)
    return label


def _as_energy(value: np.ndarray, name: str) -> float:
    if value.size != 1:
        raise DataError(
            f"{name!r} is no energy, which is one number: it has the shape {value.shape}."
        )
    return float(value.reshape(()))


def volume_of(atoms: Any) -> float:
    """Return the volume (angstrom^3) of a structure periodic in all directions; else 0."""
    return float(atoms.cell.volume) if atoms.pbc.all() else 0.0


def as_array(value: Any) -> np.ndarray:
    """Return the value as an array; one of objects where it is no array."""
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        return np.array(None)


def _numbers(value: Any, name: str) -> np.ndarray:
    array = as_array(value)
    if array.dtype.kind not in "fiu":
        text = repr(value)
        raise DataError(f"{name!r} is {text[:60]}, and a label is made of numbers.")
    if np.isinf(array).any():
        raise DataError(f"{name!r} is infinite. Write NaN where there is no label.")
    return array.astype(np.float64)


def _as_matrix(tensor: np.ndarray, name: str) -> np.ndarray:
    """Return Voigt's six numbers, nine, or a matrix, as a matrix."""
    if tensor.size == 6:
        xx, yy, zz, yz, xz, xy = tensor.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if tensor.size != 9:
        raise DataError(f"{name!r} has {counted(tensor.size, 'number')}; it takes 6 or 9.")
    matrix = tensor.reshape(3, 3)
    if is_lopsided(matrix):
        raise DataError(f"{name!r} is not symmetric, which a stress and a virial are.")
    return matrix


def is_lopsided(matrix: np.ndarray) -> bool:
    """Return True for a matrix further from symmetric than rounding explains.

    Examples
    --------
    >>> is_lopsided(np.eye(3)), is_lopsided(np.arange(9.0).reshape(3, 3))
    (False, True)
    """
    return bool(np.abs(matrix - matrix.T).max() > LOPSIDED * np.abs(matrix).max())


# --- labels of other kinds -----------------------------------------------------------------------

_PER_ATOM = ("charges", "magmoms", "forces", "energies", "stresses", "born_effective_charges")
"""Results of ASE's calculators that are one row per atom."""


@dataclass(frozen=True)
class LabelShape:
    """Shape of the labels of one name.

    Parameters
    ----------
    shape
        Of one label: ``()`` for one number, ``(3,)`` for a vector, ``(3, 3)`` for a matrix.
    per_atom
        Whether each atom has one, rather than each structure.

    Examples
    --------
    >>> print(LabelShape((3,), per_atom=True), "|", LabelShape((), per_atom=False))
    3 numbers per atom | one number per structure
    """

    shape: tuple[int, ...]
    per_atom: bool

    def fits(self, array: np.ndarray, n_atoms: int) -> bool:
        """Return True for a label of this shape."""
        fits_atoms = not self.per_atom or len(array) == n_atoms
        return fits_atoms and _one(array, of_atoms=self.per_atom) == self.shape

    def __str__(self) -> str:
        n = int(np.prod(self.shape))
        size = "one number" if n == 1 else f"{' x '.join(map(str, self.shape))} numbers"
        return f"{size} per {'atom' if self.per_atom else 'structure'}"


def label_shape(frames: Sequence[Frame], key: str) -> LabelShape | None:
    """Return the shape that all labels of one name have; None where they are no numbers.

    Raises
    ------
    DataError
        Naming the structures whose labels have another shape than the first.
    """
    rows = [(frame, as_array(frame.get(key))) for frame in frames if frame.get(key) is not None]
    if not rows or any(array.dtype.kind not in "fiu" for _, array in rows):
        return None
    of_atoms = _is_per_atom(rows, key)
    found = LabelShape(_one(rows[0][1], of_atoms=of_atoms), of_atoms)
    problems = [
        f"{frame.place}: {key!r} has the shape {array.shape} for {frame.size}"
        for frame, array in rows
        if not found.fits(array, len(frame.atoms))
    ]
    if problems:
        n = counted(len(problems), "structure")
        raise DataError(
            f"{n} whose label {key!r} has another shape than that of {rows[0][0].place} "
            f"({found}):\n{listing(problems)}\nA label has one shape in all structures."
        )
    return found


def _one(array: np.ndarray, *, of_atoms: bool) -> tuple[int, ...]:
    """Return the shape of the label of one structure or atom."""
    shape = array.shape[1:] if of_atoms else array.shape
    return () if shape == (1,) else shape


def _is_per_atom(rows: Sequence[tuple[Frame, np.ndarray]], key: str) -> bool:
    """Return True for columns of atoms, and for values as long as the structure has atoms."""
    if key in _PER_ATOM or all(key in frame.atoms.arrays for frame, _ in rows):
        return True
    follows = all(array.shape[:1] == (len(frame.atoms),) for frame, array in rows)
    return follows and len({len(frame.atoms) for frame, _ in rows}) > 1
