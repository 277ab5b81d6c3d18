"""Clusters of similar protein sequences: mmseqs2 where it is installed, alignments elsewhere."""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molfun.errors import RunError
from molfun.sample import MASK
from molfun.text import counted

if TYPE_CHECKING:
    from scipy.sparse import csr_array

logger = logging.getLogger(__name__)

MAX_EVALUE = 1e-3
"""Alignments expected by chance more often than this do not count (the default of mmseqs2). Without
it short peptides would join everything: half of nine residues match almost any protein."""
SHORT = 40
"""Sequences up to this length share too few words to be found by them and are aligned to all."""
MIN_CONTAINED = 6
"""Shortest peptide that counts as part of a protein when it occurs in it (by chance in one of
100,000 proteins; a peptide of 6 never reaches the E-value)."""
MANY_PAIRS = 50_000
"""Alignments that may take a minute; from here on the log recommends mmseqs2."""

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
"""Residues that words are made of."""
_AS_COMPARED = bytes(c if chr(c) in LETTERS + "BZX" else ord("X") for c in range(256))
"""Byte to the letter of BLOSUM62 that it is compared as."""
# Karlin-Altschul parameters of BLOSUM62 with gap costs 11, 1 (Altschul and Gish 1996)
_LAMBDA, _K = 0.267, 0.041


@dataclass(frozen=True)
class Clusters:
    """Cluster number of each sequence, and how it was found."""

    of: dict[str, int]
    method: str


def comparable(sequence: str) -> str:
    """Return a sequence as it is compared: upper case, X for what is no letter of BLOSUM62.

    Examples
    --------
    >>> comparable("mk<mask>Uo")
    'MKXXX'
    """
    plain = sequence.replace(MASK, "X").upper()
    # "replace" gives one byte per character
    return plain.encode("ascii", "replace").translate(_AS_COMPARED).decode("ascii")


def cluster_sequences(sequences: Iterable[str], threshold: float) -> Clusters:
    """Join sequences by single linkage at a sequence identity.

    Parameters
    ----------
    sequences
        One-letter sequences in either case; repeats count once.
    threshold
        Identical residues as a fraction of the shorter sequence.

    Returns
    -------
    Clusters
        Found by ``mmseqs`` if it is on the PATH, else by `cluster_by_alignment`.

    Raises
    ------
    RunError
        If mmseqs2 is installed and fails.
    """
    plain = {sequence: comparable(sequence) for sequence in sequences}
    unique = sorted(set(plain.values()))
    program = shutil.which("mmseqs")
    if program:
        logger.info("Clustering %d sequences with %s", len(unique), program)
        found, method = _cluster_by_mmseqs(unique, threshold, program), "mmseqs2"
    else:
        logger.info("mmseqs is not on the PATH; clustering %d sequences by alignment", len(unique))
        found, method = cluster_by_alignment(unique, threshold), "k-mers and alignment"
    return Clusters(of={raw: found[text] for raw, text in plain.items()}, method=method)


def union(n: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Find connected components of `n` items: the smallest member of each item's component.

    Examples
    --------
    >>> union(5, [(0, 3), (3, 4)])
    [0, 1, 2, 0, 0]
    """
    forest = _Forest(n)
    for left, right in pairs:
        forest.join(left, right)
    return [forest.root(i) for i in range(n)]


def linked(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return for each item the first one that it shares a key with, directly or through others.

    Examples
    --------
    >>> linked([["a"], ["b", "c"], ["a"], ["c", "d"]])
    [0, 1, 0, 1]
    """
    first: dict[Hashable, int] = {}
    pairs = ((first.setdefault(key, i), i) for i, own in enumerate(keys) for key in own)
    return union(len(keys), pairs)


class _Forest:
    """Disjoint sets whose root is the smallest member."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, left: int, right: int) -> None:
        low, high = sorted((self.root(left), self.root(right)))
        self._parent[high] = low


# By alignment


def cluster_by_alignment(sequences: Sequence[str], threshold: float) -> dict[str, int]:
    """Cluster by single linkage, from local alignments of pairs that share words.

    A pair is aligned (Smith-Waterman, BLOSUM62, gap costs 11 and 1) if it shares enough words of
    3 or 4 letters, or if one sequence is at most `SHORT` long, and if the two are not joined
    already. It is joined if the identical residues make at least `threshold` of the shorter
    sequence and the alignment is not a matter of chance (E-value below `MAX_EVALUE`).

    It can miss pairs, as mmseqs2 does: of pairs of 200 residues with their substitutions spread
    evenly, up to one in ten is missed within two points of the threshold and almost none ten
    points above it; short chains are missed more often. A family is split only if all its pairs
    across the cut are missed. The time grows with the square of the number of sequences: seconds
    for hundreds, minutes for thousands.

    Parameters
    ----------
    sequences
        Distinct sequences, as `comparable` gives them.
    threshold
        Identical residues as a fraction of the shorter sequence.

    Returns
    -------
    dict
        Sequence to cluster number.

    Examples
    --------
    >>> protein = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSG"
    >>> clusters = cluster_by_alignment([protein, protein[5:], "G" * 50], 0.4)
    >>> clusters[protein] == clusters[protein[5:]], clusters[protein] == clusters["G" * 50]
    (True, False)
    """
    forest = _Forest(len(sequences))
    candidates = list(_candidates(sequences, threshold))
    if len(candidates) > MANY_PAIRS:
        logger.warning(
            "%s may have to be aligned; with mmseqs2 on the PATH this takes seconds.",
            counted(len(candidates), "pair"),
        )
    for left, right in candidates:
        if forest.root(left) != forest.root(right) and _are_similar(
            sequences[left], sequences[right], threshold
        ):
            forest.join(left, right)
    return {sequence: forest.root(i) for i, sequence in enumerate(sequences)}


def _candidates(sequences: Sequence[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Return pairs worth aligning, those with the most shared words first."""
    word = 4 if threshold >= 0.4 else 3
    lengths = np.array([len(sequence) for sequence in sequences])
    counts = words_of(sequences, word)
    shared = (counts @ counts.T).tocoo()
    left, right, n_shared = shared.coords[0], shared.coords[1], shared.data
    shorter = np.minimum(lengths[left], lengths[right])
    enough = (left < right) & (n_shared >= _least_words(shorter, threshold, word))
    enough &= shorter > SHORT
    order = np.argsort(-n_shared[enough], kind="stable")
    yield from zip(left[enough][order].tolist(), right[enough][order].tolist(), strict=True)
    for i in np.flatnonzero(lengths <= SHORT).tolist():
        yield from ((i, j) for j in range(len(sequences)) if j > i or lengths[j] > SHORT)


def _least_words(length: np.ndarray, threshold: float, word: int) -> np.ndarray:
    """Return how many words 95 % of the pairs at the threshold share (Poisson, at least one)."""
    expected = length * threshold**word
    return np.maximum(1, np.floor(expected - 1.65 * np.sqrt(expected)))


def words_of(sequences: Sequence[str], word: int) -> csr_array:
    """Return a (sequences, words) matrix: one where the sequence has the word."""
    from scipy.sparse import csr_array

    order = np.full(256, -1, np.int8)
    order[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS))
    # all in one buffer; the blank between two sequences is in no word
    letters = order[np.frombuffer(" ".join(sequences).encode("ascii", "replace"), np.uint8)]
    n_words = max(0, len(letters) - word + 1)
    codes, whole = np.zeros(n_words, np.int32), np.ones(n_words, bool)
    for place in range(word):
        here = letters[place : place + n_words]
        codes += here * np.int32(len(LETTERS) ** place)
        whole &= here >= 0
    sizes = np.array([len(sequence) + 1 for sequence in sequences], np.int64)
    rows = np.repeat(np.arange(len(sequences)), sizes)[:n_words]
    shape = (len(sequences), len(LETTERS) ** word)
    found = csr_array((whole[whole].astype(np.int32), (rows[whole], codes[whole])), shape=shape)
    found.sum_duplicates()
    found.data[:] = 1
    return found


_ORDER = np.full(256, -1)
_ORDER[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS))


def word_codes(sequence: str, word: int) -> np.ndarray:
    """Return the number of each word of a sequence; words with other letters are left out."""
    letters = _ORDER[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]
    if letters.size < word:
        return np.zeros(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, word)
    windows = windows[(windows >= 0).all(axis=1)]
    return windows @ (len(LETTERS) ** np.arange(word))


@cache
def _aligner() -> Any:
    from Bio.Align import PairwiseAligner, substitution_matrices

    return PairwiseAligner(
        mode="local",
        substitution_matrix=substitution_matrices.load("BLOSUM62"),
        open_gap_score=-12,  # the first gapped residue costs opening and extension
        extend_gap_score=-1,
    )


def _are_similar(left: str, right: str, threshold: float) -> bool:
    shorter = min(len(left), len(right))
    if shorter == 0:
        return False
    if shorter >= MIN_CONTAINED and (left in right or right in left):
        return True
    score = _aligner().score(left, right)
    if score < _least_score(len(left), len(right)):
        return False
    alignment = next(iter(_aligner().align(left, right)))
    return alignment.counts().identities >= threshold * shorter


def identity(left: str, right: str) -> float:
    """Return identical residues in the best local alignment, as a fraction of the shorter sequence.

    Parameters
    ----------
    left, right
        Sequences as `comparable` gives them.

    Examples
    --------
    >>> identity("MKTAYIAKQR", "MKTAYIAKQR"), identity("MKTAYIAKQR", "MKTAYLAKQR")
    (1.0, 0.9)
    """
    shorter = min(len(left), len(right))
    if shorter == 0 or _aligner().score(left, right) <= 0:
        return 0.0
    alignment = next(iter(_aligner().align(left, right)))
    return float(alignment.counts().identities) / shorter


def nearest_by_words(sequences: Sequence[str], known: Sequence[str]) -> list[int]:
    """Return for each sequence the known one with which it shares most words of three letters.

    Parameters
    ----------
    sequences, known
        Sequences as `comparable` gives them, at least one of each.

    Examples
    --------
    >>> nearest_by_words(["MKTAYIAK"], ["GGGGGGGG", "MKTAYLAK"])
    [1]
    """
    other = words_of(known, 3)
    sizes = np.maximum(1, np.diff(other.indptr))
    found: list[int] = []
    # in blocks, since variants of one protein share words in every pair
    for start in range(0, len(sequences), 100):
        block = words_of(sequences[start : start + 100], 3)
        shared = (block @ other.T).toarray()
        # of two that share as many, the one with fewer others
        found += (shared - sizes / (sizes.max() + 1)).argmax(axis=1).tolist()
    return found


def _least_score(n: int, m: int) -> float:
    """Return the score that `MAX_EVALUE` alignments reach by chance (Karlin and Altschul 1990)."""
    return math.log(_K * n * m / MAX_EVALUE) / _LAMBDA


# By mmseqs2


def _cluster_by_mmseqs(sequences: Sequence[str], threshold: float, program: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory(prefix="molfun_mmseqs_") as folder:
        fasta, result = Path(folder) / "in.fasta", Path(folder) / "out"
        fasta.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(sequences)))
        command = [
            program, "easy-cluster", str(fasta), str(result), str(Path(folder) / "tmp"),
            "--min-seq-id", f"{threshold:.4f}", "--seq-id-mode", "1", "-c", "0",
            "--cluster-mode", "1", "-e", str(MAX_EVALUE), "-v", "1",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        table = Path(f"{result}_cluster.tsv")
        if done.returncode != 0 or not table.is_file():
            output = (done.stderr or done.stdout).strip().splitlines()
            raise RunError(
                f"{program} failed ({output[-1] if output else f'code {done.returncode}'}). "
                f"Repair it, or take it off the PATH to cluster without it."
            )
        rows = [line.split("\t") for line in table.read_text().splitlines()]
    roots = union(len(sequences), ((int(left), int(right)) for left, right in rows))
    return {sequence: roots[i] for i, sequence in enumerate(sequences)}
