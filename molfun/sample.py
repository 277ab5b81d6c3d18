"""`Sample` and `SampleBatch`, which data sets return and models take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from molfun.protein import Protein

T = TypeVar("T")

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
        One-letter sequence, for samples without a structure.
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
        Longest input the model should see. A `protein` has been cropped already; a `sequence` and
        pre-computed `features` are cropped by the backbone.
    origin
        Place it was read from, for messages: "gb1.csv, line 3".
    drawn
        Whether the input is a random part, another one each time the sample is read. Caches keep
        nothing of it.
    """

    id: str
    protein: Protein | None = None
    sequence: str | None = None
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


MASK = "<mask>"
"""Text of a masked residue in a sequence."""


def n_residues(sequence: str) -> int:
    """Return the number of residues of a one-letter sequence; ``<mask>`` counts as one.

    Examples
    --------
    >>> n_residues("MK<mask>V")
    4
    """
    return len(sequence) - (len(MASK) - 1) * sequence.count(MASK)


def is_missing(target: Any) -> bool:
    """Return whether a label is missing: None or NaN.

    Examples
    --------
    >>> is_missing(None), is_missing(float("nan")), is_missing(0.0), is_missing("")
    (True, True, False, False)
    """
    # NaN alone differs from itself; np.isnan takes ten times as long for one number
    return target is None or (isinstance(target, float | np.floating) and bool(target != target))
