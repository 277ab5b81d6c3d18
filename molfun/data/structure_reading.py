"""Make arrays of the protein in a gemmi model, and note what was chosen or changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import gemmi
import numpy as np

from molfun._shapes import Bool, Float32, Int64
from molfun.data.structure_chains import MAX_BOND, MAX_CA_STEP, NO_NAME, Part
from molfun.data.structure_names import STANDARD, atom_names
from molfun.protein import ATOM_NAMES, CHAIN_GAP, RESIDUE_LETTERS, UNKNOWN_RESIDUE, Note, Protein
from molfun.text import counted, few

MAX_COORDINATE = 1e6
"""Angstrom from the origin; the columns of a PDB file end before 1e5."""

_ATOM_INDEX = {name: i for i, name in enumerate(ATOM_NAMES)}
_LETTER_INDEX = {letter: i for i, letter in enumerate(RESIDUE_LETTERS)}
_N, _CA, _C = (_ATOM_INDEX[name] for name in ("N", "CA", "C"))


def describe_chain(chain: Any, name: str) -> str:
    """Describe a chain as messages show it: its name and what it holds."""
    kinds = Counter(_kind(residue) for residue in chain)
    holds = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{name or NO_NAME} ({holds})"


def _kind(residue: Any) -> str:
    info = gemmi.find_tabulated_residue(residue.name)
    if info.is_water():
        return "water"
    if info.is_nucleic_acid():
        return "nucleic acid"
    return "amino acid" if _is_amino_acid(residue) else "ligand"


def _is_amino_acid(residue: Any) -> bool:
    """Return True for a residue that is part of a protein chain."""
    info = gemmi.find_tabulated_residue(residue.name)
    if residue.entity_type == gemmi.EntityType.Polymer:
        # names outside the table are judged by their backbone
        return info.is_amino_acid() or (
            not info.found() and residue.find_atom("CA", "*") is not None
        )
    return residue.entity_type == gemmi.EntityType.Unknown and info.is_amino_acid()


@dataclass
class _Residue:
    aatype: int
    number: int
    name: str
    """Number and insertion code."""
    chain: int
    atoms: dict[int, Any]
    places: list[list[float]]
    """Coordinates of the atoms."""


@dataclass
class Reading:
    """Residues collected chain by chain, with what the notes will say about them."""

    notes: list[Note]
    residues: list[_Residue] = field(default_factory=list)
    chain_ids: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Amino acids in the whole sequence of each chain; 0 where the file does not say."""
    absent: dict[str, int] = field(default_factory=dict)
    """Chain or entity without any atom to the amino acids of its sequence."""
    bad_atoms: list[str] = field(default_factory=list)
    unnumbered: list[str] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    ligands: Counter[str] = field(default_factory=Counter)
    renamed: Counter[str] = field(default_factory=Counter)
    _last: str | None = None

    def add_chain(self, chain: Any, part: Part, length: int) -> None:
        """Add the amino acids of a chain, or of a further part of the chain before it.

        Parameters
        ----------
        chain
            Chain of gemmi.
        part
            Its name and place in the file.
        length
            Amino acids of the whole sequence, 0 if the file does not say.
        """
        name = part.chain or NO_NAME
        before = len(self.residues)
        self._note_left_out(chain, name)
        continues = part.number > 0 and self._last == part.chain
        index = len(self.chain_ids) - continues
        for residue in self._conformers(chain):
            self._add_residue(residue, chain=index, chain_name=name)
        if len(self.residues) > before and not continues:
            self.chain_ids.append(part.chain)
            self.lengths.append(length)
            self._last = part.chain

    def _note_left_out(self, chain: Any, name: str) -> None:
        """Count what a chain has that is no amino acid."""
        kinds = Counter(_kind(residue) for residue in chain)
        if kinds["nucleic acid"]:
            count = counted(kinds["nucleic acid"], "nucleic-acid residue")
            self.notes.append(Note(f"left out {count} of chain {name}", "nucleic acids left out"))
        self.ligands.update(r.segment or r.name for r in chain if _kind(r) == "ligand")

    def _conformers(self, chain: Any) -> Iterator[Any]:
        """Return amino acids in order; of several at one place, the most occupied one."""
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
        places = [atom.pos.tolist() for atom in atoms.values()]
        for atom, (x, y, z) in zip(atoms.values(), places, strict=True):
            # NaN fails every comparison, so this form refuses it as well
            if not (
                abs(x) < MAX_COORDINATE and abs(y) < MAX_COORDINATE and abs(z) < MAX_COORDINATE
            ):
                self.bad_atoms.append(f"{atom.name} {residue.name} {chain_name} {residue.seqid}")
        if residue.seqid.num is None:
            self.unnumbered.append(f"{residue.name} of chain {chain_name}")
        aatype = self._aatype(residue)
        self.residues.append(
            _Residue(
                aatype=aatype,
                number=residue.seqid.num,
                name=str(residue.seqid).strip(),
                chain=chain,
                atoms=atoms,
                places=places,
            )
        )

    def _aatype(self, residue: Any) -> int:
        info = gemmi.find_tabulated_residue(residue.name)
        letter = info.one_letter_code.upper()
        aatype = _LETTER_INDEX.get(letter, UNKNOWN_RESIDUE)
        if aatype == UNKNOWN_RESIDUE or residue.segment or not info.is_standard():
            written = residue.segment or residue.name
            self.converted[f"{written} to {'X' if aatype == UNKNOWN_RESIDUE else letter}"] += 1
        return aatype

    def _best_atoms(self, residue: Any) -> dict[int, Any]:
        """Return the most occupied location of each of the 37 atoms; the first of equals."""
        best: dict[int, Any] = {}
        several = set()
        names = self._atom_names(residue)
        for atom in residue:
            index = _ATOM_INDEX.get(names.get(atom.name, atom.name))
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

    def _atom_names(self, residue: Any) -> dict[str, str]:
        """Return the standard names of atoms that are written in another way."""
        if residue.name == "MSE":
            return {"SE": "SD"}
        if residue.name not in STANDARD:
            return {}
        names = atom_names(residue.name, [atom.name for atom in residue])
        self.renamed.update(f"{old} of {residue.name} to {new}" for old, new in names.items())
        return names

    def unusable(self) -> str:
        """Say why what was read is no structure; an empty text if it is one.

        OpenFold takes the sequence, the numbering and the crop from it: these need the place of
        each residue, for which CA stands.
        """
        atoms = [place for residue in self.residues for place in residue.places]
        places = set(map(tuple, atoms))
        if len(places) == 1 and len(atoms) > 1:
            x, y, z = next(iter(places))
            return (
                f"has all {len(atoms):,} atoms at one place ({x:g}, {y:g}, {z:g}), so it has no "
                f"coordinates. Export it with coordinates."
            )
        if not any(_CA in residue.atoms for residue in self.residues):
            return (
                f"has no CA atom in {counted(len(self.residues), 'residue')}. Give a structure "
                f"with its main chain."
            )
        return ""

    def _odd_atoms(self) -> Iterator[Note]:
        """Say which atoms are missing, or at no real place."""
        with_trace = [_CA in residue.atoms for residue in self.residues]
        if not all(with_trace):
            count = counted(with_trace.count(False), "residue")
            yield Note(f"found {count} without CA", "residues without CA")
        if len(self.residues) > 1 and all(r.atoms.keys() == {_CA} for r in self.residues):
            yield Note(
                "found CA atoms only: enough for sequence and numbering, not for side chains",
                "CA atoms only",
            )
        zero = sum(place == [0, 0, 0] for residue in self.residues for place in residue.places)
        if zero > 1:
            yield Note(
                f"found {counted(zero, 'atom')} at (0, 0, 0), as for places that are not known",
                "atoms at (0, 0, 0)",
            )

    def protein(self, name: str) -> Protein:
        """Return all that was read, as arrays."""
        n = len(self.residues)
        positions, mask, b_factors = empty(n)
        for row, residue in enumerate(self.residues):
            columns = list(residue.atoms)
            positions[row, columns] = residue.places
            b_factors[row, columns] = [atom.b_iso for atom in residue.atoms.values()]
            mask[row, columns] = 1
        chain_index = np.array([residue.chain for residue in self.residues], np.int64)
        author = np.array([residue.number for residue in self.residues], np.int64)
        residue_index, self.counts["breaks"] = numbered(positions, mask, chain_index, author)
        return Protein(
            name=name,
            aatype=np.array([residue.aatype for residue in self.residues], np.int64),
            atom_positions=positions,
            atom_mask=mask,
            b_factors=b_factors,
            residue_index=residue_index,
            chain_index=chain_index,
            chain_ids=tuple(self.chain_ids),
            residue_ids=tuple(residue.name for residue in self.residues),
            notes=tuple(self._all_notes()),
        )

    def _all_notes(self) -> Iterator[Note]:
        yield from self.notes
        yield from self._names_changed()
        read = Counter(residue.chain for residue in self.residues)
        absent = absent_residues(read, self.chain_ids, self.lengths, self.absent)
        others = [*absent, *self._odd_atoms()]
        yield from closing_notes(self.counts, self.ligands, others, self.chain_ids)

    def _names_changed(self) -> Iterator[Note]:
        if self.converted:
            total = counted(self.converted.total(), "non-standard residue")
            sentence = f"read {total} as: {_listed(self.converted)}"
            yield Note(sentence, "non-standard residues")
        if self.renamed:
            total = counted(self.renamed.total(), "atom name")
            yield Note(f"read {total} as: {_listed(self.renamed)}", "other atom names")


def absent_residues(
    read: Mapping[int, int],
    chain_ids: Sequence[str],
    lengths: Sequence[int],
    absent: Mapping[str, int],
) -> Iterator[Note]:
    """Say which residues of the sequences have no coordinates; parameters as of `Reading`."""
    for chain, (name, length) in enumerate(zip(chain_ids, lengths, strict=True)):
        if read[chain] < length:
            yield Note(
                f"read {read[chain]} of {length} residues of chain {name or NO_NAME}: the "
                f"others of its sequence have no coordinates",
                "residues without coordinates",
            )
    for name, length in absent.items():
        count = counted(length, "residue")
        sentence = f"read no residue of {name}: its {count} have no coordinates"
        yield Note(sentence, "residues without coordinates")


def closing_notes(
    counts: Counter[str], ligands: Counter[str], others: Iterable[Note], chain_ids: Sequence[str]
) -> Iterator[Note]:
    """Say what was counted and left out, then `others`, then which chains were joined."""
    for key, (sentence, noun, kind) in _COUNTED.items():
        if counts[key]:
            yield Note(sentence.format(counted(counts[key], noun)), kind)
    if ligands:
        total = counted(ligands.total(), "ligand")
        yield Note(f"left out {total}: {_listed(ligands)}", "ligands left out")
    yield from others
    if len(chain_ids) > 1:
        names = [name or NO_NAME for name in chain_ids]
        yield Note(f"joined chains {few(names, limit=30)}", "several chains")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in sorted(counts.items()))


_COUNTED = {
    "altlocs": (
        "chose the most occupied of several locations for {}", "atom", "alternate locations",
    ),
    "places": (
        "chose the most occupied of several residue types at {}", "place", "alternate residues",
    ),
    "duplicates": ("ignored {} with the name of an earlier one", "atom", "repeated atoms"),
    "skipped": (
        "skipped {} without any of the 37 heavy atoms", "residue", "residues without heavy atoms",
    ),
    "breaks": ("found {}", "chain break", "chain breaks"),
}  # fmt: skip
"""Count: its sentence, what is counted, and the kind of note."""


def numbered(
    positions: Float32[np.ndarray, "length 37 3"],
    mask: Float32[np.ndarray, "length 37"],
    chain_index: Int64[np.ndarray, "length"],
    author: Int64[np.ndarray, "length"],
) -> tuple[Int64[np.ndarray, "length"], int]:
    """Return the residue index, and the number of chain breaks; `author` are the file's numbers."""
    bonded = _bonded(positions, mask)
    new_chain = np.diff(chain_index) > 0
    step = np.where(bonded, 1, np.maximum(1, np.diff(author)))
    step[new_chain] = CHAIN_GAP
    index = np.concatenate([[0], np.cumsum(step)]).astype(np.int64)
    return index, int((~bonded & ~new_chain).sum())


def empty(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, mask and B-factors of no atom."""
    positions = np.zeros((n, len(ATOM_NAMES), 3), np.float32)
    return (
        positions,
        np.zeros(positions.shape[:2], np.float32),
        np.zeros(positions.shape[:2], np.float32),
    )


def _bonded(
    positions: Float32[np.ndarray, "length 37 3"], mask: Float32[np.ndarray, "length 37"]
) -> Bool[np.ndarray, "length-1"]:
    """Tell for each residue if it is bonded to the next."""
    has = mask > 0
    peptide = has[:-1, _C] & has[1:, _N]
    trace = has[:-1, _CA] & has[1:, _CA]
    bond = np.linalg.norm(positions[1:, _N] - positions[:-1, _C], axis=-1)
    reach = np.linalg.norm(positions[1:, _CA] - positions[:-1, _CA], axis=-1)
    return np.where(peptide, bond < MAX_BOND, trace & (reach < MAX_CA_STEP))
