"""Protein structures from PDB and mmCIF files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gemmi
import numpy as np

from molfun._limits import Limit, read_bytes
from molfun.data.folders import FolderIndex
from molfun.data.words import counted
from molfun.errors import ConfigError, StructureError
from molfun.protein import ATOM_NAMES, CHAIN_GAP, RESIDUE_LETTERS, UNKNOWN_RESIDUE, Protein

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

PDB_SUFFIXES = (".pdb", ".ent")
CIF_SUFFIXES = (".cif", ".mmcif")
STRUCTURE_SUFFIXES = tuple(
    suffix + packed
    for packed in ("", ".gz")
    for suffix in (".cif", ".pdb", ".ent", ".mmcif")
)  # fmt: skip
"""Suffixes in the order in which a structure is looked for."""
MAX_BYTES = Limit("STRUCTURE_BYTES", 2**29)
"""Largest structure text, unpacked. Even capsids and ribosomes of the PDB stay below."""
MAX_RATIO = Limit("STRUCTURE_GZIP_RATIO", 100, "unpacked bytes per packed byte")
"""An honest structure file packs 4 to 10 times."""
MAX_COORDINATE = 1e6
"""Angstrom from the origin; the columns of a PDB file end before 1e5."""
MAX_BOND = 2.5
"""C-N distance in angstrom below which two residues are bonded (ideal: 1.33)."""
MAX_CA_STEP = 4.5
"""CA-CA distance in angstrom below which two residues are neighbours (ideal: 3.8)."""

_ATOM_INDEX = {name: i for i, name in enumerate(ATOM_NAMES)}
_LETTER_INDEX = {letter: i for i, letter in enumerate(RESIDUE_LETTERS)}
_N, _CA, _C = (_ATOM_INDEX[name] for name in ("N", "CA", "C"))
_ATOM_LINE = re.compile(r"^(?:ATOM  |HETATM)[^\r\n]*", re.MULTILINE)


def read_structure(
    path: str | Path, *, chains: Sequence[str] | str | None = None, model: int = 1
) -> Protein:
    """Read the protein of a PDB or mmCIF file.

    Amino-acid residues of polymers are kept; waters, ligands and nucleic acids are not. A
    modified residue counts as its parent (MSE as M, with SE as SD), an unknown one as X. Of
    alternate locations each atom keeps the one with the highest occupancy. Residues keep the
    order of the file, so insertion codes are residues of their own. What was chosen or changed
    stands in the notes of the protein; waters are not mentioned.

    Parameters
    ----------
    path
        ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif``, also with ``.gz``.
    chains
        Author names of the chains to keep; None keeps all. The order is that of the file.
    model
        Which model to read, counted from 1.

    Returns
    -------
    Protein
        ``residue_index`` grows by 1 between bonded residues (C-N below 2.5 angstrom, or CA-CA
        below 4.5 where C or N is missing), by the difference of the author numbers across a
        break, and by `molfun.protein.CHAIN_GAP` between chains.

    Raises
    ------
    StructureError
        If the file is missing, damaged, holds no protein or a coordinate that is not a number,
        or the chains or the model are not in it.
    UnsafeFileError
        If the file is larger than `MAX_BYTES` or unpacks to more than `MAX_RATIO` times its size.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "1abc.pdb"
    >>> line = "ATOM      1  CA  GLY A   7      11.104   6.134  -6.504  1.00  0.00           C"
    >>> _ = path.write_text(line)
    >>> protein = read_structure(path)
    >>> protein.sequence, protein.residue_index.tolist(), protein.chain_ids
    ('G', [0], ('A',))
    """
    path = Path(path).expanduser()
    structure = _parse(path, _read_text(path))
    wanted = (chains,) if isinstance(chains, str) else tuple(chains or ())
    chosen_model, notes = _choose_model(path, structure, model)
    kept = _choose_chains(path, chosen_model, wanted)
    reading = _Reading(notes=notes)
    for chain in kept:
        reading.add_chain(chain)
    _check_reading(path, reading, chosen_model)
    return reading.protein(_stem(path))


def find_structure(folder: str | Path, pdb_id: str) -> Path | None:
    """Path of the structure of `pdb_id` in `folder`, None if there is none.

    Tried are ``.cif``, ``.pdb``, ``.ent``, ``.mmcif``, then the same with ``.gz``; the exact
    name first, then regardless of case.

    Raises
    ------
    DataError
        If `folder` is not a folder.
    UnsafeFileError
        If the file is a symbolic link out of the folder.

    Examples
    --------
    >>> import tempfile
    >>> find_structure(tempfile.mkdtemp(), "1a4w") is None
    True
    """
    return FolderIndex(folder).find(pdb_id, STRUCTURE_SUFFIXES)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in sorted(STRUCTURE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


# From file to text


def _read_text(path: Path) -> str:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise StructureError(f"{path} {what}. Give a PDB or mmCIF file.")
    raw = read_bytes(
        path,
        MAX_BYTES,
        ratio=MAX_RATIO,
        error=StructureError,
        advice="Keep only the chains you need.",
    )
    if not raw.strip():
        raise StructureError(f"{path} is empty. Download or export the structure again.")
    if b"\0" in raw:
        raise StructureError(f"{path} is binary, not PDB or mmCIF text. Download it again.")
    head = raw[:200].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise StructureError(
            f"{path} is a web page or XML, not PDB or mmCIF text; a download probably failed. "
            f"Download the .cif or .pdb file again."
        )
    # one character a byte: PDB columns must not move
    return raw.decode("ascii", "replace")


# From text to a gemmi structure


def _parse(path: Path, text: str) -> Any:
    name = path.name.lower().removesuffix(".gz")
    is_cif = name.endswith(CIF_SUFFIXES)
    if not is_cif and not name.endswith(PDB_SUFFIXES):
        raise StructureError(
            f"{path} has none of the suffixes {', '.join(PDB_SUFFIXES + CIF_SUFFIXES)} (or with "
            f".gz). Rename it to what it is."
        )
    if not is_cif and re.match(r"(\s*#[^\n]*\n|\s)*data_", text):
        raise StructureError(f"{path} holds mmCIF under a PDB name. Rename it to .cif.")
    if is_cif and re.match(r"(HEADER|TITLE |REMARK|CRYST1|ATOM  |MODEL )[^\n]*\n", text):
        raise StructureError(f"{path} holds PDB records under an mmCIF name. Rename it to .pdb.")
    structure = _parse_cif(path, text) if is_cif else _parse_pdb(path, text)
    structure.merge_chain_parts()
    structure.setup_entities()
    return structure


def _parse_pdb(path: Path, text: str) -> Any:
    _check_pdb_lines(path, text)
    try:
        return gemmi.read_pdb_string(text)
    except (RuntimeError, ValueError, IndexError) as error:
        raise StructureError(
            f"{path} is damaged: {_first_line(error)}. Download or export it again."
        ) from error


def _check_pdb_lines(path: Path, text: str) -> None:
    """Refuse cut lines and coordinates that are not numbers: gemmi reads ``****`` as 0."""
    lines = list(_ATOM_LINE.finditer(text))
    if len(lines) > 1 and lines[-1].end() == len(text):
        # a file that was cut short: its last line has no end and is shorter than the one before
        last, before = (match.group().rstrip() for match in (lines[-1], lines[-2]))
        if len(last) < len(before) and _has_coordinates(lines[-1].group()):
            raise StructureError(
                f"{path} is truncated: it ends inside a line ({last!r}). Download or export it "
                f"again."
            )
    bad = [match for match in lines if not _has_coordinates(match.group())]
    if not bad:
        return
    first = bad[0].group()
    where = f"line {text.count(chr(10), 0, bad[0].start()) + 1}"
    if len(first.rstrip()) < 54:
        raise StructureError(
            f"{path} is truncated: {where} ends before the coordinates ({first.rstrip()!r}). "
            f"Download or export it again."
        )
    atom = " ".join(first[12:27].split())
    raise StructureError(
        f"{path} has {counted(len(bad), 'atom')} without numbers for coordinates; the first is "
        f"{atom} ({where}: {first[30:54].strip()!r}). Repair or remove these atoms."
    )


def _has_coordinates(line: str) -> bool:
    try:
        # x - x is 0 for every finite x and NaN otherwise
        return all(float(line[i : i + 8]) * 0 == 0 for i in (30, 38, 46)) and len(line) >= 54
    except ValueError:
        return False


def _parse_cif(path: Path, text: str) -> Any:
    try:
        document = gemmi.cif.read_string(text)
        block = next((b for b in document if b.find_values("_atom_site.id")), None)
        if block is None:
            raise StructureError(
                f"{path} holds no atoms (no _atom_site table). Download the coordinates."
            )
        return gemmi.make_structure_from_block(block)
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, StructureError):
            raise
        raise StructureError(
            f"{path} is damaged or not mmCIF: {_first_line(error)}. Download it again."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# From a gemmi structure to a protein


def _choose_model(path: Path, structure: Any, model: int) -> tuple[Any, list[str]]:
    count = len(structure)
    if model < 1:
        raise ConfigError(f"model counts from 1, got {model}.")
    if count == 0:
        raise StructureError(f"{path} holds no atoms. Give a file with amino-acid residues.")
    if model > count:
        raise StructureError(f"{path} has no model {model}; it has {count}.")
    return structure[model - 1], [f"read model {model} of {count}"] if count > 1 else []


def _choose_chains(path: Path, model: Any, wanted: tuple[str, ...]) -> list[Any]:
    found = [chain.name for chain in model]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise StructureError(
            f"{path} has no chain {', '.join(missing)}; found "
            f"{', '.join(_describe(chain) for chain in model)}. Chain names are the author's."
        )
    return [chain for chain in model if not wanted or chain.name in wanted]


def _describe(chain: Any) -> str:
    """A chain as messages show it: its name and what it holds."""
    kinds = Counter(_kind(residue) for residue in chain)
    holds = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{chain.name or '(no name)'} ({holds})"


def _kind(residue: Any) -> str:
    info = gemmi.find_tabulated_residue(residue.name)
    if info.is_water():
        return "water"
    if info.is_nucleic_acid():
        return "nucleic acid"
    return "amino acid" if _is_amino_acid(residue) else "ligand"


def _is_amino_acid(residue: Any) -> bool:
    """Whether a residue is part of a protein chain."""
    info = gemmi.find_tabulated_residue(residue.name)
    if residue.entity_type == gemmi.EntityType.Polymer:
        # names outside the table are judged by their backbone
        return info.is_amino_acid() or (
            not info.found() and residue.find_atom("CA", "*") is not None
        )
    return residue.entity_type == gemmi.EntityType.Unknown and info.is_amino_acid()


def _check_reading(path: Path, reading: _Reading, model: Any) -> None:
    if not reading.residues:
        found = ", ".join(_describe(chain) for chain in model) or "no atoms"
        raise StructureError(
            f"{path} holds no protein; found {found}. Give a file with amino-acid residues."
        )
    for bad, noun, what in (
        (reading.bad_atoms, "atom", "without numbers for coordinates"),
        (reading.unnumbered, "residue", "without a residue number"),
    ):
        if bad:
            raise StructureError(
                f"{path} has {counted(len(bad), noun)} {what}; the first is {bad[0]}. Repair or "
                f"remove what is wrong."
            )


@dataclass
class _Residue:
    aatype: int
    number: int
    chain: int
    atoms: dict[int, Any]


@dataclass
class _Reading:
    """Residues collected chain by chain, and what there is to tell about them."""

    notes: list[str]
    residues: list[_Residue] = field(default_factory=list)
    chain_ids: list[str] = field(default_factory=list)
    bad_atoms: list[str] = field(default_factory=list)
    unnumbered: list[str] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    ligands: Counter[str] = field(default_factory=Counter)

    def add_chain(self, chain: Any) -> None:
        before = len(self.residues)
        kinds = Counter(_kind(residue) for residue in chain)
        if kinds["nucleic acid"]:
            count = counted(kinds["nucleic acid"], "nucleic-acid residue")
            self.notes.append(f"left out {count} of chain {chain.name}")
        self.ligands.update(r.name for r in chain if _kind(r) == "ligand")
        for residue in self._conformers(chain):
            self._add_residue(residue, chain=len(self.chain_ids), chain_name=chain.name)
        if len(self.residues) > before:
            self.chain_ids.append(chain.name)

    def _conformers(self, chain: Any) -> Iterator[Any]:
        """Amino acids in order; of two at one place (a point mutation) the likelier one."""
        protein = [residue for residue in chain if _is_amino_acid(residue)]
        for _, group in groupby(protein, key=lambda r: str(r.seqid)):
            same_place = list(group)
            alternates = [r for r in same_place if any(a.has_altloc() for a in r)]
            if len(same_place) > 1 and len(alternates) == len(same_place):
                self.counts["places"] += 1
                yield max(same_place, key=lambda r: max(atom.occ for atom in r))
            else:
                yield from same_place

    def _add_residue(self, residue: Any, *, chain: int, chain_name: str) -> None:
        atoms = self._best_atoms(residue)
        if not atoms:
            self.counts["skipped"] += 1
            return
        for atom in atoms.values():
            # a comparison with NaN is false
            if not all(abs(value) < MAX_COORDINATE for value in atom.pos.tolist()):
                self.bad_atoms.append(f"{atom.name} {residue.name} {chain_name} {residue.seqid}")
        if residue.seqid.num is None:
            self.unnumbered.append(f"{residue.name} of chain {chain_name}")
        aatype = self._aatype(residue)
        self.residues.append(
            _Residue(aatype=aatype, number=residue.seqid.num, chain=chain, atoms=atoms)
        )

    def _aatype(self, residue: Any) -> int:
        info = gemmi.find_tabulated_residue(residue.name)
        letter = info.one_letter_code.upper()
        aatype = _LETTER_INDEX.get(letter, UNKNOWN_RESIDUE)
        if aatype == UNKNOWN_RESIDUE or not info.is_standard():
            self.converted[f"{residue.name} to {'X' if aatype == UNKNOWN_RESIDUE else letter}"] += 1
        return aatype

    def _best_atoms(self, residue: Any) -> dict[int, Any]:
        """The likeliest location of each of the 37 atoms; the first of equals."""
        best: dict[int, Any] = {}
        several = set()
        for atom in residue:
            name = "SD" if residue.name == "MSE" and atom.name == "SE" else atom.name
            index = _ATOM_INDEX.get(name)
            if index is None:
                continue
            held = best.get(index)
            if held is not None:
                self.counts["duplicates"] += not atom.has_altloc()
                several.add(index)
            if held is None or atom.occ > held.occ:
                best[index] = atom
        self.counts["altlocs"] += len(several)
        return best

    def protein(self, name: str) -> Protein:
        n = len(self.residues)
        positions, mask, b_factors = _empty(n)
        for row, residue in enumerate(self.residues):
            columns = list(residue.atoms)
            positions[row, columns] = [atom.pos.tolist() for atom in residue.atoms.values()]
            b_factors[row, columns] = [atom.b_iso for atom in residue.atoms.values()]
            mask[row, columns] = 1
        chain_index = np.array([residue.chain for residue in self.residues], np.int64)
        author = np.array([residue.number for residue in self.residues], np.int64)
        bonded = _bonded(positions, mask)
        new_chain = np.diff(chain_index) > 0
        step = np.where(bonded, 1, np.maximum(1, np.diff(author)))
        step[new_chain] = CHAIN_GAP
        self.counts["breaks"] = int((~bonded & ~new_chain).sum())
        return Protein(
            name=name,
            aatype=np.array([residue.aatype for residue in self.residues], np.int64),
            atom_positions=positions,
            atom_mask=mask,
            b_factors=b_factors,
            residue_index=np.concatenate([[0], np.cumsum(step)]).astype(np.int64),
            chain_index=chain_index,
            chain_ids=tuple(self.chain_ids),
            notes=tuple(self._all_notes()),
        )

    def _all_notes(self) -> Iterator[str]:
        yield from self.notes
        if self.converted:
            changes = ", ".join(f"{change} ({n})" for change, n in sorted(self.converted.items()))
            yield f"read {counted(self.converted.total(), 'non-standard residue')} as: {changes}"
        sentences = {
            "altlocs": ("chose the likeliest of several locations for {}", "atom"),
            "places": ("chose the likeliest of several residue types at {}", "place"),
            "duplicates": ("ignored {} with the name of an earlier one", "atom"),
            "skipped": ("skipped {} without any of the 37 heavy atoms", "residue"),
            "breaks": ("found {}", "chain break"),
        }
        for key, (sentence, noun) in sentences.items():
            if self.counts[key]:
                yield sentence.format(counted(self.counts[key], noun))
        if self.ligands:
            names = ", ".join(f"{name} ({n})" for name, n in sorted(self.ligands.items()))
            yield f"left out {counted(self.ligands.total(), 'ligand')}: {names}"
        if len(self.chain_ids) > 1:
            yield f"joined chains {', '.join(self.chain_ids)}"


def _empty(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    positions = np.zeros((n, len(ATOM_NAMES), 3), np.float32)
    return (
        positions,
        np.zeros(positions.shape[:2], np.float32),
        np.zeros(positions.shape[:2], np.float32),
    )


def _bonded(
    positions: Float32[np.ndarray, "length 37 3"], mask: Float32[np.ndarray, "length 37"]
) -> Bool[np.ndarray, "length-1"]:
    """Whether each residue is bonded to the next."""
    has = mask > 0
    peptide = has[:-1, _C] & has[1:, _N]
    trace = has[:-1, _CA] & has[1:, _CA]
    bond = np.linalg.norm(positions[1:, _N] - positions[:-1, _C], axis=-1)
    reach = np.linalg.norm(positions[1:, _CA] - positions[:-1, _CA], axis=-1)
    return np.where(peptide, bond < MAX_BOND, trace & (reach < MAX_CA_STEP))
