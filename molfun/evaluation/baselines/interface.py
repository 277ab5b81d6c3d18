"""Contacts between chains, size of the interface, and length of a structure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from molfun.evaluation.baselines.base import FeatureBaseline, Labelled
from molfun.protein import CA, RESIDUE_LETTERS, Protein

CUTOFF = 8.0
"""Largest distance of CA atoms in contact, in angstrom."""

_CLASSES = {"charged": "DEKRH", "polar": "NQSTCWY", "apolar": "AFGILMPV"}


class Interface(FeatureBaseline):
    """Linear model of counts at the interface, by charged, polar and apolar residues.

    References
    ----------
    Vangone and Bonvin 2015, "Contacts-based prediction of binding affinity in protein-protein
    complexes": numbers of such contacts predict affinities about as well as longer methods.
    """

    name = "interface"
    title = "contacts, interface size and length"

    def features(self, parts: Sequence[Labelled]) -> list[np.ndarray] | None:
        """Return the counts of each structure, of contacts within chains too."""
        samples = [sample for part in parts for sample in part.samples]
        if any(s.protein is None or not s.protein.atom_mask[:, CA].any() for s in samples):
            return None
        return [
            np.array([counts(s.protein) for s in part.samples if s.protein is not None])
            for part in parts
        ]


def counts(protein: Protein) -> list[float]:
    """Return contacts between chains per pair of residue classes, and sizes, as log(1 + n).

    Examples
    --------
    >>> len(counts(Protein.from_sequence("ACDE")))
    11
    """
    present = protein.atom_mask[:, CA] > 0
    places = protein.atom_positions[present, CA].astype(np.float64)
    chains, types = protein.chain_index[present], protein.aatype[present]
    near = np.zeros((len(places), len(places)), bool)
    for i, place in enumerate(places):  # one row at a time: 5,000 residues have 25 million pairs
        near[i] = ((places - place) ** 2).sum(1) < CUTOFF**2
    between = near & (chains[:, None] != chains[None])
    kinds = {
        name: np.isin(types, [RESIDUE_LETTERS.index(letter) for letter in letters])
        for name, letters in _CLASSES.items()
    }
    pairs = [
        float((between & (kinds[a][:, None] & kinds[b][None])).sum())
        for a, b in itertools.combinations_with_replacement(_CLASSES, 2)
    ]
    within = float(np.triu(near & ~between, 3).sum())
    sizes = [between.sum(), between.any(1).sum(), within, len(places), len(np.unique(chains))]
    return np.log1p(np.array([*pairs, *map(float, sizes)])).tolist()
