"""One sample and one batch of samples, as data sets give them and models take them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from molfun.protein import Protein

ALIGNMENT_SUFFIXES = (".a3m", ".sto", ".a3m.gz", ".sto.gz")
"""Names of the alignments that are read in the folder of a sample."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is known of one sample, before any backbone has seen it.

    Parameters
    ----------
    id
        The name in the user's table (a PDB id for example).
    protein
        The structure; None where `sequence` or `features` hold everything.
    sequence
        One-letter sequence, for samples that are no structure.
    atoms
        An ``ase.Atoms``, for models of atoms in space.
    features
        Pre-computed features of one backbone: its raw feature dict or its processed tensors.
    alignment_dir
        Folder of a3m or sto alignments for this protein.
    target
        The label: a number in the user's units, a class name, several, one a residue, or energies
        and forces by name, as the task takes it; None where there is none.
    metadata
        Other columns of the row.
    max_length
        Longest input the model should see. A `protein` has been cropped already; a `sequence` and
        pre-computed `features` are cropped by the backbone.
    origin
        Where it was read, for messages: "gb1.csv, line 3".
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

    @property
    def shown(self) -> str:
        """The id, and where the sample was read, if that is known."""
        return f"{self.id} ({self.origin})" if self.origin else self.id

    def content_key(self) -> str:
        """Sha256 over the input (not the label): equal input gives an equal key."""
        cropped_later = self.features or self.sequence is not None
        digest = hashlib.sha256(str(self.max_length if cropped_later else None).encode())
        if self.sequence is not None:
            digest.update(f"sequence {self.sequence}".encode())
        if self.protein is not None:
            digest.update(self.protein.content_key().encode())
        if self.atoms is not None:
            for array in (
                self.atoms.numbers,
                self.atoms.positions,
                self.atoms.cell,
                self.atoms.pbc,
            ):
                digest.update(np.ascontiguousarray(array).tobytes())
        for name in sorted(self.features or {}):
            array = np.asarray((self.features or {})[name])
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            is_text = array.dtype == object
            digest.update(repr(array.tolist()).encode() if is_text else array.tobytes())
        if self.alignment_dir is not None:
            for path in sorted(p for p in self.alignment_dir.iterdir() if p.is_file()):
                digest.update(path.name.encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class SampleBatch(Sequence[Sample]):
    """Samples that go through the model together; a list with a few views.

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
        """Labels in batch order, None where there is none."""
        return [sample.target for sample in self.samples]


MASK = "<mask>"
"""How a masked residue is written in a sequence."""


def n_residues(sequence: str) -> int:
    """Residues of a one-letter sequence, in which ``<mask>`` is one.

    Examples
    --------
    >>> n_residues("MK<mask>V")
    4
    """
    return len(sequence) - (len(MASK) - 1) * sequence.count(MASK)


def is_missing(target: Any) -> bool:
    """Whether a label is not there: None or NaN.

    Examples
    --------
    >>> is_missing(None), is_missing(float("nan")), is_missing(0.0), is_missing("")
    (True, True, False, False)
    """
    return target is None or (isinstance(target, float | np.floating) and bool(np.isnan(target)))
