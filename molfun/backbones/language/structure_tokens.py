"""Tokens of pairs of an amino acid and a letter of the structure."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from molfun._shapes import Int64
from molfun.backbones.language.alphabet import Alphabet
from molfun.backbones.language.backbone import LanguageBackbone
from molfun.backbones.language.structure_letters import (
    STRUCTURE_LETTERS,
    UNKNOWN,
    Below,
    check_letters,
    check_plddt,
    letters_of,
    said_of_auto,
    threshold_of,
)
from molfun.backbones.own_keys import OwnKeys
from molfun.protein import AMINO_ACIDS, BFactors
from molfun.sample import Sample

logger = logging.getLogger(__name__)

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


class StructureTokens(OwnKeys, LanguageBackbone):
    """A language model whose tokens are these pairs.

    The letters are those that a sample comes with, or are computed from its structure; without
    either they are unknown.

    Parameters
    ----------
    plddt_below
        pLDDT below which the letters of a structure are unknown, as
        `molfun.backbones.language.structure_letters.threshold_of` takes it.
    config, **settings
        As for the backbone.
    """

    alphabet = PAIRS

    def __init__(self, config: Any = None, *, plddt_below: Below = None, **settings: Any) -> None:
        check_plddt(plddt_below)
        super().__init__(config, **settings)
        self.plddt_below = plddt_below

    def encode(self, sample: Sample) -> np.ndarray:
        """Return the tokens of the residues of a sample, with the letters of its structure."""
        alone = super().encode(sample)
        letters = letters_of(sample, plddt_below=self.plddt_below)
        if letters is None:
            return alone
        check_letters(letters, sample, len(alone))
        return with_structures(alone, letters)

    def problems(self, samples: Iterable[Sample]) -> tuple[int, list[str]]:
        """Count and list what cannot be used; say which structures ``plddt_below="auto"`` masks."""
        kinds: Counter[BFactors] = Counter()
        found = super().problems(self._counted(samples, kinds))
        if self.plddt_below == "auto" and kinds:
            logger.info("%s", said_of_auto(kinds))
        return found

    def _counted(self, samples: Iterable[Sample], kinds: Counter[BFactors]) -> Iterator[Sample]:
        for sample in samples:
            protein = sample.protein
            if protein is not None and sample.structure_letters is None and protein.atom_mask.any():
                kinds[protein.b_factors_are] += 1
            yield sample

    def input_key(self, sample: Sample) -> str:
        """Return the key of a sample, with the letters that B-factors leave out."""
        key = super().input_key(sample)
        protein = sample.protein
        if protein is None or sample.structure_letters is not None:
            return key
        threshold = threshold_of(protein, self.plddt_below)
        if threshold is None:
            return key
        left_out = np.packbits(protein.plddt() < threshold).tobytes().hex()
        return f"{key} {left_out}"

    @property
    def mask_token(self) -> int:
        """Token of training that hides a residue with its structure."""
        return _SPECIAL.index("<mask>")

    @property
    def residue_tokens(self) -> torch.Tensor:
        """Tokens of the 20 amino acids with every structure."""
        return torch.arange(_FIRST, _FIRST_UNKNOWN)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens of unknown residues with the structures of `tokens`."""
        return _FIRST_UNKNOWN + (tokens - _FIRST) % len(STRUCTURES)

    def amino_acid_log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log probabilities of the 20 amino acids, each the sum over its 21 structures."""
        pairs = torch.log_softmax(logits.float(), dim=-1)[:, _FIRST:]
        return pairs.unflatten(1, (-1, len(STRUCTURES))).logsumexp(-1)[:, : len(AMINO_ACIDS)]

    def featurize_key(self) -> str:
        """Return the settings that decide tokens and windows."""
        return f"{super().featurize_key()} {self.plddt_below}"

    @property
    def config_dict(self) -> dict[str, Any]:
        """Architecture, and the treatment of long sequences and of uncertain residues."""
        return {**super().config_dict, "plddt_below": self.plddt_below}
