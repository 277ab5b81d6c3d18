"""How far a sample is from the training set: identity to its nearest training sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from molfun._shapes import Float64, Int64
from molfun.data.clusters import SHORT, comparable, identity, words_of

CANDIDATES = 8
"""Training sequences that are aligned to each sample: those that share most words with it."""
NEAR = 0.95
"""Identity from which a sample counts as nearly a training sample."""
_ROWS = 256
"""Samples whose words are compared at once, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest training sample of each sample.

    Parameters
    ----------
    places
        Its position in the training set; -1 where no training sequence shares a word.
    identities
        Identical residues of the alignment per residue of the shorter sequence, 0 to 1.
    same
        Whether the sample has a chain of the very same sequence.
    """

    places: Int64[np.ndarray, "samples"]
    identities: Float64[np.ndarray, "samples"]
    same: np.ndarray

    @property
    def n_same(self) -> int:
        """Number of samples whose sequence is in the training set."""
        return int(self.same.sum())

    @property
    def n_near(self) -> int:
        """Number of further samples that are almost the same: identity `NEAR` or more."""
        return int(((self.identities >= NEAR) & ~self.same).sum())


def nearest(samples: Sequence[Sequence[str]], training: Sequence[Sequence[str]]) -> Nearest:
    """Find the training sample of the highest sequence identity for each sample.

    Sequences that share most words of 3 letters (2 where one has at most `SHORT` residues) are
    aligned, so a distant relative may be missed; a close one is not. Of a complex, the chain with
    the nearest relative counts.

    Parameters
    ----------
    samples, training
        Chains of each sample, as ``dataset.sequences()`` gives them.

    Examples
    --------
    >>> found = nearest([["MKTAYIAKQR"], ["GGSGGS"]], [["WWWWCC"], ["MKTAYIAKQW"]])
    >>> found.places.tolist(), found.identities.tolist()
    ([1, -1], [0.9, 0.0])
    """
    owner = _owners(training)
    plain = [[comparable(chain) for chain in sample] for sample in samples]
    best = _best_of_each({chain for sample in plain for chain in sample}, owner)
    of_each = [max((best[chain] for chain in sample), default=NOTHING_NEAR) for sample in plain]
    same = [not owner.keys().isdisjoint(sample) for sample in plain]
    return Nearest(
        places=np.array([-place for _, place in of_each], np.int64),
        identities=np.array([value for value, _ in of_each], np.float64),
        same=np.array(same, bool),
    )


NOTHING_NEAR = (0.0, 1)
"""Identity and negative position where there is no relative."""


def _owners(training: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the position of the first sample with each chain."""
    owner: dict[str, int] = {}
    for place, chains in enumerate(training):
        for chain in chains:
            owner.setdefault(comparable(chain), place)
    return owner


def _best_of_each(chains: Iterable[str], owner: Mapping[str, int]) -> dict[str, tuple[float, int]]:
    """Return identity and negative position of the nearest training sample for each chain.

    Negative, so that of equally near ones the largest pair is the first in the training set.
    """
    known = list(owner)
    best = {chain: (1.0, -owner[chain]) for chain in owner}
    new = sorted(chain for chain in chains if chain not in owner)
    for start in range(0, len(new), _ROWS):
        part = new[start : start + _ROWS]
        for chain, candidates in zip(part, _candidates(part, known), strict=True):
            pairs = [(identity(chain, known[i]), -owner[known[i]]) for i in candidates]
            best[chain] = max([pair for pair in pairs if pair[0]], default=NOTHING_NEAR)
    return best


def _candidates(chains: Sequence[str], known: Sequence[str]) -> list[list[int]]:
    """Return positions of the known sequences that share most words with each chain."""
    if not known:
        return [[] for _ in chains]
    shortest = min(map(len, (*chains, *known)))
    word = 2 if shortest <= SHORT else 3
    shared = (words_of(chains, word) @ words_of(known, word).T).tocsr()
    found = []
    for row in range(len(chains)):
        inside = slice(shared.indptr[row], shared.indptr[row + 1])
        # stable, so that of equally good ones the first of the training set is taken
        order = np.argsort(-shared.data[inside], kind="stable")[:CANDIDATES]
        found.append(shared.indices[inside][order].tolist())
    return found
