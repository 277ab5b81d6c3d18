"""Turn protein sequences into the token ids of a language model."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from molfun._shapes import Int64
from molfun.errors import DataError
from molfun.protein import AMINO_ACIDS
from molfun.sample import MASK

# The models have tokens for gaps ("-", ".") and would read them without a word; they are refused,
# as a gap in a sequence means that it was cut from an alignment
_REMEDIES = {
    "J": "it stands for leucine or isoleucine; write X",
    "*": "a stop codon; end the sequence before it",
    "-": "a gap; remove it, alignments are not taken",
    ".": "a gap; remove it, alignments are not taken",
    "<": f"only the token {MASK} may be written in brackets",
}


@dataclass(frozen=True)
class Alphabet:
    """Letters of a protein language model and their token ids.

    Parameters
    ----------
    ids
        Token id of each letter, in capitals; small letters count as capitals.
    padding
        Token that fills up padded rows.
    before, after
        Tokens in front of a sequence, and behind it.
    mask
        Token that hides a residue, written ``<mask>``; None where the model has none.
    kind
        What a letter stands for, for messages.

    Examples
    --------
    >>> Alphabet({"A": 5, "K": 7}, padding=0, mask=9).encode("AK<mask>a").tolist()
    [5, 7, 9, 5]
    """

    ids: Mapping[str, int]
    padding: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    mask: int | None = None
    kind: str = "amino acid"

    def encode(self, sequence: str, *, name: str = "sequence") -> Int64[np.ndarray, "residues"]:
        """Return the token ids of a sequence, without the tokens around it.

        Parameters
        ----------
        sequence
            One-letter codes; ``<mask>`` is one masked residue.
        name
            Name of the sequence in errors.

        Raises
        ------
        DataError
            If the sequence is empty or holds a letter without a token; the text has the letter and
            its position.
        """
        if not sequence:
            raise DataError(f"{name}: the sequence is empty.")
        plain = sequence.replace("\0", "?").replace(MASK, "\0")
        # one table lookup for the whole sequence instead of a loop over its letters
        codes = np.frombuffer(plain.encode("utf-32-le"), np.uint32)
        known = codes < 128
        # code 1 has no token; it stands in for characters beyond the table
        ids: np.ndarray = np.where(known, self._table[np.where(known, codes, 1)], -1)
        bad = np.flatnonzero(ids < 0)
        if bad.size:
            raise DataError(f"{name}: {self._describe(plain, bad)}")
        return ids

    def doubtful(self, sequences: Iterable[str]) -> list[int]:
        """Return the places of sequences that are empty or hold anything but letters.

        Examples
        --------
        >>> ESM.doubtful(["MKV", "mkx", "MK1", ""])
        [2, 3]
        """
        found: list[int] = []
        left, start = iter(sequences), 0
        # together, in blocks that stay in the processor's cache
        while block := list(itertools.islice(left, 500)):
            if not all(block) or self._is_odd("".join(block)):
                found += [
                    start + i for i, text in enumerate(block) if not text or self._is_odd(text)
                ]
            start += len(block)
        return found

    @functools.cached_property
    def letters(self) -> bytes:
        """All letters in both cases."""
        return "".join([*self.ids, *(letter.lower() for letter in self.ids)]).encode()

    @functools.cached_property
    def residues(self) -> Int64[np.ndarray, "20"]:
        """Tokens of the 20 amino acids, in the order of `AMINO_ACIDS`."""
        return self.encode(AMINO_ACIDS)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Token id of each ASCII character, -1 for a character without one."""
        table = np.full(128, -1, np.int64)
        for letter, token in self.ids.items():
            table[ord(letter)] = table[ord(letter.lower())] = token
        # `encode` replaces the text <mask> by this character
        table[0] = -1 if self.mask is None else self.mask
        return table

    def _is_odd(self, text: str) -> bool:
        return bool(text.encode("utf-8", "replace").translate(None, self.letters))

    def _describe(self, text: str, bad: np.ndarray) -> str:
        first = text[bad[0]]
        if first == "\0":
            return f"{MASK} at position {bad[0] + 1}: this model has no token for hidden residues."
        remedy = _REMEDIES.get(first.upper())
        if remedy is None:
            kind = "a space" if first.isspace() else unicodedata.name(first, "a control character")
            remedy = f"{kind.lower()}; allowed are {''.join(self.ids)}"
        more = f" (and {bad.size - 1} more)" if bad.size > 1 else ""
        return f"{first!r} at position {bad[0] + 1} is no {self.kind}{more}: {remedy}."


def in_order(letters: str, first: int) -> dict[str, int]:
    """Return consecutive token ids of letters.

    Examples
    --------
    >>> in_order("LAG", 4)
    {'L': 4, 'A': 5, 'G': 6}
    """
    return {letter: first + i for i, letter in enumerate(letters)}


_ESM_LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"
ESM = Alphabet(
    # the order of the messages: the 20 amino acids and then the others
    {letter: in_order(_ESM_LETTERS, 4)[letter] for letter in AMINO_ACIDS + "XBUZO"},
    padding=1,
    before=(0,),
    after=(2,),
    mask=32,
)
"""Letters of ESM-1b, ESM-1v, ESM-2 and ESM-C (``Alphabet.from_architecture("ESM-1b")``)."""


def esm_words() -> tuple[str, ...]:
    """Return all words of that vocabulary by their numbers, as ``vocab.txt`` lists them."""
    special = ("<cls>", "<pad>", "<eos>", "<unk>")
    return (*special, *_ESM_LETTERS, ".", "-", "<null_1>", "<mask>")
