"""`FoldedStructure`: a predicted structure with its confidence, and how it was made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from molfun._shapes import Float32
from molfun.protein import UNKNOWN_RESIDUE, Protein, chain_name
from molfun.text import counted

ALONE = (
    "made from a single sequence: AlphaFold's trunk was trained on alignments, and this fold had "
    "none, so its confidence is not that of a usual AlphaFold model"
)
"""Caveat of a fold without an alignment."""
JUMPED = (
    "its chains were folded by a model of single chains, with a jump of the residue index between "
    "them; a multimer preset was trained for complexes"
)
"""Caveat of a fold of several chains."""
RANDOM = "random, for tests and not for science"
"""Origin of weights that no file gave."""
TRAINED_HERE = "random at first, then trained"
"""Origin of weights that no file gave, and that fine-tuning changed."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """The software and the weights behind a structure, for its files.

    Parameters
    ----------
    model
        Name of the model and of its preset.
    software
        Version of each package that took part, by name.
    weights
        File of the weights, or how they came to be where there is no file.
    weights_sha256
        Checksum of the file; empty where there is none.
    trained
        What fine-tuning changed in the trunk, in a few words; empty for the base model.
    fingerprint
        Checksum of all weights in use, trained ones included, by which two checkpoints of one base
        model are told apart; empty where it is not known.
    """

    model: str
    software: dict[str, str]
    weights: str
    weights_sha256: str = ""
    trained: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class FoldedStructure:
    """A predicted structure of one sample.

    Parameters
    ----------
    id
        Id of the sample.
    protein
        Residues, chains and predicted coordinates in angstrom. The B-factors of a residue are its
        pLDDT.
    plddt
        (length,) pLDDT of each residue, 0 to 100.
    pae
        (length, length) predicted aligned error in angstrom: row, residue whose frame is aligned;
        column, residue whose error it is. None where the preset has no TM head.
    max_pae
        Largest value that `pae` can take, in angstrom.
    ptm, iptm
        Predicted TM-score, and the one between chains; None without a TM head, and for one chain.
    recycles
        Recycling passes that ran before the last pass; None where that is not recorded.
    seed
        Seed of the features' random choices; None where it follows from the sample.
    notes
        What a reader of the structure must know, one sentence each.
    maker
        Software and weights.
    member
        Number of the model in its ensemble, from 1; None for a single model.
    spread
        (length,) distance in angstrom of the CA atom of each residue from those of the other models
        of the ensemble, see `molfun.structures.ranking.spread_of`; None for a single model.
    models
        Structures of all models of the ensemble, most confident first, the first of them this one.

    Examples
    --------
    >>> from molfun import MolfunStructureModel
    >>> model = MolfunStructureModel("openfold", config="tiny")
    >>> folded = model.fold("MKTAYIAKQR", recycles=1)[0]
    >>> folded.protein.sequence, folded.plddt.shape, folded.recycles
    ('MKTAYIAKQR', (10,), 1)
    """

    id: str
    protein: Protein
    plddt: Float32[np.ndarray, "length"]
    pae: Float32[np.ndarray, "length length"] | None = None
    max_pae: float | None = None
    ptm: float | None = None
    iptm: float | None = None
    recycles: int | None
    seed: int | None = None
    notes: Sequence[str] = ()
    maker: Maker = field(default_factory=lambda: Maker(model="", software={}, weights=""))
    member: int | None = None
    spread: Float32[np.ndarray, "length"] | None = None
    models: Sequence[FoldedStructure] = ()

    def __repr__(self) -> str:
        # the arrays fill a screen
        known = {"ptm": self.ptm, "iptm": self.iptm}
        scores = "".join(f", {k} {v:.3f}" for k, v in known.items() if v is not None)
        return (
            f"FoldedStructure({self.id!r}: {self.protein!r}, plddt {self.mean_plddt:.1f}{scores})"
        )

    @property
    def is_finite(self) -> bool:
        """Whether all coordinates and confidences are finite; a broken model may give NaN."""
        there = self.protein.atom_mask > 0
        numbers = (self.plddt, self.protein.atom_positions[there])
        return all(bool(np.isfinite(part).all()) for part in numbers)

    @property
    def mean_plddt(self) -> float:
        """Mean pLDDT over the residues."""
        return float(np.mean(self.plddt))

    @property
    def confidence(self) -> float:
        """Value by which structures are sorted, 0 to 1.

        0.8 ipTM + 0.2 pTM for several chains (Evans et al. 2021), else the mean pLDDT / 100.
        """
        if self.iptm is not None and self.ptm is not None:
            return 0.8 * self.iptm + 0.2 * self.ptm
        return self.mean_plddt / 100

    @property
    def mean_spread(self) -> float | None:
        """Root mean square of `spread` over the residues that have CA atoms; None without it."""
        if self.spread is None or np.isnan(self.spread).all():
            return None
        return float(np.sqrt(np.nanmean(np.square(self.spread))))

    def scores(self) -> dict[str, Any]:
        """Return the confidence of the whole structure by name, as the summary table holds it."""
        return {
            "confidence": self.confidence,
            "plddt": self.mean_plddt,
            "ptm": self.ptm,
            "iptm": self.iptm,
        }

    def chain_names(self) -> list[str]:
        """Return names of the chains as files hold them: unique, and never empty."""
        given = self.protein.chain_ids
        # a new name must not be one that a later chain has
        free = (name for name in map(chain_name, itertools.count()) if name not in given)
        return [
            name if name and given.index(name) == place else next(free)
            for place, name in enumerate(given)
        ]

    def residue_ids(self) -> list[tuple[int, str]]:
        """Return the number and insertion code of each residue in files.

        They are those of the input structure. Without one, a chain counts from 1 in steps of the
        residue index.
        """
        own = self.protein.residue_ids
        if own:
            return [(int(text.rstrip(_INSERTIONS)), text.lstrip(_DIGITS)) for text in own]
        index, chain = self.protein.residue_index, self.protein.chain_index
        starts = {c: int(index[chain == c].min()) for c in np.unique(chain).tolist()}
        return [(int(i) - starts[int(c)] + 1, "") for i, c in zip(index, chain, strict=True)]


_DIGITS = "-0123456789"
_INSERTIONS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def caveats(protein: Protein, maker: Maker, *, alone: bool) -> Iterator[str]:
    """Yield what a reader of a predicted structure must know, one sentence each.

    Parameters
    ----------
    protein
        The residues that were folded.
    maker
        Software and weights.
    alone
        Whether there was no other sequence than that of the protein.
    """
    if maker.weights == RANDOM:
        yield "made with random weights: a test of the program, and no prediction"
    elif maker.weights == TRAINED_HERE:
        yield "made with weights that began at random and learned from the training data alone"
    if alone:
        yield ALONE
    if len(protein.chain_ids) > 1:
        yield JUMPED
    yield from (str(note) for note in protein.notes if getattr(note, "kind", "") == "cropped")
    unknown = int((protein.aatype == UNKNOWN_RESIDUE).sum())
    if unknown:
        yield (
            f"{counted(unknown, 'residue')} of unknown type (X) took part as such; openfold gives "
            f"them no atoms"
        )
