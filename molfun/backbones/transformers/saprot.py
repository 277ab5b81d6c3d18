"""SaProt: ESM-2 with a token for each residue and its structure."""

from __future__ import annotations

from molfun.backbones.language.structure_tokens import PAIRS, WORDS, StructureTokens
from molfun.backbones.transformers.esm import EsmBackbone


class SaProtBackbone(StructureTokens, EsmBackbone):
    """SaProt, whose tokens are pairs of an amino acid and a letter of the structure (3Di).

    The letters are those that a sample comes with, or are computed from its structure; without
    either they are unknown. Other letters than the 20 amino acids are an unknown residue.

    Parameters
    ----------
    plddt_below
        Residues with a lower pLDDT (the mean of the B-factors of their atoms) have an unknown
        structure. ``"auto"``: 70, as SaProt's authors do, where the file of a structure says that
        it is a prediction, and all residues of other structures, whose B-factors mean another
        thing. A number counts for all structures.
    config, **settings
        As for `TransformersBackbone`.

    References
    ----------
    Su et al. 2024, "SaProt: Protein Language Modeling with Structure-aware Vocabulary", ICLR.
    Sizes: the ``config.json`` of westlake-repl/SaProt_35M_AF2 and SaProt_650M_PDB.

    Examples
    --------
    >>> from molfun.sample import Sample
    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> sample = Sample(id="a", sequence="MEV", structure_letters="#vp")
    >>> SaProtBackbone(config=sizes).featurize(sample)["tokens"].tolist()
    [0, 235, 78, 362, 2]
    """

    name = "saprot"
    display_name = "SaProt"
    weights_licence = "the MIT licence (SaProt, Su et al. 2024)"
    alphabet, words = PAIRS, WORDS
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
