"""`Sample` and `SampleBatch`, which data sets return and models take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from molfun.errors import DataError
from molfun.protein import Protein

T = TypeVar("T")

MASK = "<mask>"
"""Text of a masked residue in a sequence."""
CHAIN_SEPARATOR = ":"
"""Between the sequences of several chains, as in ColabFold."""
ALIGNMENT_SUFFIXES = (".a3m", ".sto", ".a3m.gz", ".sto.gz")
"""Suffixes of the alignments that are read from the folder of a sample."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample with its input, label and further columns, independent of any backbone.

    Parameters
    ----------
    id
        Name in the user's table (a PDB id for example).
    protein
        The structure; None if the input is `sequence`, `atoms` or `features`.
    sequence
        One-letter sequence, for samples without a structure; those of several chains with ``:``
        between them.
    structure_letters
        One letter of the structure per residue (Foldseek's 3Di alphabet, ``#`` for unknown), for
        models that read them beside the sequence; None where there are none, or `protein` has
        coordinates from which they are computed. Of several chains with ``:`` between them.
    atoms
        An ``ase.Atoms``, for models of atoms in space.
    features
        Pre-computed features of one backbone: its raw feature dict or its processed tensors.
    alignment_dir
        Folder of a3m or sto alignments for this protein.
    target
        The label, as the task takes it: a number in the user's units, a class name, several of
        these, one per residue, or energies and forces by name; None if it is missing.
    metadata
        Other columns of the row.
    max_length
        Longest input the model should see. A `protein` has been cropped already; a `sequence`
        (each of several chains) and pre-computed `features` are cropped by the backbone.
    origin
        Place it was read from, for messages: "gb1.csv, line 3".
    drawn
        Whether the input is a random part, another one each time the sample is read. Caches keep
        nothing of it.
    """

    id: str
    protein: Protein | None = None
    sequence: str | None = None
    structure_letters: str | None = None
    atoms: Any = None
    features: Mapping[str, Any] | None = None
    alignment_dir: Path | None = None
    target: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    origin: str = ""
    drawn: bool = False

    @property
    def shown(self) -> str:
        """The id with the origin in brackets, if that is known."""
        return f"{self.id} ({self.origin})" if self.origin else self.id

    @property
    def chains(self) -> tuple[str, ...]:
        """Sequence of each chain; () without a sequence.

        Examples
        --------
        >>> Sample(id="complex", sequence="MKV:ACD").chains
        ('MKV', 'ACD')
        """
        return () if self.sequence is None else tuple(self.sequence.split(CHAIN_SEPARATOR))

    def by_chain(self) -> list[Sample]:
        """Return one sample per chain, without a label; a sample of one chain alone is itself.

        Raises
        ------
        DataError
            If the letters of structures are those of another number of chains.

        Examples
        --------
        >>> [(s.id, s.sequence) for s in Sample(id="complex", sequence="MKV:ACD").by_chain()]
        [('complex, chain 1', 'MKV'), ('complex, chain 2', 'ACD')]
        """
        if self.protein is not None and self.sequence is None:
            return self._structures_by_chain(self.protein)
        chains = self.chains
        if len(chains) < 2:
            return [self]
        letters: list[str | None] = [None] * len(chains)
        if self.structure_letters is not None:
            letters = [*self.structure_letters.split(CHAIN_SEPARATOR)]
        if len(letters) != len(chains):
            raise DataError(
                f"{self.shown} has {len(chains)} chains, and letters of the structures of "
                f"{len(letters)}. Write {CHAIN_SEPARATOR!r} between those of each chain too."
            )
        return [
            replace(
                self, id=f"{self.id}, chain {i}", sequence=chain, structure_letters=found or None,
                target=None,
            )
            for i, (chain, found) in enumerate(zip(chains, letters, strict=True), start=1)
        ]  # fmt: skip

    def _structures_by_chain(self, protein: Protein) -> list[Sample]:
        numbers = np.unique(protein.chain_index)
        if len(numbers) < 2:
            return [self]
        rows = [np.flatnonzero(protein.chain_index == number) for number in numbers]
        return [
            replace(self, id=f"{self.id}, chain {i}", protein=protein.take(own), target=None)
            for i, own in enumerate(rows, start=1)
        ]

    def content_key(self) -> str:
        """Return the sha256 over the input (not the label): equal input gives an equal key."""
        # a protein is cropped already, so its own key covers max_length
        cropped_later = self.features or self.sequence is not None
        digest = hashlib.sha256(str(self.max_length if cropped_later else None).encode())
        for part in self._input_bytes():
            digest.update(part)
        return digest.hexdigest()

    def _input_bytes(self) -> Iterator[bytes]:
        """Yield every part of the input as bytes, in a fixed order."""
        if self.sequence is not None:
            yield f"sequence {self.sequence}".encode()
        if self.structure_letters is not None:
            yield f"structure {self.structure_letters}".encode()
        if self.protein is not None:
            yield self.protein.content_key().encode()
        if (atoms := self.atoms) is not None:
            # not the calculator's results, which are labels
            for array in (atoms.numbers, atoms.positions, atoms.cell, atoms.pbc):
                yield np.ascontiguousarray(array).tobytes()
        for name, value in sorted((self.features or {}).items()):
            yield from _array_bytes(name, np.asarray(value))
        if self.alignment_dir is not None:
            yield from _folder_bytes(self.alignment_dir)


def _array_bytes(name: str, array: np.ndarray) -> Iterator[bytes]:
    yield f"{name}{array.dtype}{array.shape}".encode()
    # tobytes of an array of objects gives their addresses, which differ from run to run
    yield repr(array.tolist()).encode() if array.dtype == object else array.tobytes()


def _folder_bytes(folder: Path) -> Iterator[bytes]:
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        yield path.name.encode()
        yield path.read_bytes()


def single_label(target: Any) -> Any:
    """Return the energy of labels by name (energy, forces, stress), and any other label as it is.

    Examples
    --------
    >>> single_label({"energy": -1.5, "forces": [[0.0, 0.0, 0.0]]}), single_label(6.2)
    (-1.5, 6.2)
    """
    return target.get("energy") if isinstance(target, Mapping) else target


@dataclass(frozen=True)
class SampleBatch(Sequence[Sample]):
    """A batch of samples: a sequence with the properties `ids` and `targets`.

    Examples
    --------
    >>> batch = SampleBatch([Sample(id="1a4w", target=6.52), Sample(id="3htb")])
    >>> batch.ids, len(batch)
    (['1a4w', '3htb'], 2)
    """

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def ids(self) -> list[str]:
        """Ids in batch order."""
        return [sample.id for sample in self.samples]

    @property
    def targets(self) -> list[Any]:
        """Labels in batch order, None for a missing one."""
        return [sample.target for sample in self.samples]


def in_batches(items: Iterable[T], size: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Yield items in order, as many together as the budget allows; one at least.

    Examples
    --------
    >>> list(in_batches(["MKV", "AC", "GG", "DEFGHIK"], len, 5))
    [['MKV', 'AC'], ['GG'], ['DEFGHIK']]
    """
    batch: list[T] = []
    used = 0
    for item in items:
        if batch and used + size(item) > budget:
            yield batch
            batch, used = [], 0
        batch.append(item)
        used += size(item)
    if batch:
        yield batch


def sequence_of(sample: Sample) -> str:
    """Return the sequence of a sample, or that of its structure; empty where it has neither."""
    if sample.sequence is None and sample.protein is not None:
        return sample.protein.sequence
    return sample.sequence or ""


def n_residues(sequence: str) -> int:
    """Return the number of residues of a one-letter sequence; ``<mask>`` counts as one.

    Examples
    --------
    >>> n_residues("MK<mask>V"), n_residues("MKV:ACD")
    (4, 6)
    """
    masks, ends = sequence.count(MASK), sequence.count(CHAIN_SEPARATOR)
    return len(sequence) - (len(MASK) - 1) * masks - ends


def is_missing(target: Any) -> bool:
    """Return whether a label is missing: None or NaN.

    Examples
    --------
    >>> is_missing(None), is_missing(float("nan")), is_missing(0.0), is_missing("")
    (True, True, False, False)
    """
    # NaN alone differs from itself; np.isnan takes ten times as long for one number
    return target is None or (isinstance(target, float | np.floating) and bool(target != target))
