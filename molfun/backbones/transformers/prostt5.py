"""ProstT5: ProtT5 for amino acids and for the letters of structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from molfun.backbones.language.alphabet import Alphabet, in_order
from molfun.backbones.language.structure_letters import STRUCTURE_LETTERS, UNKNOWN, letters_of
from molfun.backbones.transformers.prott5 import LETTERS, ProtT5Backbone
from molfun.sample import Sample
from molfun.strict import check_choice

Encodes = Literal["residues", "structure"]
_RESIDUES = Alphabet(LETTERS, padding=0, before=(149,), after=(1,))
"""Amino acids, after the token <AA2fold>."""
_IN_ORDER = in_order("ALGVSREDTIPKFQNYMHWC", 128)
_STRUCTURES = Alphabet(
    {letter.upper(): _IN_ORDER[letter.upper()] for letter in STRUCTURE_LETTERS} | {UNKNOWN: 2},
    padding=0,
    before=(148,),
    after=(1,),
    kind="structure letter",
)
"""Letters of structures, after the token <fold2AA>; all are written small. Unknown ones have the
token <unk>, as the model has none for them."""


class ProstT5Backbone(ProtT5Backbone):
    """ProstT5, the encoder alone: it encodes amino acids, or the 3Di letters of structures.

    Parameters
    ----------
    encodes
        ``"residues"``, or ``"structure"``: the structure letters of a sample, those computed from
        its structure, or else its sequence read as such letters. Neither is translated.
    config, **settings
        As for `TransformersBackbone`.

    References
    ----------
    Heinzinger et al. 2024, "Bilingual language model for protein sequence and structure", NAR
    Genomics and Bioinformatics 6. Letters: added_tokens.json of Rostlab/ProstT5.

    Examples
    --------
    >>> sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    >>> backbone = ProstT5Backbone(config=sizes, encodes="structure")
    >>> backbone.featurize(Sample(id="a", sequence="strct"))["tokens"].tolist()
    [148, 132, 136, 133, 147, 136, 1]
    """

    name = "prostt5"
    display_name = "ProstT5"
    weights_licence = "the MIT licence (ProstT5, Heinzinger et al. 2024)"
    alphabet = _RESIDUES
    presets = {"prostt5": ProtT5Backbone.presets["prott5_xl"]}
    settings = {**ProtT5Backbone.settings, "vocab_size": 150}

    def __init__(
        self, config: Any = None, *, encodes: Encodes = "residues", **settings: Any
    ) -> None:
        check_choice("alphabet", encodes, get_args(Encodes))
        super().__init__(config, **settings)
        self.encodes = encodes

    def around(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the tokens in front of every sequence, and behind it."""
        alphabet = _STRUCTURES if self.encodes == "structure" else _RESIDUES
        return alphabet.before, alphabet.after

    def encode(self, sample: Sample) -> np.ndarray:
        """Return the tokens of the residues of a sample, or of the letters of its structure."""
        if self.encodes == "residues":
            return super().encode(sample)
        letters = letters_of(sample)
        letters = self.sequence_of(sample) if letters is None else letters
        return _STRUCTURES.encode(letters, name=sample.shown)

    def vocabulary(self) -> dict[str, int]:
        """Return the letters as the tokenizer writes them, with their tokens."""
        small = {letter.lower(): token for letter, token in _STRUCTURES.ids.items() if token > 2}
        return {**_RESIDUES.ids, **small, "<AA2fold>": 149, "<fold2AA>": 148}

    def featurize_key(self) -> str:
        """Return the settings that decide tokens and windows."""
        return f"{super().featurize_key()} {self.encodes}"

    @property
    def config_dict(self) -> dict[str, Any]:
        """Architecture, the treatment of long sequences, and what is encoded."""
        return {**super().config_dict, "encodes": self.encodes}
