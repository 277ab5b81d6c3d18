"""Turn protein sequences into token ids of ESM-2."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable

import numpy as np

from molfun._shapes import Int64
from molfun.errors import DataError
from molfun.sample import MASK

LETTERS = "ACDEFGHIKLMNPQRSTVWYXBUZO"
"""The 20 amino acids, and the other letters of ESM-2: X, B, U, Z, O."""
LETTERS_OF_BOTH_CASES = (LETTERS + LETTERS.lower()).encode()
# fair-esm also has tokens for gaps ("-", ".") and would read them without a word; they are refused,
# as a gap in a sequence means that it was cut from an alignment
_REMEDIES = {
    "J": "it stands for leucine or isoleucine; write X",
    "*": "a stop codon; end the sequence before it",
    "-": "a gap; remove it, alignments are not taken",
    ".": "a gap; remove it, alignments are not taken",
    "<": f"only the token {MASK} may be written in brackets",
}


@functools.cache
def _ids() -> dict[str, int]:
    from esm.data import Alphabet

    return dict(Alphabet.from_architecture("ESM-1b").tok_to_idx)


def special(name: str) -> int:
    """Return the id of a special token: ``"<cls>"``, ``"<pad>"``, ``"<eos>"`` or ``"<mask>"``."""
    return _ids()[name]


@functools.cache
def _table() -> np.ndarray:
    """Return the token id of each ASCII character, -1 for a character without one."""
    table = np.full(128, -1, np.int64)
    for letter in LETTERS:
        table[ord(letter)] = table[ord(letter.lower())] = _ids()[letter]
    table[0] = special(MASK)  # `encode` replaces the text <mask> by this character
    return table


def encode(sequence: str, *, name: str = "sequence") -> Int64[np.ndarray, "residues"]:
    """Return the token ids of a sequence, without the tokens for beginning and end.

    Lower-case letters count as capitals; ``<mask>`` is one masked residue.

    Parameters
    ----------
    sequence
        One-letter codes: the 20 amino acids and X, B, U, Z, O.
    name
        Name of the sequence in errors.

    Raises
    ------
    DataError
        If the sequence is empty or holds anything else; the text has the letter and its position.

    Examples
    --------
    >>> encode("MKV<mask>").tolist()
    [20, 15, 7, 32]
    """
    if not sequence:
        raise DataError(f"{name}: the sequence is empty.")
    plain = sequence.replace("\0", "?").replace(MASK, "\0")
    # one table lookup for the whole sequence instead of a loop over its letters
    codes = np.frombuffer(plain.encode("utf-32-le"), np.uint32)
    known = codes < 128
    # code 1 has no token; it stands in for characters beyond the table
    ids = np.where(known, _table()[np.where(known, codes, 1)], -1)
    bad = np.flatnonzero(ids < 0)
    if bad.size:
        raise DataError(f"{name}: {_describe(plain, bad)}")
    return ids


def doubtful(sequences: Iterable[str]) -> list[int]:
    """Return the places of sequences that are empty or hold anything but letters of amino acids.

    Examples
    --------
    >>> doubtful(["MKV", "mkx", "MK1", ""])
    [2, 3]
    """
    found: list[int] = []
    left, start = iter(sequences), 0
    # together, in blocks that stay in the processor's cache
    while block := list(itertools.islice(left, 500)):
        if not all(block) or _is_odd("".join(block)):
            found += [start + i for i, text in enumerate(block) if not text or _is_odd(text)]
        start += len(block)
    return found


def _is_odd(text: str) -> bool:
    return bool(text.encode("utf-8", "replace").translate(None, LETTERS_OF_BOTH_CASES))


def _describe(text: str, bad: np.ndarray) -> str:
    first = text[bad[0]]
    remedy = _REMEDIES.get(first.upper())
    if remedy is None:
        kind = "a space" if first.isspace() else unicodedata.name(first, "a control character")
        remedy = f"{kind.lower()}; allowed are {LETTERS}"
    more = f" (and {bad.size - 1} more)" if bad.size > 1 else ""
    return f"{first!r} at position {bad[0] + 1} is no amino acid{more}: {remedy}."
