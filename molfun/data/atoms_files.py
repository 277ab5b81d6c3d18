"""Files of structures of atoms: extended xyz frame by frame, all other formats through ASE.

ASE parses the frames. What it would pass over (frames after a blank line, columns that no property
names, a key that is there twice) is found here before.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molfun._io import atomic_path
from molfun._limits import Limit, read_bytes
from molfun._paths import as_path
from molfun.data.atoms_labels import is_lopsided
from molfun.errors import DataError, MissingDependencyError, MolfunError
from molfun.text import counted

logger = logging.getLogger(__name__)

MAX_BYTES = Limit("ATOMS_BYTES", 2**31)
"""Largest file of structures, unpacked."""
MAX_RATIO = Limit("ATOMS_GZIP_RATIO", 100, "unpacked bytes per packed byte")
"""Frames of one trajectory pack 3 to 30 times."""
MAX_LINE = Limit("ATOMS_LINE_BYTES", 2**20, "bytes in one line")
"""ASE parses the second line of a frame letter by letter."""
MAX_ATOMS = Limit("ATOMS_PER_STRUCTURE", 10**6, "atoms in one structure")
MAX_STRUCTURES = Limit("ATOMS_STRUCTURES", 2 * 10**6, "structures")
"""An ``ase.Atoms`` takes a few kilobytes, however small it is."""
XYZ = (".xyz", ".extxyz")
PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
"""Suffixes of packed files that ASE reads, and the modules that unpack them."""
PLAIN = "species:S:1:pos:R:3"
"""Columns of a frame that names none."""
CELL_KEYS = {"lattice": "Lattice", "cell": "Lattice", "pbc": "pbc", "properties": "Properties"}
"""Keys of the second line that are read in one spelling only."""

_COUNT = re.compile(rb"\s*(\d{1,18})\s*", re.ASCII)
_OPENS = re.compile(r"[\"'{\[]")
_QUOTED = {
    '"': re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"'),
    "'": re.compile(r"'[^']*'"),
    "{": re.compile(r"\{[^}]*\}"),
    "[": re.compile(r"\[[^\]]*\]"),
}
_NUMBER = re.compile(r"[+-]?\d+\.\d+([eE][+-]?\d+)?", re.ASCII)
_TENSOR = re.compile(r"(?<![^\s])(stress|virial)(?=\s*=)")


def read_frames(path: str | Path) -> list[Any]:
    """Read all structures of a file, as ``ase.Atoms``.

    Parameters
    ----------
    path
        Extended xyz (``.xyz``, ``.extxyz``), or any other format that ASE reads; ``.gz``,
        ``.bz2`` and ``.xz`` are unpacked.

    Raises
    ------
    DataError
        If the file cannot be read or is empty; the text names structure and line.
    UnsafeFileError
        If it is larger than `MAX_BYTES`, `MAX_LINE`, `MAX_ATOMS` or `MAX_STRUCTURES`.
    """
    try:
        import ase  # noqa: F401  (to be there)
    except ImportError as error:
        raise MissingDependencyError(
            "Structures of atoms need the package ase. Install it: pip install 'molfun[pet]'"
        ) from error
    path = as_path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    frames: list[Any] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for atoms in _frames_of(path):
                frames.append(atoms)
                MAX_ATOMS.check(len(atoms), f"{path}, structure {len(frames)}")
                MAX_STRUCTURES.check(len(frames), path)
    except MolfunError:
        raise
    except Exception as error:  # each of ASE's eighty readers fails in ways of its own
        place = f" after structure {len(frames)}" if frames else ""
        raise DataError(f"{path} cannot be read as structures{place}: {_reason(error)}") from error
    if not frames:
        raise DataError(f"{path} has no structure.")
    return frames


def _frames_of(path: Path) -> Iterator[Any]:
    name = path.name.lower()
    packed = Path(name).suffix if Path(name).suffix in PACKED else ""
    if Path(name.removesuffix(packed)).suffix in XYZ:
        yield from _XYZ(path, _content(path)).frames()
        return
    if packed:
        _content(path)  # ASE unpacks it again, without a limit
    MAX_BYTES.check(path.stat().st_size, path)
    from ase.io import iread

    yield from iread(path, index=":")


def _content(path: Path) -> bytes:
    """Return the bytes of a file, unpacked."""
    module = PACKED.get(path.suffix.lower())
    if module in (None, "gzip"):
        return read_bytes(path, MAX_BYTES, ratio=MAX_RATIO)
    import importlib

    try:
        with importlib.import_module(str(module)).open(path) as file:
            content: bytes = file.read(MAX_BYTES.value + 1)
    except MolfunError:
        raise
    except Exception as error:  # lzma and bz2 have more than EOFError and OSError
        raise DataError(f"{path} is damaged ({error}). Download or copy it again.") from error
    MAX_BYTES.check(len(content), path)
    return content


def _key_values(text: str) -> dict[str, Any]:
    from ase.io.extxyz import key_val_str_to_dict

    try:
        return dict(key_val_str_to_dict(text)) if text.strip() else {}
    except ValueError:
        # ASE insists on nine numbers for these two; Voigt's six are as usual
        found = key_val_str_to_dict(_TENSOR.sub(r"\1_molfun", text))
        return {name.removesuffix("_molfun"): value for name, value in found.items()}


class _XYZ:
    """The frames of an xyz file.

    Parameters
    ----------
    path
        The file, for messages.
    content
        Its bytes.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{path} is text in UTF-16. Save it as UTF-8.")
        if b"\r" in content:
            content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._lines = io.BytesIO(content.removeprefix(b"\xef\xbb\xbf"))
        self._line = self._structure = 0
        self._unnamed: Counter[tuple[int, int]] = Counter()
        self._misspelt: Counter[str] = Counter()
        self._bare: list[tuple[int, str]] = []

    def frames(self) -> Iterator[Any]:
        """Parse one after the other."""
        while (header := self._next()) is not None:
            if not header.strip():
                continue
            self._structure += 1
            yield self._frame(header)
        for text in self._notes():
            logger.warning("%s", text)

    def _next(self) -> bytes | None:
        """Return the next line without its end; None after the last."""
        cap = MAX_LINE.value
        line = self._lines.readline(cap + 1)
        if not line:
            return None
        self._line += 1
        if len(line) > cap:
            raise MAX_LINE.error(f"{self._path}, line {self._line}")
        if b"\0" in line:
            raise DataError(f"{self._path}, line {self._line} has NUL bytes: this is no text file.")
        return line.rstrip(b"\n")

    def _fail(self, text: str, line: int | None = None) -> DataError:
        place = f"structure {self._structure}, line {line or self._line}"
        return DataError(f"{self._path} cannot be read as structures: {place}: {text}")

    def _frame(self, header: bytes) -> Any:
        match = _COUNT.fullmatch(header)
        if match is None:
            raise self._fail(
                f"expected the number of atoms, found {_shown(header)}. Each structure has that "
                f"number, a line of keys, and a line for each atom."
            )
        first, n_atoms = self._line, int(match[1])
        MAX_ATOMS.check(n_atoms, f"{self._path}, line {first}")
        comment = self._next()
        rows = self._rows(n_atoms, first)
        cell = self._cell_vectors()
        text = self._text(comment or b"", first + 1)
        info = {} if cell else self._keys(text, first + 1)
        if not cell:
            self._check_columns(info, rows, first + 2)
        body = [self._text(row, first + 2 + i) for i, row in enumerate([*rows, *cell])]
        return self._parse([str(n_atoms), text, *body], info, first)

    def _rows(self, n_atoms: int, first: int) -> list[bytes]:
        rows: list[bytes] = []
        while len(rows) < n_atoms:
            row = self._next()
            if row is None:
                raise self._fail(
                    f"{counted(n_atoms, 'atom')} announced, and the file ends after {len(rows)}.",
                    first,
                )
            rows.append(row)
        return rows

    def _cell_vectors(self) -> list[bytes]:
        """Read lines ``VEC1 x y z`` after the atoms, as AMS writes them."""
        found: list[bytes] = []
        while len(found) < 3:
            place, line = self._lines.tell(), self._line
            row = self._next()
            if row is None or not row.lstrip().startswith(b"VEC"):
                self._lines.seek(place)
                self._line = line
                break
            found.append(row)
        return found

    def _text(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fail(
                f"byte {error.start + 1} is no UTF-8. Save the file as UTF-8.", number
            ) from error

    def _keys(self, text: str, line: int) -> dict[str, Any]:
        """Read the second line as ASE understands it, and note what looks misspelt."""
        self._refuse_twice(text, line)
        try:
            info = _key_values(text)
        except Exception as error:
            raise self._fail(_reason(error), line) from error
        self._check_tensors(info, line)
        self._note_odd(info, line)
        return info

    def _refuse_twice(self, text: str, line: int) -> None:
        tokens = [token for token in _without_quoted(text).split() if "=" in token]
        names = Counter(token.partition("=")[0] for token in tokens)
        twice = [name for name, n in names.items() if name and n > 1]
        if twice:
            raise self._fail(f"the key {twice[0]!r} is there twice. Keep one.", line)

    def _note_odd(self, info: Mapping[str, Any], line: int) -> None:
        """Note keys that look like misspelt ones of the cell, and numbers without a key."""
        self._misspelt.update(
            n for n in info if n.lower() in CELL_KEYS and n not in CELL_KEYS.values()
        )
        bare = [n for n, value in info.items() if value is True and _NUMBER.fullmatch(n)]
        if bare:
            self._bare.append((line, bare[0]))

    def _check_tensors(self, info: Mapping[str, Any], line: int) -> None:
        """Refuse a stress or virial of another size, or a stress that is not symmetric."""
        for name in ("stress", "virial"):
            if name in info and np.size(info[name]) not in (6, 9):
                raise self._fail(
                    f"{name} has {counted(np.size(info[name]), 'value')}; it takes 6 or 9 numbers.",
                    line,
                )
        stress = np.asarray(info.get("stress"))
        # ASE makes six numbers of nine and says nothing
        if stress.size == 9 and stress.dtype.kind in "iuf" and is_lopsided(stress.reshape(3, 3)):
            raise self._fail("stress is not symmetric. Correct its nine numbers.", line)

    def _check_columns(self, info: dict[str, Any], rows: list[bytes], line: int) -> None:
        """Refuse rows with other columns than the properties name, before ASE takes memory."""
        named = str(info.get("Properties", PLAIN))
        counts = named.split(":")[2::3]
        if len(named.split(":")) % 3 or not all(c.isdecimal() and int(c) for c in counts):
            raise self._fail(
                f"Properties={_shown(named)} is no list of NAME:TYPE:COLUMNS, such as {PLAIN}.",
                line - 1,
            )
        promised = sum(map(int, counts))
        for i, row in enumerate(rows):
            found = len(row.split())
            if found < promised:
                raise self._fail(
                    f"{counted(found, 'column')} where Properties={_shown(named)} names "
                    f"{promised:,}.",
                    line + i,
                )
            if found > promised and i == 0:
                self._unnamed[found, promised] += 1

    def _parse(self, lines: list[str], info: dict[str, Any], first: int) -> Any:
        from ase.io.extxyz import read_xyz

        text = io.StringIO("\n".join(lines) + "\n")
        try:
            (atoms,) = read_xyz(text, slice(None), properties_parser=lambda _: info)
        except Exception as error:
            reason = _reason(error)
            if isinstance(error, KeyError):
                reason = f"{reason} is no element"
            raise self._fail(reason, first) from error
        return atoms

    def _notes(self) -> Iterator[str]:
        for (found, promised), n in self._unnamed.items():
            yield (
                f"{self._path}: lines of atoms have {found} columns in "
                f"{counted(n, 'structure')}, of which Properties names {promised}: the others are "
                f"not read. Name them, for example Properties={PLAIN}:forces:R:3."
            )
        if self._bare:
            line, number = self._bare[0]
            yield (
                f"{self._path}: {counted(len(self._bare), 'structure')} with a number that has no "
                f"key, which is not read (line {line}: {number}). If it is an energy, write "
                f"energy={number}."
            )
        for name, n in self._misspelt.items():
            yield (
                f"{self._path}: {name!r} in {counted(n, 'structure')} is not read; ASE's name is "
                f"{CELL_KEYS[name.lower()]!r}."
            )


def _without_quoted(text: str) -> str:
    """Return a line of keys without what stands in quotes or brackets, in one walk over it."""
    kept: list[str] = []
    unclosed: set[str] = set()
    end = place = 0
    while (opening := _OPENS.search(text, place)) is not None:
        mark, place = opening.group(), opening.end()
        if mark in unclosed:  # what does not end from here does not end from further on
            continue
        quoted = _QUOTED[mark].match(text, opening.start())
        if quoted is None:
            unclosed.add(mark)
            continue
        kept.append(text[end : opening.start()])
        end = place = quoted.end()
    return "".join(kept) + text[end:]


def _shown(text: object, length: int = 60) -> str:
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return repr(plain if len(plain) <= length else f"{plain[:length]}...")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


def write_predicted(
    path: Path, result: Mapping[str, Any], ids: Sequence[str], atoms: Sequence[Any]
) -> Path:
    """Write structures with predicted energy, forces and stress as extended xyz.

    Parameters
    ----------
    path
        File to write.
    result
        What `MolfunStructureModel.predict` gave for the structures: ``prediction`` (energies),
        and ``forces`` or ``stress``.
    ids
        A name each.
    atoms
        The structures.
    """
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write
    from ase.stress import full_3x3_to_voigt_6_stress

    frames = []
    for i, (name, structure) in enumerate(zip(ids, atoms, strict=True)):
        values: dict[str, Any] = {"energy": float(result["prediction"][i])}
        if "forces" in result:
            values["forces"] = result["forces"][i]
        if "stress" in result:
            values["stress"] = full_3x3_to_voigt_6_stress(result["stress"][i])
        bare = type(structure)(
            structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc
        )
        bare.info["id"] = name
        bare.calc = SinglePointCalculator(bare, **values)
        frames.append(bare)
    with atomic_path(path) as temporary:
        write(str(temporary), frames, format="extxyz")
    return path
