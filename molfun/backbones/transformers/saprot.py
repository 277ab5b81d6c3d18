"""SaProt: ESM-2 with a token for each residue and its structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from molfun.backbones.language import structure_tokens
from molfun.backbones.language.structure_letters import check_plddt
from molfun.backbones.transformers.esm import EsmBackbone
from molfun.sample import Sample


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
    alphabet, words = structure_tokens.PAIRS, structure_tokens.WORDS
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
        check_plddt(plddt_below)
        super().__init__(config, **settings)
        self.plddt_below = plddt_below

    def encode(self, sample: Sample) -> np.ndarray:
        """Return the tokens of the residues of a sample, with the letters of its structure."""
        alone = super().encode(sample)
        return structure_tokens.with_structure_of(sample, alone, plddt_below=self.plddt_below)

    @property
    def mask_token(self) -> int:
        """Token of training that hides a residue with its structure."""
        return structure_tokens.MASK

    @property
    def residue_tokens(self) -> torch.Tensor:
        """Tokens of the 20 amino acids with every structure."""
        return structure_tokens.of_amino_acids()

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens of unknown residues with the structures of `tokens`."""
        return structure_tokens.without_residues(tokens)

    def amino_acid_log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log probabilities of the 20 amino acids, each the sum over its 21 structures."""
        return structure_tokens.log_probs_of_amino_acids(logits)

    def featurize_key(self) -> str:
        """Return the settings that decide tokens and windows."""
        return f"{super().featurize_key()} {self.plddt_below}"

    @property
    def config_dict(self) -> dict[str, Any]:
        """Architecture, and the treatment of long sequences and of uncertain residues."""
        return {**super().config_dict, "plddt_below": self.plddt_below}
