"""`Protein`: a protein as arrays, which structure readers return and structure backbones take.

Residue types and atom names are in AlphaFold's order (AlphaFold 2, supplement 1.2.1: 20 residue
types then ``X``; 37 heavy-atom names), so a backbone can use the arrays as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from molfun._shapes import Float32, Float64, Int64
from molfun.errors import ConfigError

RESIDUE_LETTERS = "ARNDCQEGHILKMFPSTWYV"
RESIDUE_LETTERS_WITH_X = RESIDUE_LETTERS + "X"
AMINO_ACIDS = "".join(sorted(RESIDUE_LETTERS))
"""The 20 amino acids by their letters, in alphabetical order."""
UNKNOWN_RESIDUE = len(RESIDUE_LETTERS)
ATOM_NAMES = (
    "N", "CA", "C", "CB", "O", "CG", "CG1", "CG2", "OG", "OG1", "SG", "CD", "CD1", "CD2", "ND1",
    "ND2", "OD1", "OD2", "SD", "CE", "CE1", "CE2", "CE3", "NE", "NE1", "NE2", "OE1", "OE2", "CH2",
    "NH1", "NH2", "OH", "CZ", "CZ2", "CZ3", "NZ", "OXT",
)  # fmt: skip
CA = ATOM_NAMES.index("CA")
CHAIN_GAP = 200
"""Jump of the residue index between chains.

AlphaFold clips relative positions at 32 (AlphaFold 2, supplement, algorithm 4), so any larger jump
tells the trunk "not the same chain"; 200 is the usual value for complexes in the monomer model.
"""

CropPolicy = Literal["auto", "contiguous", "spatial"]
BFactors = Literal["plddt", "measured", "other", "unknown"]
"""Meaning of the B-factors, as stated in the file."""
DrawPolicy = Literal["auto", "contiguous", "spatial", "interface"]
INTERFACE = 15.0
"""CA-CA distance in angstrom up to which residues of two chains are an interface
(AlphaFold-Multimer, Evans et al. 2021, section 7.2.1)."""


class Note(str):
    """A change or choice of a reader as a sentence, with a kind by which a summary counts it.

    Parameters
    ----------
    sentence
        Description of the change to one structure.
    kind
        The same without numbers and names, equal for many structures.

    Examples
    --------
    >>> note = Note("found 3 chain breaks", "chain breaks")
    >>> print(note, "|", note.kind)
    found 3 chain breaks | chain breaks
    """

    __slots__ = ("kind",)

    kind: str

    def __new__(cls, sentence: str, kind: str) -> Note:
        """Return a text with the attribute ``kind``."""
        note = super().__new__(cls, sentence)
        note.kind = kind
        return note

    # loader workers send notes by pickle, which would call __new__ without the kind
    def __reduce__(self) -> tuple[type[Note], tuple[str, str]]:
        return Note, (str(self), self.kind)


@dataclass(frozen=True, kw_only=True)
class Protein:
    """One protein or complex.

    Parameters
    ----------
    name
        Name in messages.
    aatype
        (length,) residue types, 0-19 in the order of `RESIDUE_LETTERS`, 20 for unknown.
    atom_positions
        (length, 37, 3) coordinates in angstrom, zero where absent.
    atom_mask
        (length, 37) one where the atom is present.
    b_factors
        (length, 37) B-factors in square angstrom.
    residue_index
        (length,) positions along the chain, from 0; a chain break keeps the number of missing
        residues, a new chain starts `CHAIN_GAP` further on.
    chain_index
        (length,) number of the chain, from 0.
    chain_ids
        Names of the chains.
    full_sequence
        Sequence before any crop (one letter per residue).
    positions
        (length,) index of each residue in `full_sequence`.
    residue_ids
        Number and insertion code of each residue in the file (``"52A"``), which files written for
        it get back. No backbone sees them. Empty where there was no file.
    resolution
        Resolution of the experiment in angstrom; None where there is none, or it is not known. No
        backbone sees it, and losses of confidence count only where it is good.
    whole
        Of a crop of several chains, the structure before it, by which identical chains are told; no
        backbone sees it. None where nothing was cropped.
    notes
        Changes and choices of the reader, one sentence each, for the user.
    b_factors_are
        What `b_factors` are by the file: ``"plddt"`` of a prediction, ``"measured"`` in an
        experiment, ``"other"`` of a prediction without pLDDT there, ``"unknown"`` where it does
        not say.
    """

    name: str
    aatype: Int64[np.ndarray, "length"]
    atom_positions: Float32[np.ndarray, "length 37 3"]
    atom_mask: Float32[np.ndarray, "length 37"]
    b_factors: Float32[np.ndarray, "length 37"]
    residue_index: Int64[np.ndarray, "length"]
    chain_index: Int64[np.ndarray, "length"]
    chain_ids: tuple[str, ...] = ("A",)
    full_sequence: str = ""
    positions: Int64[np.ndarray, "length"] = field(default_factory=lambda: np.zeros(0, np.int64))
    residue_ids: tuple[str, ...] = ()
    resolution: float | None = None
    whole: Protein | None = None
    notes: tuple[str, ...] = ()
    b_factors_are: BFactors = "unknown"

    def __post_init__(self) -> None:
        if not self.full_sequence:
            object.__setattr__(self, "full_sequence", self.sequence)
            object.__setattr__(self, "positions", np.arange(len(self), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.aatype)

    def __repr__(self) -> str:
        # the arrays of a protein fill a screen
        chains = ", ".join(self.chain_ids)
        atoms = int(self.atom_mask.sum())
        return f"Protein({self.name!r}: {len(self)} residues, {atoms} atoms; chains {chains})"

    @property
    def sequence(self) -> str:
        """One-letter sequence, chains joined."""
        return "".join(RESIDUE_LETTERS_WITH_X[i] for i in self.aatype)

    @classmethod
    def from_sequence(cls, sequence: str, *, name: str = "sequence") -> Protein:
        """Make a protein without coordinates from a one-letter sequence.

        Lower case counts as upper case; letters other than the 20 standard ones become ``X``.

        Examples
        --------
        >>> Protein.from_sequence("ACDE").aatype.tolist()
        [0, 4, 3, 6]
        """
        order = {letter: i for i, letter in enumerate(RESIDUE_LETTERS)}
        aatype = np.array([order.get(c, UNKNOWN_RESIDUE) for c in sequence.upper()], np.int64)
        n = len(aatype)
        return cls(
            name=name,
            aatype=aatype,
            atom_positions=np.zeros((n, 37, 3), np.float32),
            atom_mask=np.zeros((n, 37), np.float32),
            b_factors=np.zeros((n, 37), np.float32),
            residue_index=np.arange(n, dtype=np.int64),
            chain_index=np.zeros(n, np.int64),
        )

    @classmethod
    def from_chains(cls, sequences: Sequence[str], *, name: str = "complex") -> Protein:
        """Make a protein of several chains, A, B and so on, without coordinates.

        Parameters
        ----------
        sequences
            One-letter sequence of each chain.
        name
            Name in messages.

        Examples
        --------
        >>> protein = Protein.from_chains(["ACD", "EF"])
        >>> protein.chain_ids, protein.residue_index.tolist()
        (('A', 'B'), [0, 1, 2, 202, 203])
        """
        whole = cls.from_sequence("".join(sequences), name=name)
        sizes = [len(sequence) for sequence in sequences]
        chain_index = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
        return replace(
            whole,
            chain_index=chain_index,
            residue_index=whole.residue_index + (CHAIN_GAP - 1) * chain_index,
            chain_ids=tuple(chain_name(number) for number in range(len(sizes))),
        )

    def take(self, indices: Int64[np.ndarray, "kept"]) -> Protein:
        """Return the residues at `indices` (sorted), with their numbers unchanged."""
        return replace(
            self,
            aatype=self.aatype[indices],
            atom_positions=self.atom_positions[indices],
            atom_mask=self.atom_mask[indices],
            b_factors=self.b_factors[indices],
            residue_index=self.residue_index[indices],
            chain_index=self.chain_index[indices],
            positions=self.positions[indices],
            residue_ids=tuple(self.residue_ids[i] for i in indices) if self.residue_ids else (),
        )

    def crop(self, max_length: int | None, policy: CropPolicy = "auto") -> Protein:
        """Return at most `max_length` residues, always the same ones for the same input.

        Parameters
        ----------
        max_length
            Largest number of residues; None keeps all.
        policy
            ``"spatial"``: the residues nearest the interface between the chains (nearest the
            centre where there is one chain), as in the crops of AlphaFold-Multimer (Evans et al.
            2021, algorithm 2). ``"contiguous"``: the middle window of each chain, in proportion
            to its length (algorithm 1). ``"auto"``: spatial where there are two or more chains
            with coordinates, contiguous elsewhere.

        Raises
        ------
        ConfigError
            If `max_length` is below 1, or `policy` is unknown.

        Examples
        --------
        >>> Protein.from_sequence("ACDEFGHIK").crop(3).sequence
        'EFG'
        """
        if policy not in ("auto", "contiguous", "spatial"):
            raise ConfigError(
                f"Unknown crop policy {policy!r}; allowed: auto, contiguous, spatial."
            )
        if max_length is None or len(self) <= max_length:
            return self
        if max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {max_length}.")
        if policy == "auto":
            several = len(np.unique(self.chain_index)) > 1 and bool(self.atom_mask.any())
            policy = "spatial" if several else "contiguous"
        chosen = self._spatial(max_length) if policy == "spatial" else self._contiguous(max_length)
        return self._cropped(chosen, policy)

    def random_crop(
        self, max_length: int, policy: DrawPolicy, generator: np.random.Generator
    ) -> Protein:
        """Return `max_length` residues that are drawn at random; all of them where there are fewer.

        Parameters
        ----------
        max_length
            Largest number of residues.
        policy
            ``"contiguous"``: a window of each chain, of random size and place
            (AlphaFold-Multimer, Evans et al. 2021, algorithm 1; of one chain AlphaFold's own crop).
            ``"spatial"``: the residues nearest to a random one, by CA (algorithm 2).
            ``"interface"``: the same around a random residue within `INTERFACE` of another chain;
            around any one where there is no interface. ``"auto"``: contiguous, and for several
            chains with coordinates half of the crops interface, as AlphaFold-Multimer trains.
        generator
            Source of the random numbers; nothing is drawn from it where nothing is cropped.

        Raises
        ------
        ConfigError
            If `max_length` is below 1, or `policy` is unknown.

        Examples
        --------
        >>> protein = Protein.from_sequence("ACDEFGHIK")
        >>> protein.random_crop(4, "contiguous", np.random.default_rng(0)).sequence
        'GHIK'
        """
        check_draw(max_length, policy)
        if len(self) <= max_length:
            return self
        has_places = bool(self.atom_mask.any())
        if policy == "auto":
            several = len(np.unique(self.chain_index)) > 1 and has_places
            policy = "interface" if several and generator.random() < 0.5 else "contiguous"
        if policy == "contiguous" or not has_places:
            chosen = _random_windows(self.chain_index, max_length, generator)
        else:
            chosen = self._around_one(max_length, generator, interface=policy == "interface")
        return self._cropped(chosen, f"{policy}, drawn")

    def _cropped(self, chosen: Int64[np.ndarray, "kept"], how: str) -> Protein:
        sentence = f"cropped from {len(self)} to {len(chosen)} residues ({how})"
        before = self if self.whole is None else self.whole
        return replace(
            self.take(chosen),
            # of one chain it would only take memory
            whole=before if len(np.unique(before.chain_index)) > 1 else None,
            notes=(*self.notes, Note(sentence, "cropped")),
        )

    def _around_one(
        self, max_length: int, generator: np.random.Generator, *, interface: bool
    ) -> Int64[np.ndarray, "kept"]:
        """Return the residues nearest to a random residue, of the interface if there is one."""
        place, known = _residue_centres(self.atom_positions, self.atom_mask)
        centres = np.flatnonzero(known)
        if interface and len(np.unique(self.chain_index[known])) > 1:
            near = np.flatnonzero(self.interface_distance() <= INTERFACE)
            centres = near if len(near) else centres
        centre = centres[generator.integers(len(centres))]
        distance = np.where(known, np.linalg.norm(place - place[centre], axis=-1), np.inf)
        order = np.lexsort((np.arange(len(self)), distance))
        return np.sort(order[:max_length]).astype(np.int64)

    def _contiguous(self, max_length: int) -> Int64[np.ndarray, "kept"]:
        starts, sizes = _chain_spans(self.chain_index)
        quota = _share(sizes, max_length)
        windows = [
            start + (size - keep) // 2 + np.arange(keep)
            for start, size, keep in zip(starts, sizes, quota, strict=True)
        ]
        return np.concatenate(windows).astype(np.int64)

    def _spatial(self, max_length: int) -> Int64[np.ndarray, "kept"]:
        distance = self.interface_distance()
        # equal distances in the order of the chain, so that the crop is always the same
        order = np.lexsort((np.arange(len(self)), distance))
        return np.sort(order[:max_length]).astype(np.int64)

    def interface_distance(self) -> Float32[np.ndarray, "length"]:
        """Return the distance in angstrom of each residue to the nearest residue of another chain.

        With one chain it is that to the centroid. Residues without any atom get infinity.
        """
        place, known = _residue_centres(self.atom_positions, self.atom_mask)
        distance = np.full(len(self), np.inf, np.float32)
        chains = np.unique(self.chain_index[known])
        if len(chains) < 2:
            if known.any():
                centre = place[known].mean(axis=0)
                distance[known] = np.linalg.norm(place[known] - centre, axis=-1)
            return distance
        for chain in chains:
            own = known & (self.chain_index == chain)
            other = known & (self.chain_index != chain)
            # chain by chain, so that memory is (own, other) floats and never (length, length)
            gaps = np.linalg.norm(place[own][:, None] - place[other][None], axis=-1)
            distance[own] = gaps.min(axis=1)
        return distance

    def plddt(self) -> Float64[np.ndarray, "length"]:
        """Return the pLDDT of each residue from 0 to 100: the mean B-factor of its atoms.

        Some predictions of ESMFold have shares of 1, which are scaled where the file is one.

        Examples
        --------
        >>> Protein.from_sequence("AC").plddt().tolist()
        [0.0, 0.0]
        """
        atoms = self.atom_mask.sum(1, dtype=np.float64)
        values: np.ndarray = (self.b_factors * self.atom_mask).sum(1) / np.maximum(atoms, 1)
        shares = self.b_factors_are == "plddt" and values.max(initial=0.0) <= 1
        return 100 * values if shares else values

    def content_key(self) -> str:
        """Return the sha256 over everything a backbone can see: equal content, equal key."""
        digest = hashlib.sha256(self.full_sequence.encode())
        for array in (
            self.aatype,
            self.atom_positions,
            self.atom_mask,
            self.residue_index,
            self.chain_index,
            self.positions,
        ):
            digest.update(str((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def check_draw(max_length: int, policy: str) -> None:
    """Refuse settings of `Protein.random_crop` that are not allowed.

    Raises
    ------
    ConfigError
        If `max_length` is below 1, or `policy` is unknown.
    """
    if policy not in get_args(DrawPolicy):
        allowed = ", ".join(get_args(DrawPolicy))
        raise ConfigError(f"Unknown policy of random crops {policy!r}; allowed: {allowed}.")
    if max_length < 1:
        raise ConfigError(f"max_length must be at least 1, got {max_length}.")


def chain_name(number: int) -> str:
    """Return A to Z, then AA to AZ and so on."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return (chain_name(number // 26 - 1) if number >= 26 else "") + letters[number % 26]


def _chain_spans(chain_index: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the starts and sizes of the runs of equal chain number."""
    edges = np.flatnonzero(np.diff(chain_index)) + 1
    starts = [0, *edges.tolist()]
    stops = [*edges.tolist(), len(chain_index)]
    return starts, [stop - start for start, stop in zip(starts, stops, strict=True)]


def _random_windows(
    chain_index: np.ndarray, total: int, generator: np.random.Generator
) -> Int64[np.ndarray, "kept"]:
    """Return a window of each chain, together `total` residues, as in `Protein.random_crop`."""
    starts, sizes = _chain_spans(chain_index)
    left, chosen = sum(sizes), []
    # in random order, since what a chain gets depends on those before it
    for chain in generator.permutation(len(sizes)):
        left -= sizes[chain]
        most, fewest = min(total, sizes[chain]), max(0, total - left)
        keep = int(generator.integers(fewest, most + 1))
        start = starts[chain] + int(generator.integers(sizes[chain] - keep + 1))
        chosen.append(np.arange(start, start + keep))
        total -= keep
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _share(sizes: list[int], total: int) -> list[int]:
    """Split `total` in proportion to `sizes`, by the method of largest remainders."""
    exact = [size * total / sum(sizes) for size in sizes]
    quota = [int(x) for x in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: quota[i] - exact[i])
    for i in by_remainder[: total - sum(quota)]:
        quota[i] += 1
    return quota


def _residue_centres(
    positions: np.ndarray, mask: np.ndarray
) -> tuple[Float32[np.ndarray, "length 3"], np.ndarray]:
    """Return CA positions (else the mean of all atoms), and which residues have any atom."""
    known = np.asarray(mask.any(axis=-1))
    # the distance between CA atoms is the usual measure; a residue without one still has a place
    weight = np.where(mask[:, CA, None] > 0, np.eye(37, dtype=np.float32)[CA], mask)
    total = np.maximum(weight.sum(axis=-1, keepdims=True), 1)
    return np.einsum("la,lax->lx", weight / total, positions), known
