"""Find where one chain ends and the next begins, also where the ids do not say.

A file is a list of residues in its order. Two residues of one id are of two chains if something
between them ends a chain (``TER``, ``END``, another segment id or ``label_asym_id``, numbers that
start again) and no peptide bond joins them. Modified residues that stand after their chain are
put into the gap they fill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any

from molfun.data.experiment import Experiment
from molfun.data.structure_names import is_amino_acid_name
from molfun.errors import StructureError
from molfun.protein import Note
from molfun.text import counted, few

MAX_BOND = 2.5
"""C-N distance in angstrom below which two residues are bonded (ideal: 1.33)."""
MAX_CA_STEP = 4.5
"""CA-CA distance in angstrom below which two residues are neighbours (ideal: 3.8)."""
MAX_OVERLAP = 2.0
"""CA-CA distance in angstrom that no two residues of different chains can have."""

ENDS = ("TER", "END")
"""Records that end a chain, unless a peptide bond joins what follows."""
RESTART = "numbers that start again"

NO_NAME = "(no name)"
"""Name of a chain with a blank id in messages."""
TRACED = ("N", "CA", "C")
"""Atoms whose places tell whether residues are bonded."""
_MAIN_CHAIN = frozenset(TRACED)
_LETTERS = "".join(map(chr, range(33, 127)))

Point = tuple[float, float, float]


@dataclass(slots=True, eq=False)
class Residue:
    """Atoms of one residue that follow each other in a file.

    Parameters
    ----------
    chain, segment
        Chain id, and what else may tell chains apart (segment id, ``label_asym_id``).
    number, name
        Residue number with insertion code as written, and the residue's name.
    places
        Indices of the atoms in the file.
    hetero
        True if the atoms are ``HETATM``.
    atoms
        Names of the atoms; those of `TRACED` with their first coordinates, to save memory.
    alternate
        Whether an atom has a letter for an alternate location.
    after
        What ended a chain before this residue: ``"TER"``, ``"END"`` or nothing.
    inside
        Whether its chain goes on here, whatever stands before it in the file.
    order
        `number` as integer, None if it is none.
    part
        Part of the chain: a chain whose numbers start again has several, each without repeats.
    written
        Name as it stands in the file, if it is another.
    """

    chain: str
    segment: str
    number: str
    name: str
    hetero: bool
    after: str = ""
    order: int | None = None
    part: int = 0
    written: str = ""
    alternate: bool = False
    inside: bool = False
    places: list[int] = field(default_factory=list)
    atoms: dict[str, Point | None] = field(default_factory=dict)

    @property
    def is_amino_acid(self) -> bool:
        """True for an amino acid by its name, or by its main chain if the name is unknown."""
        return is_amino_acid_name(self.name) or self.atoms.keys() >= _MAIN_CHAIN


@dataclass
class Chain:
    """Residues of one chain, or of one id as long as nothing tells them apart."""

    name: str
    residues: list[Residue]
    cause: str = ""
    """Reason to take it for another chain than the one of the same id before it."""


@dataclass
class Part:
    """Residues of one chain without a number that repeats, under a code of its own."""

    code: str
    chain: str
    """Id of the chain in the file."""
    number: int
    """0 for the first part of a chain."""
    residues: list[Residue]


@dataclass
class Chains:
    """Chains of one model in the order of the file, with notes on how they were found."""

    parts: list[Part]
    notes: list[Note]


@dataclass
class Records:
    """One model of a file, read."""

    structure: Any
    """Structure of gemmi; its chains are named by the codes of the parts."""
    parts: list[Part]
    notes: list[Note]
    lengths: dict[str, int]
    """Code to the amino acids of the whole sequence, resolved or not."""
    absent: dict[str, int]
    """Chain or entity without any atom to the amino acids of its sequence."""
    experiment: Experiment


def split_chains(path: Path, residues: Sequence[Residue], *, longest_id: int = 2) -> Chains:
    """Tell the chains of one model apart.

    Raises
    ------
    StructureError
        If a chain is there several times at one place, or there are more chains than codes.
    """
    by_id: dict[str, list[Chain]] = {}
    for piece in _pieces(residues):
        _place(piece, by_id.setdefault(piece.name, []))
    for chains in by_id.values():
        _refuse_copies(path, chains)
    notes = _told_apart([chains for chains in by_id.values() if len(chains) > 1])
    moved = sum(_fill_gaps(chains) for chains in by_id.values())
    if moved:
        sentence = f"moved {counted(moved, 'residue')} from after a chain to the place in it"
        notes.append(Note(sentence, "residues moved into gaps"))
    found = [chain for chains in by_id.values() for chain in chains]
    found.sort(key=lambda chain: min(residue.places[0] for residue in chain.residues))
    return Chains(_parts(path, found, longest_id), notes)


def _parts(path: Path, chains: Sequence[Chain], longest_id: int) -> list[Part]:
    """Return the parts of all chains; a code is the chain's own id, else two letters."""
    ids = {chain.name for chain in chains}
    free = (a + b for a, b in product(_LETTERS, repeat=2) if a + b not in ids)
    parts: list[Part] = []
    used: set[str] = set()
    for chain in chains:
        for number, residues in groupby(chain.residues, key=lambda residue: residue.part):
            own = 0 < len(chain.name) <= longest_id and chain.name not in used
            code = chain.name if own else next(free, None)
            if code is None:
                raise StructureError(
                    f"{path} has more than {len(parts):,} chains that share ids. Keep only the "
                    f"chains you need."
                )
            used.add(code)
            parts.append(Part(code, chain.name, number, list(residues)))
    return parts


def bonded(before: Residue, after: Residue) -> bool:
    """Return True for a peptide bond, by C and N, or by the CA atoms where one is missing."""
    c, n = before.atoms.get("C"), after.atoms.get("N")
    if c is not None and n is not None:
        return math.dist(c, n) < MAX_BOND
    left, right = before.atoms.get("CA"), after.atoms.get("CA")
    return left is not None and right is not None and math.dist(left, right) < MAX_CA_STEP


def superposed(left: Iterable[Residue], right: Iterable[Residue]) -> bool:
    """Return True where more than a tenth of the residues of `right` lie inside `left`."""
    space = _Space()
    space.add(left)
    return space.holds(right)


class _Space:
    """Places of CA atoms, in cells for a quick search."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int, int], list[Point]] = {}

    def add(self, residues: Iterable[Residue]) -> None:
        for point in _traces(residues):
            held = self._cells.setdefault(_cell(point), [])
            if len(held) < 10:  # more do not fit into one cell of a real structure
                held.append(point)

    def holds(self, residues: Iterable[Residue]) -> bool:
        """Return True where more than a tenth of the residues lie on places that were added."""
        points = list(_traces(residues))
        # a few clashes are usual between the chains of a poor model
        return sum(map(self._is_taken, points)) > len(points) / 10

    def _is_taken(self, point: Point) -> bool:
        i, j, k = _cell(point)
        return any(
            math.dist(point, other) < MAX_OVERLAP
            for a, b, c in product((-1, 0, 1), repeat=3)
            for other in self._cells.get((i + a, j + b, k + c), ())
        )


def _cell(point: Point) -> tuple[int, int, int]:
    x, y, z = (math.floor(value / MAX_OVERLAP) for value in point)
    return x, y, z


def _traces(residues: Iterable[Residue]) -> Iterator[Point]:
    for residue in residues:
        point = residue.atoms.get("CA")
        if point is not None and all(map(math.isfinite, point)):
            yield point


# Pieces: residues that follow each other with nothing between them


def _pieces(residues: Sequence[Residue]) -> Iterator[Chain]:
    """Cut where the id or the segment changes, at TER and END, and where numbers start again."""
    piece: list[Residue] = []
    cause = ""
    ends = _Ends()
    for residue in residues:
        begins = ends.before(residue)
        if piece and (begins or piece[-1].chain != residue.chain):
            yield Chain(piece[-1].chain, piece, cause)
            piece = []
        if not piece:
            cause = begins
        residue.after = begins if begins in ENDS else ""
        piece.append(residue)
    if piece:
        yield Chain(piece[-1].chain, piece, cause)


class _Ends:
    """State of each chain id while a file is read, to find where one of its chains may end."""

    def __init__(self) -> None:
        self._records: dict[str, str] = {}
        """TER or END since the last residue of an id."""
        self._segments: dict[str, str] = {}
        self._numbers: dict[str, dict[str, Residue]] = {}

    def before(self, residue: Residue) -> str:
        """Name what ended the chain before `residue`; an empty text if nothing did."""
        name = residue.chain
        if residue.after:
            self._records = dict.fromkeys((*self._numbers, name), residue.after)
        cause = self._records.pop(name, "")
        if not cause and self._segments.get(name, residue.segment) != residue.segment:
            cause = "another segment"
        if not cause and _starts_again(residue, self._numbers.get(name, {})):
            cause = RESTART
        if cause or name not in self._numbers:
            self._numbers[name] = {}
        if residue.is_amino_acid:
            self._numbers[name].setdefault(residue.number, residue)
            if not residue.hetero:
                self._segments[name] = residue.segment
        return cause


def _starts_again(residue: Residue, seen: dict[str, Residue]) -> bool:
    """Return True for the number of an earlier residue: not of hydrogens, not of locations."""
    earlier = seen.get(residue.number)
    if earlier is None or not residue.is_amino_acid or residue.alternate or earlier.alternate:
        return False
    return not residue.atoms.keys().isdisjoint(earlier.atoms)


def _place(piece: Chain, chains: list[Chain]) -> None:
    """Make a piece a chain, or a part of the last chain of its id."""
    if not chains:
        chains.append(piece)
        return
    last = chains[-1]
    part = last.residues[-1].part
    start = _first_acid(piece.residues)
    if piece.cause and start is not None and _is_polymer(piece.residues):
        end = _first_acid(reversed(last.residues))
        goes_on = end is not None and bonded(end, start)
        if end is not None and not goes_on and not _fills_gap(piece, chains):
            chains.append(piece)
            return
        start.inside = goes_on
        part += _repeats_numbers(piece, last, part)
    for residue in piece.residues:
        residue.part = part
    last.residues += piece.residues


def _first_acid(residues: Iterable[Residue]) -> Residue | None:
    return next((residue for residue in residues if residue.is_amino_acid), None)


def _repeats_numbers(piece: Chain, chain: Chain, part: int) -> bool:
    """Return True where a residue of the piece has a number of that part of the chain."""
    known = {r.number: r for r in chain.residues if r.is_amino_acid and r.part == part}
    return any(_starts_again(residue, known) for residue in piece.residues)


def _fills_gap(piece: Chain, chains: Sequence[Chain]) -> bool:
    """Return True for a piece of modified residues that belongs into gaps of earlier chains."""
    if not all(residue.hetero for residue in piece.residues):
        return False
    acids = [residue for residue in piece.residues if residue.is_amino_acid]
    for chain in chains:
        known = {r.order: r for r in chain.residues if r.is_amino_acid}
        if any(_anchor(residue, known) is not None for residue in acids):
            return True
    return False


def _is_polymer(residues: Sequence[Residue]) -> bool:
    """Return True for a chain of amino acids: ``ATOM`` records, or bonded to each other."""
    acids = [residue for residue in residues if residue.is_amino_acid]
    if any(not residue.hetero for residue in acids):
        return True
    return any(bonded(left, right) for left, right in pairwise(acids))


def _told_apart(shared: Sequence[Sequence[Chain]]) -> list[Note]:
    """Say how chains of one id were told apart, in one sentence for all ids."""
    if not shared:
        return []
    ids = [chains[0].name for chains in shared]
    causes = dict.fromkeys(chain.cause for chains in shared for chain in chains[1:])
    if ids == [""]:
        which = "without ids"
    elif len(ids) == 1:
        which = f"of the one id {ids[0]}"
    else:
        which = f"of the {len(ids)} ids {few([name or NO_NAME for name in ids])}"
    total = sum(map(len, shared))
    sentence = f"told apart {total} chains {which} by {' and '.join(causes)}"
    return [Note(sentence, "chains told apart")]


# Residues after their chain


def _fill_gaps(chains: Sequence[Chain]) -> int:
    """Move modified residues from after a chain into the gap of its numbers that they fill.

    Where chains share an id, what stands after the last may belong to any of them.
    """
    candidates = [(chain, list(_trailing(chain.residues))) for chain in chains]
    loose = {id(residue) for _, residues in candidates for residue in residues}
    known = [
        {r.order: r for r in chain.residues if r.is_amino_acid and id(r) not in loose}
        for chain in chains
    ]
    return sum(
        _move_into_gap(residue, chain, chains, known)
        for chain, residues in candidates
        for residue in residues
    )


def _move_into_gap(
    residue: Residue,
    source: Chain,
    hosts: Sequence[Chain],
    known: Sequence[dict[int | None, Residue]],
) -> bool:
    """Move a residue from after its chain into the first chain with a gap for it, if any."""
    for host, numbers in zip(hosts, known, strict=True):
        anchor = _anchor(residue, numbers)
        if anchor is not None:
            source.residues.remove(residue)
            _insert(residue, host, *anchor)
            numbers[residue.order] = residue
            return True
    return False


def _insert(residue: Residue, chain: Chain, neighbour: Residue, step: int) -> None:
    residue.inside, residue.part = True, neighbour.part
    chain.residues.insert(chain.residues.index(neighbour) + step, residue)


def _trailing(residues: Sequence[Residue]) -> Iterator[Residue]:
    """Find modified residues after the end of a chain, or with a number below one before them."""
    highest: int | None = None
    ended = False
    for residue in residues:
        ended |= bool(residue.after) and highest is not None
        if residue.order is None or not residue.is_amino_acid:
            continue
        if residue.hetero and highest is not None and (ended or residue.order < highest):
            yield residue
        else:
            highest = residue.order if highest is None else max(highest, residue.order)


def _anchor(residue: Residue, known: dict[int | None, Residue]) -> tuple[Residue, int] | None:
    """Return the neighbour bonded to `residue`; 1 if `residue` comes after it, 0 if before."""
    if residue.order is None or residue.order in known:
        return None
    left, right = known.get(residue.order - 1), known.get(residue.order + 1)
    if left is not None and bonded(left, residue):
        return left, 1
    if right is not None and bonded(residue, right):
        return right, 0
    return None


def _refuse_copies(path: Path, chains: Sequence[Chain]) -> None:
    """Refuse a chain that lies inside an earlier one of its id: a model, not a chain."""
    space = _Space()
    for chain in chains if len(chains) > 1 else ():
        if space.holds(chain.residues):
            raise StructureError(
                f"{path} has several copies of chain {chain.name or NO_NAME} at one place. If "
                f"they are models, put MODEL and ENDMDL around each; else remove all but one."
            )
        space.add(chain.residues)
