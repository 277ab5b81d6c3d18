"""SaProt: ESM-2 with a token for each residue and its structure."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from molfun.backbones.language.alphabet import Alphabet
from molfun.backbones.language.structure_letters import (
    STRUCTURE_LETTERS,
    UNKNOWN,
    check_letters,
    letters_of,
)
from molfun.backbones.transformers.esm import EsmBackbone
from molfun.errors import ConfigError
from molfun.protein import AMINO_ACIDS
from molfun.sample import Sample

STRUCTURES = STRUCTURE_LETTERS + UNKNOWN
TOKENS = {
    a + b: 5 + i for i, (a, b) in enumerate(itertools.product(AMINO_ACIDS + UNKNOWN, STRUCTURES))
}
"""Token of each pair of an amino acid and a structure letter, after <cls>, <pad>, <eos>, <unk> and
<mask> (utils/esm_loader.py of westlake-repl/SaProt@e91e485)."""
_ALONE = {letter: TOKENS[letter + UNKNOWN] for letter in AMINO_ACIDS}
_HIDDEN = TOKENS[UNKNOWN + UNKNOWN]


class SaProtBackbone(EsmBackbone):
    """SaProt, whose tokens are pairs of an amino acid and a letter of the structure (3Di).

    The letters are those that a sample comes with, or are computed from its structure; without
    either they are unknown. Other letters than the 20 amino acids are an unknown residue.

    Parameters
    ----------
    plddt_below
        Residues with a lower pLDDT (the mean of the B-factors of their atoms) have an unknown
        structure. Set 70, as SaProt's authors do, if the structures are predicted, and leave it out
        for experimental ones, whose B-factors mean another thing.
    config, **settings
        As for `TransformersBackbone`.

    References
    ----------
    Su et al. 2024, "SaProt: Protein Language Modeling with Structure-aware Vocabulary", ICLR.
    Sizes: the ``config.json`` of westlake-repl/SaProt_35M_AF2 and SaProt_650M_PDB.

    Examples
    --------
    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> sample = Sample(id="a", sequence="MEV", structure_letters="#vp")
    >>> SaProtBackbone(config=sizes).featurize(sample)["tokens"].tolist()
    [0, 235, 78, 362, 2]
    """

    name = "saprot"
    display_name = "SaProt"
    weights_licence = "the MIT licence (SaProt, Su et al. 2024)"
    alphabet = Alphabet(
        # a hidden residue keeps its structure; this is the one of unknown structure
        {**_ALONE, **dict.fromkeys("XBUZO", _HIDDEN)},
        padding=1,
        before=(0,),
        after=(2,),
        mask=_HIDDEN,
    )
    presets = {
        "saprot_35m": {"num_hidden_layers": 12, "hidden_size": 480, "num_attention_heads": 20},
        "saprot_650m": {
            "num_hidden_layers": 33,
            "hidden_size": 1280,
            "num_attention_heads": 20,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
        },
    }
    settings = {**EsmBackbone.settings, "vocab_size": 446, "mask_token_id": 4}

    def __init__(
        self, config: Any = None, *, plddt_below: float | None = None, **settings: Any
    ) -> None:
        if plddt_below is not None and not 0 <= plddt_below <= 100:
            raise ConfigError(f"plddt_below must be from 0 to 100, got {plddt_below}.")
        super().__init__(config, **settings)
        self.plddt_below = plddt_below

    def encode(self, sample: Sample) -> np.ndarray:
        """Return the tokens of the residues of a sample, with the letters of its structure."""
        alone = super().encode(sample)
        letters = letters_of(sample, plddt_below=self.plddt_below)
        if letters is None:
            return alone
        check_letters(letters, sample, len(alone))
        # each token is that of an unknown structure, the last of its amino acid
        return alone - 20 + np.array([STRUCTURES.index(letter) for letter in letters.lower()])

    @property
    def mask_token(self) -> int:
        """Token of training that hides a residue with its structure."""
        return 4

    @property
    def residue_tokens(self) -> torch.Tensor:
        """Tokens of the 20 amino acids with every structure."""
        return torch.arange(TOKENS["Ap"], TOKENS[UNKNOWN + STRUCTURES[0]])

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens of unknown residues with the structures of `tokens`."""
        return TOKENS[UNKNOWN + STRUCTURES[0]] + (tokens - TOKENS["Ap"]) % len(STRUCTURES)

    def amino_acid_log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log probabilities of the 20 amino acids, each the sum over its 21 structures."""
        pairs = torch.log_softmax(logits.float(), dim=-1)[:, TOKENS["Ap"] :]
        return pairs.unflatten(1, (-1, len(STRUCTURES))).logsumexp(-1)[:, : len(AMINO_ACIDS)]

    def vocabulary(self) -> dict[str, int]:
        """Return the pairs with their tokens."""
        return TOKENS

    def words(self) -> list[str]:
        """Return the words of the vocabulary by their numbers."""
        return ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *TOKENS]

    def featurize_key(self) -> str:
        """Return the settings that decide tokens and windows."""
        return f"{super().featurize_key()} {self.plddt_below}"

    @property
    def config_dict(self) -> dict[str, Any]:
        """Architecture, and the treatment of long sequences and of uncertain residues."""
        return {**super().config_dict, "plddt_below": self.plddt_below}
