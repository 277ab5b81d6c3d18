"""Tokens of pairs of an amino acid and a letter of the structure."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from molfun._shapes import Int64
from molfun.backbones.language.alphabet import Alphabet
from molfun.backbones.language.structure_letters import (
    STRUCTURE_LETTERS,
    UNKNOWN,
    check_letters,
    letters_of,
)
from molfun.protein import AMINO_ACIDS
from molfun.sample import Sample

STRUCTURES = STRUCTURE_LETTERS + UNKNOWN
_SPECIAL = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
TOKENS = {
    a + b: len(_SPECIAL) + i
    for i, (a, b) in enumerate(itertools.product(AMINO_ACIDS + UNKNOWN, STRUCTURES))
}
"""Token of each pair, after the special ones (utils/esm_loader.py of
westlake-repl/SaProt@e91e485)."""
WORDS = (*_SPECIAL, *TOKENS)
"""All words of the vocabulary by their numbers."""
MASK = _SPECIAL.index("<mask>")
"""Token that hides a residue with its structure."""
_FIRST, _FIRST_UNKNOWN = TOKENS["A" + STRUCTURES[0]], TOKENS[UNKNOWN + STRUCTURES[0]]
_HIDDEN = TOKENS[UNKNOWN + UNKNOWN]
_ALONE = {letter: TOKENS[letter + UNKNOWN] for letter in AMINO_ACIDS}
PAIRS = Alphabet(
    # a hidden residue keeps its structure; this is the one of unknown structure
    {**_ALONE, **dict.fromkeys("XBUZO", _HIDDEN)},
    padding=1,
    before=(0,),
    after=(2,),
    mask=_HIDDEN,
)
"""Amino acids of unknown structure; other letters than the 20 are an unknown residue."""


def with_structures(
    tokens: Int64[np.ndarray, "residues"], letters: str
) -> Int64[np.ndarray, "residues"]:
    """Return the tokens of residues of unknown structure with the letters of one.

    Examples
    --------
    >>> with_structures(PAIRS.encode("ME"), "#V").tolist()
    [235, 78]
    """
    # the token of an unknown structure is the last of its amino acid
    first = tokens - STRUCTURES.index(UNKNOWN)
    return first + np.array([STRUCTURES.index(letter) for letter in letters.lower()])


def with_structure_of(
    sample: Sample, tokens: Int64[np.ndarray, "residues"], *, plddt_below: float | None = None
) -> Int64[np.ndarray, "residues"]:
    """Return the tokens of the residues of a sample with the letters of its structure, if known.

    Parameters
    ----------
    sample
        As `molfun.backbones.language.structure_letters.letters_of` takes it.
    tokens
        Of its residues with unknown structure.
    plddt_below
        pLDDT below which the letters of a structure are unknown.

    Raises
    ------
    DataError
        If the letters that the sample comes with are of another length or alphabet.
    """
    letters = letters_of(sample, plddt_below=plddt_below)
    if letters is None:
        return tokens
    check_letters(letters, sample, len(tokens))
    return with_structures(tokens, letters)


def of_amino_acids() -> torch.Tensor:
    """Return the tokens of the 20 amino acids with every structure."""
    return torch.arange(_FIRST, _FIRST_UNKNOWN)


def without_residues(tokens: torch.Tensor) -> torch.Tensor:
    """Return the tokens of unknown residues with the structures of `tokens`."""
    return _FIRST_UNKNOWN + (tokens - _FIRST) % len(STRUCTURES)


def log_probs_of_amino_acids(logits: torch.Tensor) -> torch.Tensor:
    """Return log probabilities of the 20 amino acids, each the sum over its 21 structures.

    Parameters
    ----------
    logits
        Logits of all tokens: (tokens, vocabulary).

    Returns
    -------
    Tensor of (tokens, 20), in the order of `molfun.protein.AMINO_ACIDS`.
    """
    pairs = torch.log_softmax(logits.float(), dim=-1)[:, _FIRST:]
    return pairs.unflatten(1, (-1, len(STRUCTURES))).logsumexp(-1)[:, : len(AMINO_ACIDS)]
