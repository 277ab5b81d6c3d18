"""Sketches of training sequences: identities are estimated from them without the sequences.

A sketch keeps the smallest keyed hashes of the words of four letters in a sequence (MinHash,
bottom-k). A new sequence is there as a whole, so the share of the kept words that it contains
estimates the share of all words, without bias. If a residue changes, up to four words change:
identity is about the fourth root of that share, as in Mash.

References
----------
Broder 1997, "On the resemblance and containment of documents"; Ondov et al. 2016, "Mash: fast
genome and metagenome distance estimation using MinHash".
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from molfun._shapes import Float64, Int64
from molfun.data.clusters import LETTERS, comparable, word_codes
from molfun.errors import CheckpointError
from molfun.evaluation.nearest import NOTHING_NEAR, Nearest

if TYPE_CHECKING:
    from scipy.sparse import csr_array

WORD = 4
"""Letters per word. Of 3, chance words hide relatives; of 5, one change costs too many (of 400
natural sequences with 0 to 60 % of residues changed, Spearman with the true identity 0.97, 0.97 and
0.96 at 64 words)."""
KEPT = 64
"""Words kept per sequence, 4 bytes each; shorter ones than 68 residues are kept with all words."""
MOST = 10_000
"""Sequences with words; hashes of the whole sequence are kept of all."""
CHANCE = 0.01
"""A relative whose shared words are expected by chance more often than this per search is none."""
_REPEATS = 2
"""Words occur this much more often by chance than in random letters, as residues are uneven."""
_BLOCK = 256
"""Samples that are compared at once, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Keyed hashes of a training set.

    The key keeps two checkpoints from being compared and tables of hashes from being of use. It is
    stored next to the hashes, so a reader can test a guess: confidential sequences need more.

    Parameters
    ----------
    key
        16 bytes.
    n_rows
        Training samples.
    ids
        Hash of the id of each sample.
    chains, rows
        Hash of each distinct sequence, and the position of the first sample with it.
    sketched
        Positions in `chains` of those with words.
    sizes, kept
        Distinct words of these, and how many of them are kept.
    words
        Hashes of the kept words, those of one sequence after those of another.
    """

    key: bytes
    n_rows: int
    ids: Int64[np.ndarray, "rows"]
    chains: Int64[np.ndarray, "chains"]
    rows: Int64[np.ndarray, "chains"]
    sketched: Int64[np.ndarray, "sketched"]
    sizes: Int64[np.ndarray, "sketched"]
    kept: Int64[np.ndarray, "sketched"]
    words: Int64[np.ndarray, "words"]

    @classmethod
    def of(cls, ids: Sequence[str], chains: Sequence[Sequence[str]], *, key: bytes) -> Self:
        """Return the sketch of a training set.

        Parameters
        ----------
        ids, chains
            Id and sequences of each sample.
        key
            16 bytes that no other training set has.

        Examples
        --------
        >>> sketch = Sketch.of(["a"], [["MKTAYIAKQRQISFVK"]], key=bytes(16))
        >>> found = sketch.nearest([["mktayiakqrqisfvk"], ["MKTAYIAKQRQISFVR"], ["GGSGGSGGSG"]])
        >>> found.places.tolist(), found.identities.round(2).tolist(), found.same.tolist()
        ([0, 0, -1], [1.0, 0.98, 0.0], [True, False, False])
        """
        first: dict[str, int] = {}
        for row, own in enumerate(chains):
            for chain in own:
                first.setdefault(comparable(chain), row)
        texts = list(first)
        chosen = evenly(len(texts), MOST)
        words = [_words(texts[i], key) for i in chosen]
        kept = [np.sort(own)[:KEPT] for own in words]
        return cls(
            key=key,
            n_rows=len(ids),
            ids=_hashes(ids, key),
            chains=_hashes(texts, key),
            rows=np.array(list(first.values()), np.int64),
            sketched=chosen,
            sizes=np.array([len(own) for own in words], np.int64),
            kept=np.array([len(own) for own in kept], np.int64),
            words=np.concatenate([*kept, np.zeros(0, np.int64)]),
        )

    def joined(self, later: Sketch) -> Sketch:
        """Return one sketch of two training sets with one key; the rows of `later` come after."""
        new = ~np.isin(later.chains, self.chains)
        # positions of the new chains of `later` in the result; the others are there already
        places = np.where(new, len(self.chains) + np.cumsum(new) - 1, -1)
        fresh = new[later.sketched][: max(0, MOST - len(self.sketched))]
        fresh = np.pad(fresh, (0, len(later.sketched) - len(fresh)))
        words = np.split(later.words, np.cumsum(later.kept)[:-1]) if len(later.kept) else []
        more = [own for own, wanted in zip(words, fresh, strict=True) if wanted]
        return Sketch(
            key=self.key,
            n_rows=self.n_rows + later.n_rows,
            ids=np.concatenate([self.ids, later.ids]),
            chains=np.concatenate([self.chains, later.chains[new]]),
            rows=np.concatenate([self.rows, later.rows[new] + self.n_rows]),
            sketched=np.concatenate([self.sketched, places[later.sketched][fresh]]),
            sizes=np.concatenate([self.sizes, later.sizes[fresh]]),
            kept=np.concatenate([self.kept, later.kept[fresh]]),
            words=np.concatenate([self.words, *more]),
        )

    @property
    def n_left_out(self) -> int:
        """Sequences without words, which are recognised only as a whole."""
        return len(self.chains) - len(self.sketched)

    def nearest(self, samples: Sequence[Sequence[str]]) -> Nearest:
        """Estimate the identity of each sample to its nearest training sequence.

        About 0.03 off above an identity of 0.6, and 0 below about 0.5, where chance shares as many
        words. Of a complex, the chain with the nearest relative counts.

        Parameters
        ----------
        samples
            Chains of each sample, as ``dataset.sequences()`` gives them.
        """
        plain = [[comparable(chain) for chain in sample] for sample in samples]
        best, known = self._best_of_each(sorted({chain for own in plain for chain in own}))
        of_each = [max((best[c] for c in own), default=NOTHING_NEAR) for own in plain]
        return Nearest(
            places=np.array([-place for _, place in of_each], np.int64),
            identities=np.array([value for value, _ in of_each], np.float64),
            same=np.array([not known.isdisjoint(own) for own in plain], bool),
        )

    def _best_of_each(self, texts: Sequence[str]) -> tuple[dict[str, tuple[float, int]], set[str]]:
        """Return identity and negative row of the nearest for each text, and the known ones."""
        rows = dict(zip(self.chains.tolist(), self.rows.tolist(), strict=True))
        hashes = zip(texts, _hashes(texts, self.key).tolist(), strict=True)
        best = {text: (1.0, -rows[found]) for text, found in hashes if found in rows}
        known = set(best)
        new = [text for text in texts if text not in known]
        return best | dict(zip(new, self._estimates(new), strict=True)), known

    def knows(self, ids: Iterable[str]) -> np.ndarray:
        """Return for each id whether it is that of a training sample."""
        return np.isin(_hashes(ids, self.key), self.ids)

    def _estimates(self, texts: Sequence[str]) -> Iterator[tuple[float, int]]:
        """Yield identity and negative row of the nearest sequence, as in `nearest`."""
        vocabulary = np.unique(self.words)
        owners = np.repeat(np.arange(len(self.kept)), self.kept)
        ours = _matrix(owners, np.searchsorted(vocabulary, self.words), self.kept, vocabulary)
        for start in range(0, len(texts), _BLOCK):
            words = [_words(text, self.key) for text in texts[start : start + _BLOCK]]
            found = [np.flatnonzero(np.isin(vocabulary, own)) for own in words]
            lines = np.repeat(np.arange(len(found)), list(map(len, found)))
            columns = np.concatenate([*found, np.zeros(0, np.int64)])
            shared = (_matrix(lines, columns, found, vocabulary) @ ours.T).tocsr()
            for i, own in enumerate(words):
                inside = slice(shared.indptr[i], shared.indptr[i + 1])
                yield self._best(shared.indices[inside], shared.data[inside], len(own))

    def _best(self, places: np.ndarray, n_shared: np.ndarray, n: int) -> tuple[float, int]:
        """Return the best of the sequences at `places`, which share words with a text of `n`."""
        from scipy.special import gammainc

        sizes, kept = self.sizes[places], self.kept[places]
        by_chance = kept * n * _REPEATS / len(LETTERS) ** WORD
        # gammainc(m, mean): the probability that a Poisson variable is m or more
        real = gammainc(n_shared, by_chance) * len(self.kept) < CHANCE
        if not real.any():
            return NOTHING_NEAR
        contained = n_shared / kept * sizes / np.minimum(sizes, n)
        identities: Float64[np.ndarray, "found"] = np.minimum(contained, 1) ** (1 / WORD)
        rows = -self.rows[self.sketched[places]]
        pairs = zip(identities[real].tolist(), rows[real].tolist(), strict=True)
        return max(pairs)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as arrays by name."""
        return {
            "key": np.frombuffer(self.key, np.uint8).copy(),
            "ids": self.ids,
            "chains": self.chains,
            "rows": self.rows.astype(np.int32),
            "sketched": self.sketched.astype(np.int32),
            "sizes": self.sizes.astype(np.int32),
            "kept": self.kept.astype(np.uint8),
            # 32 bits without a sign, which torch has no arithmetic for
            "words": self.words.astype(np.uint32).view(np.int32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Build the sketch from the result of `to_arrays`.

        Raises
        ------
        CheckpointError
            If arrays are missing or do not fit together.
        """
        try:
            wide: dict[str, Any] = {
                name: arrays[name].astype(np.int64)
                for name in ("ids", "chains", "rows", "sketched", "sizes", "kept")
            }
            # absent where all sequences are shorter than a word
            words = arrays.get("words", np.zeros(0, np.int32)).view(np.uint32).astype(np.int64)
            key = arrays["key"].astype(np.uint8).tobytes()
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"The sketch of the training set is damaged: {error}.") from error
        found = cls(key=key, n_rows=len(wide["ids"]), words=words, **wide)
        found._check()
        return found

    def _check(self) -> None:
        """Refuse arrays that do not fit together."""
        n, places = len(self.sketched), self.sketched
        fits = (
            len(self.key) == 16
            and len(self.rows) == len(self.chains)
            and len(self.sizes) == len(self.kept) == n
            and bool((self.kept >= 0).all())
            and self.kept.sum() == len(self.words)
            and bool(((places >= 0) & (places < len(self.chains))).all())
            and bool((self.sizes >= self.kept).all())
        )
        if not fits:
            raise CheckpointError("The sketch of the training set is damaged: its sizes disagree.")


def evenly(n: int, most: int) -> Int64[np.ndarray, "chosen"]:
    """Return at most `most` of `n` positions, evenly spaced.

    Examples
    --------
    >>> evenly(3, 5).tolist(), evenly(10, 3).tolist()
    ([0, 1, 2], [0, 4, 9])
    """
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def _hashes(texts: Iterable[str], key: bytes) -> Int64[np.ndarray, "texts"]:
    """Return 64 bits of a keyed hash per text."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.int64).copy()


def _words(text: str, key: bytes) -> Int64[np.ndarray, "words"]:
    """Return the hashes of the distinct words of a sequence."""
    return np.unique(_table(key)[word_codes(text, WORD)])


@functools.lru_cache(4)
def _table(key: bytes) -> Int64[np.ndarray, "words"]:
    """Return the keyed hash of every word: 32 bits each, sixteen from one block of BLAKE2b."""
    blocks = len(LETTERS) ** WORD // 16
    digests = (hashlib.blake2b(i.to_bytes(4, "little"), key=key).digest() for i in range(blocks))
    return np.frombuffer(b"".join(digests), np.uint32).astype(np.int64)


def _matrix(
    lines: np.ndarray, columns: np.ndarray, of: Sequence[Any] | np.ndarray, vocabulary: np.ndarray
) -> csr_array:
    """Return a (texts, words) matrix: one where the text has the word."""
    from scipy.sparse import csr_array

    shape = (len(of), len(vocabulary))
    return csr_array((np.ones(len(lines), np.int32), (lines, columns)), shape=shape)
