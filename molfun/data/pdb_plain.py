"""Read plain PDB files by columns: all atoms of a file at once.

Most files hold one model with the 20 amino acids, each atom once, each chain in one piece, and
perhaps waters and ligands. Their arrays are made of the bytes of the file, without a Python object
per atom, which takes a tenth of the time. Whatever is not plain is left to
`molfun.data.pdb_records`, which gives the same for plain files.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import gemmi
import numpy as np

from molfun._shapes import Bool, Float64, Int64
from molfun.data.pdb_records import absent_sequences, sequences_of
from molfun.data.structure_names import STANDARD, atom_names, standard_name
from molfun.data.structure_reading import absent_residues, closing_notes, empty, numbered
from molfun.protein import ATOM_NAMES, CA, RESIDUE_LETTERS, Protein

WIDTH, SHORTEST = 80, 66
"""Columns of a line, and the last one of the B-factor."""
FEWEST = 5
"""Residues of a chain; gemmi judges shorter ones by what is around them."""
_TEXT = bytes(range(0x20, 0x7F)) + b"\n"
_BLANK = ord(" ")
_AATYPES = {
    name: RESIDUE_LETTERS.index(gemmi.find_tabulated_residue(name).one_letter_code)
    for name in STANDARD
}
_ATOM_INDEX = {name: i for i, name in enumerate(ATOM_NAMES)}
_OTHER_NAME = -2
_MAIN_CHAIN = {"N", "CA", "C"}


class _NotPlain(Exception):  # noqa: N818
    """The file has to be looked at record by record."""


def _need(is_plain: object) -> None:
    if not is_plain:
        raise _NotPlain


@dataclass
class _Atoms:
    """Records of atoms, cut into columns.

    Parameters
    ----------
    cells
        (atoms, 80) bytes.
    rows
        Lines of the atoms in the file.
    ters
        TER records before each atom.
    """

    cells: np.ndarray
    rows: Int64[np.ndarray, "atoms"]
    ters: Int64[np.ndarray, "atoms"]

    def take(self, wanted: Bool[np.ndarray, "atoms"]) -> _Atoms:
        """Return some of the atoms."""
        return _Atoms(self.cells[wanted], self.rows[wanted], self.ters[wanted])

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, start: int, stop: int) -> np.ndarray:
        """Return columns, counted from 0, as bytes of one length."""
        return np.ascontiguousarray(self.cells[:, start:stop]).view(f"S{stop - start}").ravel()

    def begins(self) -> Bool[np.ndarray, "atoms"]:
        """Return where residues begin: another name, chain or number, or a record between."""
        keys, found = self.texts(17, 27), np.ones(len(self), bool)
        found[1:] = (keys[1:] != keys[:-1]) | (np.diff(self.rows) > 1) & (np.diff(self.ters) > 0)
        return found


def read_plain(text: str, name: str) -> Protein | None:
    """Return the protein of a plain PDB file, None if its records have to be looked at.

    Parameters
    ----------
    text
        The file, with line feeds and one character per byte.
    name
        Name of the protein.
    """
    try:
        atoms, sequences = _records(text.encode("latin-1"))
        hetero = atoms.texts(0, 6) == b"HETATM"
        _need_order(atoms, hetero)
        ligands = _ligands(atoms.take(hetero))
        return _protein(name, atoms.take(~hetero), ligands, sequences)
    except _NotPlain:
        return None


# From bytes to records


def _records(raw: bytes) -> tuple[_Atoms, dict[str, int]]:
    """Return the atoms, and the amino acids in the SEQRES records of each chain."""
    _need(raw.endswith(b"\n") and not raw.translate(None, _TEXT))
    data = np.frombuffer(raw + WIDTH * b" ", np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    head = np.where(np.arange(6) < lengths[:, None], data[starts[:, None] + np.arange(6)], _BLANK)
    # blanks before a record, and small letters, are for the reader of single records
    _need(not ((head >= ord("a")) & (head <= ord("z"))).any())
    _need(not ((head[:, 0] == _BLANK) & (lengths > 0)).any())
    names = np.ascontiguousarray(head.astype(np.uint8)).view("S6").ravel()
    is_letter = (head[:, 4] >= ord("A")) & (head[:, 4] <= ord("Z"))
    is_atom = (names.astype("S4") == b"ATOM") & ~is_letter | (names == b"HETATM")
    rows = np.flatnonzero(is_atom)
    _need(len(rows) and not np.isin(names, (b"MODEL ", b"ENDMDL")).any())
    _need((np.flatnonzero(names == b"END   ") > rows[-1]).all() and lengths[rows].min() >= SHORTEST)
    cells = data[starts[rows][:, None] + np.arange(WIDTH)]
    if lengths[rows].min() < WIDTH:
        cells[np.arange(WIDTH) >= lengths[rows][:, None]] = _BLANK
    ters = np.cumsum(names == b"TER   ")[rows]
    named = np.flatnonzero(names == b"SEQRES")
    lines = [raw[starts[i] : ends[i]].decode("ascii") for i in named.tolist()]
    return _checked(_Atoms(cells, rows, ters)), sequences_of(lines)


def _checked(atoms: _Atoms) -> _Atoms:
    """Leave to others: alternate locations, insertions, segments, long names, stars for numbers."""
    blank = atoms.cells == _BLANK
    _need(blank[:, [16, 20, 26]].all() and blank[:, 72:76].all() and not blank[:, 21].any())
    _need(not (atoms.cells[:, 54:66] == ord("*")).any())
    return atoms


def _numbers(cells: np.ndarray, decimals: int) -> Float64[np.ndarray, "atoms"]:
    """Return numbers in columns: blanks, a sign, digits, and `decimals` of them behind a point."""
    point = cells.shape[1] - decimals - (decimals > 0)
    if decimals:
        _need((cells[:, point] == ord(".")).all())
        cells = np.delete(cells, point, axis=1)
    blank, minus = cells == _BLANK, cells == ord("-")
    digits = cells - np.uint8(ord("0"))
    _need((blank | minus | (digits < 10)).all() and (digits[:, point - 1 :] < 10).all())
    # blanks, and behind them at most one sign
    _need(not (~blank[:, :-1] & (blank | minus)[:, 1:]).any())
    powers = 10.0 ** np.arange(cells.shape[1])[::-1]
    whole = np.where(digits < 10, digits, 0) @ powers
    return np.where(minus.any(axis=1), -1.0, 1.0) * whole / 10.0**decimals


# From records to residues


def _need_order(atoms: _Atoms, hetero: Bool[np.ndarray, "atoms"]) -> None:
    """Leave to others residues that another record cuts in two, and ligands inside of a chain.

    What follows a ligand in its chain may be polymer or not, which gemmi judges.
    """
    keys, chains = atoms.texts(17, 27), atoms.cells[:, 21]
    own, others = np.flatnonzero(~hetero), np.flatnonzero(hetero)
    _need(not ((np.diff(own) > 1) & (keys[own[1:]] == keys[own[:-1]])).any())
    last = np.full(256, -1)
    np.maximum.at(last, chains[own], own)
    _need((others > last[chains[others]]).all())


def _ligands(atoms: _Atoms) -> Counter[str]:
    """Count the ligands, of which none may be part of a chain."""
    found: Counter[str] = Counter()
    if not len(atoms):
        return found
    keys = atoms.texts(17, 27)[atoms.begins()]
    _need(len(np.unique(keys)) == len(keys))
    present = set(map(_stripped, np.unique(atoms.texts(12, 16))))
    _need(not present.issuperset(_MAIN_CHAIN))
    names, counts = np.unique(keys.astype("S3"), return_counts=True)
    for written, count in zip(map(_stripped, names), counts.tolist(), strict=True):
        info = gemmi.find_tabulated_residue(written)
        _need(info.found() and standard_name(written) == written)
        _need(not info.is_amino_acid() and not info.is_nucleic_acid())
        if not info.is_water():
            found[written] += count
        elif b"C" in atoms.cells[atoms.texts(17, 20) == written.encode(), 12:14]:
            raise _NotPlain  # a ligand under the name of water
    return found


def _stripped(cell: bytes) -> str:
    return cell.decode("ascii").strip()


def _protein(name: str, atoms: _Atoms, ligands: Counter[str], sequences: dict[str, int]) -> Protein:
    _need(len(atoms))
    begins = atoms.begins()
    residue, first = np.cumsum(begins) - 1, np.flatnonzero(begins)
    author = _numbers(atoms.cells[first, 22:26], 0).astype(np.int64)
    chain_index, ids = _chains(atoms, first, author)
    names, kind = np.unique(atoms.texts(17, 20)[first], return_inverse=True)
    aatypes = [_AATYPES.get(_stripped(written), -1) for written in names]
    _need(min(aatypes) >= 0)
    positions, mask, b_factors = _placed(atoms, residue, len(first))
    residue_index, breaks = numbered(positions, mask, chain_index, author)
    read = Counter(chain_index.tolist())
    lengths = [sequences.get(chain, 0) for chain in ids]
    absent = absent_residues(read, ids, lengths, absent_sequences(sequences, ids))
    return Protein(
        name=name,
        aatype=np.array(aatypes, np.int64)[kind],
        atom_positions=positions,
        atom_mask=mask,
        b_factors=b_factors,
        residue_index=residue_index,
        chain_index=chain_index,
        chain_ids=ids,
        residue_ids=_names(author, atoms.cells[first, 26]),
        notes=tuple(closing_notes(Counter(breaks=breaks), ligands, absent, ids)),
    )


def _names(author: Int64[np.ndarray, "residues"], insertions: np.ndarray) -> tuple[str, ...]:
    """Return the number and insertion code of each residue, such as ``52A``."""
    pairs = zip(author.tolist(), insertions.tolist(), strict=True)
    return tuple(f"{number}{chr(code)}".rstrip() for number, code in pairs)


def _chains(
    atoms: _Atoms, first: Int64[np.ndarray, "residues"], author: Int64[np.ndarray, "residues"]
) -> tuple[Int64[np.ndarray, "residues"], tuple[str, ...]]:
    """Return the chain of each residue, and the ids; each chain has to be in one piece."""
    letters = atoms.cells[first, 21]
    goes_on = letters[1:] == letters[:-1]
    index = np.concatenate([[0], np.cumsum(~goes_on)]).astype(np.int64)
    ids = letters[np.concatenate([[True], ~goes_on])]
    _need(len(np.unique(ids)) == len(ids) and np.bincount(index).min() >= FEWEST)
    # numbers that start again, and TER within an id, may be of another chain
    _need((np.diff(author)[goes_on] > 0).all() and not np.diff(atoms.ters[first])[goes_on].any())
    return index, tuple(map(chr, ids.tolist()))


def _placed(
    atoms: _Atoms, residue: Int64[np.ndarray, "atoms"], n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, mask and B-factors of all heavy atoms."""
    kinds = np.ascontiguousarray(atoms.cells[:, [17, 18, 19, 12, 13, 14, 15]]).view("S7").ravel()
    known, place = np.unique(kinds, return_inverse=True)
    columns = np.array(list(map(_column, known.tolist())))[place]
    _need(columns.min() > _OTHER_NAME)
    heavy = columns >= 0
    cells, residue, columns = atoms.cells[heavy], residue[heavy], columns[heavy]
    places = _numbers(cells[:, 30:54].reshape(-1, 8), 3).reshape(-1, 3)
    positions, mask, b_factors = empty(n)
    positions[residue, columns] = places
    b_factors[residue, columns] = _numbers(cells[:, 60:66], 2)
    mask[residue, columns] = 1
    _need(mask.sum() == len(columns) and mask[:, CA].all() and (mask.sum(axis=1) > 1).any())
    _need(np.count_nonzero(~places.any(axis=1)) < 2 and np.ptp(places, axis=0).any())
    return positions, mask, b_factors


@cache
def _column(kind: bytes) -> int:
    """Return the place among the 37 of an atom (after its residue), -1 for a hydrogen."""
    residue, atom = _stripped(kind[:3]), _stripped(kind[3:])
    return _OTHER_NAME if atom_names(residue, [atom]) else _ATOM_INDEX.get(atom, -1)
