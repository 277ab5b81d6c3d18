"""Families of transformers give the numbers of the stock classes, by every path."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import (
    EsmcConfig,
    EsmcForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    EsmModel,
    T5Config,
    T5EncoderModel,
)

from molfun import MolfunStructureModel
from molfun.backbones.language.structure_letters import structure_letters
from molfun.backbones.language.structure_tokens import TOKENS
from molfun.backbones.own_keys import input_keys
from molfun.backbones.transformers import (
    AnkhBackbone,
    EsmBackbone,
    EsmcBackbone,
    ProstT5Backbone,
    ProtT5Backbone,
    SaProtBackbone,
    TransformersBackbone,
)
from molfun.errors import CheckpointError, ConfigError, DataError
from molfun.models.base_embeddings import BaseEmbeddings
from molfun.models.export import export_hugging_face
from molfun.nn import lora
from molfun.protein import BFactors, Protein
from molfun.sample import Sample
from molfun.testing.samples import series_model

SEQUENCES = ["MKTAYIAKQRDLVFAGGSGA", "M", "ACDEFGHIKLMNPQRSTVWY" * 6, "GGAV"]
TOLERANCE = 1e-5
"""Of outputs and gradients, relative to the largest number."""
ESM = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ESM1 = {**ESM, "position_embedding_type": "absolute", "emb_layer_norm_before": True}
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 4, "num_layers": 2}
FAMILIES: dict[str, tuple[type[TransformersBackbone], dict[str, Any]]] = {
    "esm": (EsmBackbone, ESM),
    "esm1b": (EsmBackbone, ESM1),
    "saprot": (SaProtBackbone, ESM),
    "esmc": (EsmcBackbone, ESM),
    "prott5": (ProtT5Backbone, T5),
    "prostt5": (ProstT5Backbone, T5),
    "ankh": (AnkhBackbone, T5),
}
PUBLISHED: dict[str, tuple[type[TransformersBackbone], dict[str, Any]]] = {
    "esm1b": (EsmBackbone, {**EsmBackbone.presets["esm1b"], "num_hidden_layers": 2}),
    "esm1v": (EsmBackbone, {**EsmBackbone.presets["esm1v"], "num_hidden_layers": 2}),
    "saprot_35m": (
        SaProtBackbone,
        {**SaProtBackbone.presets["saprot_35m"], "num_hidden_layers": 2},
    ),
    "esmc_300m": (EsmcBackbone, {**EsmcBackbone.presets["esmc_300m"], "num_hidden_layers": 2}),
    "esmc_600m": (EsmcBackbone, {**EsmcBackbone.presets["esmc_600m"], "num_hidden_layers": 2}),
    "prott5_xl": (ProtT5Backbone, {**ProtT5Backbone.presets["prott5_xl"], "num_layers": 2}),
    "ankh_base": (AnkhBackbone, {**AnkhBackbone.presets["ankh_base"], "num_layers": 2}),
    "ankh_large": (AnkhBackbone, {**AnkhBackbone.presets["ankh_large"], "num_layers": 2}),
}


# of two sizes of a family `make test` runs one
MARKS = dict.fromkeys(("esm1v", "esmc_600m", "ankh_large"), pytest.mark.proof)


def make(family: str, *, published: bool = False, **settings: Any) -> TransformersBackbone:
    """A random model in which no bias or norm is trivial."""
    cls, config = (PUBLISHED if published else FAMILIES)[family]
    backbone = cls(config, seed=1, **settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return backbone


def stock(backbone: TransformersBackbone) -> nn.Module:
    """transformers' own class with the same weights."""
    pooler = {"add_pooling_layer": False} if isinstance(backbone, EsmBackbone) else {}
    cls: Any = type(backbone.model)
    model: nn.Module = cls(backbone.model.config, **pooler)
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()


def features(backbone: TransformersBackbone, sequences: list[str]) -> list[dict[str, torch.Tensor]]:
    samples = [Sample(id=f"s{i}", sequence=s) for i, s in enumerate(sequences)]
    return [backbone.featurize(sample) for sample in samples]


def run(backbone: TransformersBackbone, sequences: list[str], *outputs: str, **options: Any) -> Any:
    batch = backbone.collate(features(backbone, sequences))
    return backbone(batch, outputs=outputs or ("single",), **options)


def hidden(backbone: TransformersBackbone, model: Any, sequences: list[str]) -> list[torch.Tensor]:
    """Representations of the residues by the stock class, from a padded batch."""
    rows = [one["tokens"] for one in features(backbone, sequences)]
    padding = backbone.alphabet.padding
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    mask = (padded != padding).long()
    states = model(input_ids=padded, attention_mask=mask).last_hidden_state
    first = len(backbone.around()[0])
    return [row[first : first + len(s)] for row, s in zip(states, sequences, strict=True)]


def rows_of(output: Any, sequences: list[str]) -> list[torch.Tensor]:
    return [row[: len(s)] for row, s in zip(output.single, sequences, strict=True)]


def agree(ours: list[torch.Tensor], theirs: list[torch.Tensor], share: float = TOLERANCE) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=share * float(b.abs().max()))


# --- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "published"),
    [(name, False) for name in FAMILIES]
    + [pytest.param(name, True, marks=MARKS.get(name, pytest.mark.slow)) for name in PUBLISHED],
)
def test_outputs_and_gradients_are_those_of_transformers(family: str, published: bool) -> None:
    backbone = make(family, published=published)
    # in float64: in float32 a ReLU near zero may turn out differently from ours, either way
    model = stock(backbone).double()
    ours = rows_of(run(backbone, SEQUENCES), SEQUENCES)
    theirs = hidden(backbone, model, SEQUENCES)
    agree([row.detach().double() for row in ours], [row.detach() for row in theirs])
    for rows in (ours, theirs):
        sum(row.square().sum() for row in rows).backward()  # type: ignore[union-attr]
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in backbone.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        # a bias of all keys changes no attention: its gradient is rounding alone
        near = [g for n, g in expected.items() if n.rpartition(".")[0] == name.rpartition(".")[0]]
        size = max(float(g.abs().max()) for g in near)
        assert torch.allclose(found[name].double(), grad, rtol=0, atol=TOLERANCE * size), name


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_and_layers_are_those_of_transformers(family: str) -> None:
    backbone = make(family)
    model: Any = stock(backbone)
    model.set_attn_implementation("eager")
    (tokens,) = (one["tokens"] for one in features(backbone, SEQUENCES[:1]))
    theirs = model(input_ids=tokens[None], output_attentions=True, output_hidden_states=True)
    n, first = len(SEQUENCES[0]), len(backbone.around()[0])
    inner = slice(first, first + n)
    maps = torch.cat(theirs.attentions, dim=1)[0, :, inner, inner].permute(1, 2, 0)
    ours = run(backbone, SEQUENCES[:1], "single", "pair")
    assert torch.allclose(ours.pair[0], maps, rtol=0, atol=1e-6)
    for layer in (0, 1, 2):
        # transformers' last hidden state is the one after the norm, as ours is
        expected = theirs.hidden_states[layer][0, inner]
        agree([run(backbone, SEQUENCES[:1], layer=layer).single[0]], [expected])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_within_one_percent(family: str) -> None:
    backbone = make(family)
    exact = run(backbone, SEQUENCES).single
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = run(backbone, SEQUENCES).single
    # norms keep the residual stream in float32
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.01


@torch.no_grad()
def test_masked_residues_are_those_of_transformers() -> None:
    for family in ("esm", "esm1b", "esmc"):
        backbone = make(family)
        masked = ["MKT<mask>YIAK", "<mask>G"]
        rows = [one["tokens"] for one in features(backbone, masked)]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
        states = stock(backbone)(input_ids=padded, attention_mask=padded.ne(1).long())
        theirs = [states.last_hidden_state[0, 1:9], states.last_hidden_state[1, 1:3]]
        ours = run(backbone, masked).single
        agree([ours[0], ours[1, :2]], theirs)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "whole"),
    [("esm", EsmForMaskedLM), ("saprot", EsmForMaskedLM), ("esmc", EsmcForMaskedLM)],
)
def test_logits_are_those_of_transformers(family: str, whole: Any) -> None:
    backbone = make(family)
    model = whole(backbone.model.config).eval()
    getattr(model, backbone.root.rstrip(".")).load_state_dict(backbone.model.state_dict())
    model.lm_head.load_state_dict(backbone.lm_head.state_dict())  # type: ignore[union-attr]
    batch = backbone.collate(features(backbone, SEQUENCES[:2]))
    ours = backbone.token_logits(batch, torch.arange(len(batch["tokens"])))
    theirs = [
        model(input_ids=one["tokens"][None]).logits[0] for one in features(backbone, SEQUENCES[:2])
    ]
    agree([ours], [torch.cat(theirs)])


def test_a_training_pass_drops_what_the_config_says() -> None:
    dropping = {**ESM, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    for backbone in (EsmBackbone(dropping), ProtT5Backbone({**T5, "dropout_rate": 0.5})):
        backbone.eval()
        assert torch.equal(run(backbone, SEQUENCES).single, run(backbone, SEQUENCES).single)
        backbone.train()
        assert not torch.equal(run(backbone, SEQUENCES).single, run(backbone, SEQUENCES).single)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_gradient(family: str) -> None:
    plain, saving = make(family), make(family, checkpointing=True)
    for backbone in (plain, saving):
        run(backbone, SEQUENCES).single.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]


# --- adapters ------------------------------------------------------------------------------------

TARGETS = {
    "esm": ("query", "dense"),
    "saprot": ("query", "dense"),
    "esm1b": ("query", "key", "value"),
    "esmc": ("q_proj", "gate_proj", "down_proj"),
    "prott5": ("q", "wi", "o"),
    "prostt5": ("q", "wo"),
    "ankh": ("v", "wi_1"),
}


def adapted(family: str, **kind: Any) -> TransformersBackbone:
    """A model with adapters that change its outputs."""
    backbone = make(family)
    spec = lora.LoRASpec(
        **{"rank": 3, "alpha": 5.0, "dropout": 0.0, **kind},
        target_modules=TARGETS[family],
        scope=backbone.block_prefix,
    )
    lora.inject(backbone, spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in lora.parameters(backbone):
            if "lora_B" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # by peft's call
@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_load_into_the_stock_model_by_peft(
    family: str, kind: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    backbone = adapted(family, **kind)
    lora.save_adapter(backbone, tmp_path)
    base = make(family)
    theirs = PeftModel.from_pretrained(stock(base), tmp_path).eval()
    ours = rows_of(run(backbone, SEQUENCES), SEQUENCES)
    agree(ours, hidden(base, theirs, SEQUENCES), 2 * TOLERANCE)
    assert not torch.allclose(ours[0], run(base, SEQUENCES[:1]).single[0], atol=1e-3)
    # and into another one of ours
    lora.load_adapter(base, tmp_path)
    assert torch.equal(run(base.eval(), SEQUENCES).single, run(backbone, SEQUENCES).single)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_and_unmerging(family: str) -> None:
    backbone = adapted(family)
    before, weights = run(backbone, SEQUENCES).single, backbone.fingerprint()
    lora.merge(backbone)
    agree([run(backbone, SEQUENCES).single], [before], 2 * TOLERANCE)
    lora.unmerge(backbone)
    assert torch.equal(run(backbone, SEQUENCES).single, before)
    assert backbone.fingerprint() == weights


# --- letters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "sequence", "expected"),
    [
        # huggingface/transformers@15ea02a tests/models/esm/test_tokenization_esm.py
        ("esm", "LAGVS", [0, 4, 5, 6, 7, 8, 2]),
        ("esm", "WCB", [0, 22, 23, 25, 2]),
        # huggingface/transformers@2dd1bdc tests/models/esmc/test_tokenization_esmc.py
        (
            "esmc",
            "ACDEFGHIKLMNPQRSTVWY",
            [0, 5, 23, 13, 9, 18, 6, 21, 12, 15, 4, 20, 17, 14, 16, 10, 8, 11, 7, 22, 19, 2],
        ),
        # agemagician/ProtTrans, issue 42 (the vocabulary), with the end token of T5
        ("prott5", "ALGVSREDTIPKFQNYMHWCX", [*range(3, 24), 1]),
        ("prott5", "PRTEINO", [13, 8, 11, 9, 12, 17, 23, 1]),
        # mheinzinger/ProstT5, issue 37
        ("prostt5", "PRTEINO", [149, 13, 8, 11, 9, 12, 17, 23, 1]),
        # agemagician/Ankh@02b4e25 examples/simple_generation.ipynb, up to its sentinels
        (
            "ankh",
            "QVQLVESGGGLVQPGGSL",
            [16, 6, 16, 4, 6, 9, 7, 5, 5, 5, 4, 6, 16, 13, 5, 5, 7, 4, 1],
        ),
        # Synthyra/FastPLMs@1f78282 tests/goldens/ankh_base.safetensors, row 3
        ("ankh", "MCADPSKCIYMYV", [19, 22, 3, 10, 13, 7, 14, 22, 12, 18, 19, 18, 6, 1]),
        ("esmc", "MCADPSKCIYMYV", [0, 20, 23, 5, 13, 14, 8, 15, 23, 12, 19, 20, 19, 7, 2]),
        # westlake-repl/SaProt@e91e485 utils/esm_loader.py: 5 + 21 i + 20 without a structure
        ("saprot", "MEV", [0, 235, 88, 382, 2]),
    ],
)
def test_tokens_are_the_published_ones(family: str, sequence: str, expected: list[int]) -> None:
    (found,) = features(make(family), [sequence])
    assert found["tokens"].tolist() == expected
    (small,) = features(make(family), [sequence.lower()])
    assert small["tokens"].tolist() == expected


def test_prostt5_reads_letters_of_structures() -> None:
    backbone = make("prostt5", encodes="structure")
    # mheinzinger/ProstT5, issue 37
    expected = [148, 132, 136, 133, 147, 136, 1]
    assert features(backbone, ["strct"])[0]["tokens"].tolist() == expected
    given = Sample(id="a", sequence="MKVAA", structure_letters="STRCT")
    assert backbone.featurize(given)["tokens"].tolist() == expected
    with pytest.raises(DataError, match="'B' at position 2 is no structure letter"):
        features(backbone, ["sBr"])
    again = ProstT5Backbone(**ProstT5Backbone.arguments_from(backbone.config_dict))
    assert again.encodes == "structure"
    assert again.featurize_key() != make("prostt5").featurize_key()


def test_saprot_pairs_residues_with_letters_of_the_structure() -> None:
    backbone = make("saprot")
    # the example of SaProt's README, by the order of utils/esm_loader.py
    given = Sample(id="a", sequence="MEVQLVQYK", structure_letters="#vpp#ydav")
    tokens = backbone.featurize(given)["tokens"].tolist()
    assert tokens == [0, 235, 78, 362, 278, 214, 363, 286, 419, 183, 2]
    assert (TOKENS["Ap"], TOKENS["A#"], TOKENS["#p"], TOKENS["##"], len(TOKENS)) == (
        5,
        25,
        425,
        445,
        441,
    )
    # letters that it has no token for are unknown residues, whose structure counts
    odd = Sample(id="a", sequence="XB", structure_letters="pc")
    assert backbone.featurize(odd)["tokens"].tolist() == [0, 425, 444, 2]


@pytest.mark.parametrize(
    ("letters", "text"),
    [
        ("pp", "a has 2 structure letters for 3 residues: give one letter per residue."),
        (
            "pbp",
            "a: 'b' at position 2 is no structure letter; allowed are pynwrqhgdlvtmfsaeikc and #",
        ),
    ],
)
def test_wrong_letters_of_structures_are_named(letters: str, text: str) -> None:
    sample = Sample(id="a", sequence="MKV", structure_letters=letters)
    with pytest.raises(DataError) as caught:
        make("saprot").check(sample)
    assert str(caught.value).startswith(text)


def helix(n: int, plddt: float = 90.0) -> Protein:
    """An ideal helix of alanines: N, CA, C and CB by rotation and rise."""
    # radius, angle and height in the helix (Pauling's, 100 degrees and 1.5 angstrom per residue)
    places = {
        0: (1.55, -0.49, -0.88),
        1: (2.29, 0.0, 0.0),
        2: (1.65, 0.45, 1.17),
        3: (3.3, -0.4, 0.3),
    }
    protein = Protein.from_sequence("A" * n)
    turn = np.radians(100.0) * np.arange(n)
    for atom, (radius, angle, height) in places.items():
        around = [radius * np.cos(angle + turn), radius * np.sin(angle + turn)]
        protein.atom_positions[:, atom] = np.stack([*around, height + 1.5 * np.arange(n)], 1)
        protein.atom_mask[:, atom] = 1.0
        protein.b_factors[:, atom] = plddt
    return protein


def test_letters_come_from_structures_and_unsure_ones_are_unknown() -> None:
    protein = helix(12)
    letters = structure_letters(protein)
    assert len(letters) == 12
    # a helix far from all else is the letter v (Foldseek); its ends have no neighbours
    assert set(letters[2:-2]) == {"v"}
    protein.b_factors[3:5] = 40.0
    assert structure_letters(protein, plddt_below=70)[3:5] == "##"
    protein.atom_mask[6, 2] = 0.0
    assert structure_letters(protein)[6] == "#"
    assert structure_letters(helix(2)) == "##"
    backbone = make("saprot", plddt_below=70)
    tokens = backbone.featurize(Sample(id="a", protein=protein))["tokens"].tolist()
    assert tokens[4] == tokens[5] == TOKENS["A#"]
    assert tokens[3] == TOKENS["Av"]


def test_auto_masks_predictions_alone_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    kinds: tuple[BFactors, ...] = ("plddt", "plddt", "measured", "unknown", "other")
    proteins = [replace(helix(12, plddt=60.0), b_factors_are=kind) for kind in kinds]
    proteins[1].b_factors[:] = 80.0
    samples = [Sample(id=str(i), protein=p) for i, p in enumerate(proteins)]
    backbone, all_letters = make("saprot", plddt_below="auto"), make("saprot")
    with caplog.at_level("INFO"):
        assert backbone.problems([*samples, Sample(id="s", sequence="AC")]) == (0, [])
    assert caplog.messages == [
        "plddt_below='auto': 2 of 5 structures are predictions with pLDDT, and get no letter below "
        "70; 3 keep all letters (1 of an experiment, 1 predicted without pLDDT as B-factors, 1 "
        "whose file does not say)."
    ]
    expected = [all_letters.featurize(sample)["tokens"] for sample in samples]
    found = [backbone.featurize(sample)["tokens"] for sample in samples]
    assert set(found[0][1:-1].tolist()) == {TOKENS["A#"]}
    assert all(torch.equal(a, b) for a, b in zip(found[1:], expected[1:], strict=True))
    assert {len(found), len(expected)} == {5}


def test_embeddings_of_baselines_tell_masked_letters_apart() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MolfunStructureModel(
        "saprot", config={**sizes, "intermediate_size": 32}, head="regression", device="cpu",
        backbone_config={"plddt_below": 70.0},
    )  # fmt: skip
    sure, unsure = (Sample(id=str(b), protein=helix(12, plddt=b)) for b in (90.0, 10.0))
    found = BaseEmbeddings(model)([sure, unsure])
    alone = BaseEmbeddings(model)([unsure])
    assert found is not None
    assert alone is not None
    assert not np.allclose(found[0], found[1])
    np.testing.assert_allclose(found[1:], alone, rtol=0, atol=1e-6)


def test_caches_tell_masked_letters_apart() -> None:
    sure, unsure = (Sample(id="a", protein=helix(12, plddt=b)) for b in (90.0, 60.0))
    assert sure.content_key() == unsure.content_key()
    backbone = make("saprot", plddt_below=70)
    assert backbone.input_key(sure) != backbone.input_key(unsure)
    assert input_keys(make("saprot"))(sure) == sure.content_key()
    assert input_keys(make("ankh"))(unsure) == unsure.content_key()
    given = replace(unsure, structure_letters="v" * 12)
    assert backbone.input_key(given) == given.content_key()


def test_positions_have_an_end_where_they_are_learned() -> None:
    backbone = make("esm1b")
    sample = Sample(id="long", sequence="A" * 1023)
    with pytest.raises(DataError) as caught:
        backbone.check(sample)
    assert str(caught.value) == (
        "long has 1023 residues, and ESM has positions for 1022: use long='crop' or long='window'."
    )
    backbone.check(Sample(id="fits", sequence="A" * 1022))
    windowed = make("esm1b", long="window")
    windowed.check(sample)
    assert run(windowed, ["A" * 1023]).single.shape == (1, 1023, 64)


def test_encoders_predict_no_residues() -> None:
    for family in ("prott5", "prostt5", "ankh"):
        backbone = make(family)
        text = f"{backbone.display_name} is an encoder alone: it predicts no residues."
        with pytest.raises(ConfigError) as caught:
            backbone.token_logits(backbone.collate(features(backbone, ["MKV"])), torch.tensor([1]))
        assert str(caught.value) == text


# --- files ---------------------------------------------------------------------------------------


def folder_of(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


CONFIGS: dict[str, Callable[[], Any]] = {
    "esm": lambda: EsmForMaskedLM(
        EsmConfig(**EsmBackbone(ESM).config.to_dict(), initializer_range=0.1)
    ),
    "saprot": lambda: EsmForMaskedLM(EsmConfig(**SaProtBackbone(ESM).config.to_dict())),
    "esmc": lambda: EsmcForMaskedLM(EsmcConfig(**EsmcBackbone(ESM).config.to_dict())),
    "prott5": lambda: T5EncoderModel(T5Config(**ProtT5Backbone(T5).config.to_dict())),
    "prostt5": lambda: T5EncoderModel(T5Config(**ProstT5Backbone(T5).config.to_dict())),
    "ankh": lambda: T5EncoderModel(T5Config(**AnkhBackbone(T5).config.to_dict())),
}


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_hugging_face_folders(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(5)
    model = CONFIGS[family]().eval()
    folder = folder_of(model, tmp_path / "model")
    caplog.clear()
    backbone = TransformersBackbone(weights=folder).eval()
    assert backbone.name == family
    assert not caplog.messages
    assert not backbone.unread
    encoder = getattr(model, backbone.root.rstrip("."), model)
    agree(rows_of(run(backbone, SEQUENCES), SEQUENCES), hidden(backbone, encoder, SEQUENCES))
    # by the facade, with and without the name of the family; a second time from its checkpoint
    facade = MolfunStructureModel("transformers", weights=folder, head="linear", device="cpu")
    named = MolfunStructureModel(family, weights=folder, head="linear", device="cpu")
    assert facade.backbone.fingerprint() == named.backbone.fingerprint() == backbone.fingerprint()
    saved = facade.save(tmp_path / "checkpoint")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    assert saved is facade
    assert again.backbone.name == family
    assert torch.equal(run(again.backbone, SEQUENCES).single, run(backbone, SEQUENCES).single)


@torch.no_grad()
@pytest.mark.parametrize("head", ["sequence_head", "lm_head"])
def test_esmc_files_of_its_authors_and_of_esmplusplus(head: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = CONFIGS["esmc"]().eval()
    theirs: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        new = name.removeprefix("esmc.")
        for ours, original in (
            ("embed_tokens.", "embed."),
            ("norm.weight", "transformer.norm.weight"),
            ("lm_head.dense", f"{head}.0"),
            ("lm_head.layer_norm", f"{head}.2"),
            ("lm_head.decoder", f"{head}.3"),
        ):
            if new.startswith(ours):
                new = original + new[len(ours) :]
        if new.startswith("layers."):
            new = "transformer.blocks." + new[len("layers.") :]
        for ours, original in (
            ("input_layernorm", "attn.layernorm_qkv.0"),
            ("self_attn.o_proj", "attn.out_proj"),
            ("self_attn.q_norm", "attn.q_ln"),
            ("self_attn.k_norm", "attn.k_ln"),
            ("post_attention_layernorm", "ffn.0"),
            ("mlp.down_proj", "ffn.3"),
        ):
            new = new.replace(ours, original)
        theirs[new] = tensor.clone()
    for i in range(2):
        block = f"transformer.blocks.{i}."
        qkv = [theirs.pop(f"{block}self_attn.{p}_proj.weight") for p in "qkv"]
        theirs[f"{block}attn.layernorm_qkv.1.weight"] = torch.cat(qkv)
        gate = [theirs.pop(f"{block}mlp.{p}_proj.weight") for p in ("gate", "up")]
        theirs[f"{block}ffn.1.weight"] = torch.cat(gate)
    torch.save(theirs, tmp_path / "esmc.pth")
    backbone = EsmcBackbone(ESM, weights=tmp_path / "esmc.pth").eval()
    assert not backbone.unread
    agree(rows_of(run(backbone, SEQUENCES), SEQUENCES), hidden(backbone, model.esmc, SEQUENCES))
    # ESM++: the same names in a folder, whose config does not say how wide the gates are
    folder = tmp_path / "esmplusplus"
    folder.mkdir()
    config = {
        "model_type": "ESMplusplus",
        "vocab_size": 64,
        "auto_map": {"AutoModel": "code.Model"},
        **ESM,
    }
    (folder / "config.json").write_text(json.dumps(config | ESM))
    save_file(theirs, folder / "model.safetensors")
    same = MolfunStructureModel("transformers", weights=folder, device="cpu").backbone
    assert same.fingerprint() == backbone.fingerprint()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = folder_of(CONFIGS["ankh"](), tmp_path / "model")
    pieces = [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["L", 0], ["A", 0]]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": pieces}}))
    with pytest.raises(CheckpointError) as caught:
        TransformersBackbone(weights=folder)
    text = str(caught.value)
    assert "its tokenizer is of another model:" in text
    assert "A: 4 there, 3 in this model" in text
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("<pad>\n</s>\n<unk>\nA\nL\nG\n")
    TransformersBackbone(weights=folder)


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda: TransformersBackbone(), "None is no transformers config. Give one, or"),
        (lambda: TransformersBackbone("esmc_300m"), "esmc_300m is neither a file nor a folder"),
        (
            lambda: TransformersBackbone({"model_type": "bert", "vocab_size": 30}),
            "No family of models has the model_type and vocab_size 'bert 30'; known: esm 33 (esm);",
        ),
        (lambda: EsmcBackbone("esmc_300M"), "Did you mean 'esmc_300m'?"),
        (lambda: EsmcBackbone({"hidden_size": 32}), "The ESM-C config lacks num_hidden_layers"),
        (lambda: EsmcBackbone({**ESM, "layers": 2}), "Unknown key in the ESM-C config 'layers'"),
        (
            lambda: EsmcBackbone({**ESM, "num_attention_heads": 0}),
            "num_attention_heads must be a whole number of at least 1, got 0.",
        ),
        (
            lambda: EsmcBackbone({**ESM, "num_attention_heads": 7}),
            "hidden_size=64 does not divide into 7 heads",
        ),
        (
            lambda: EsmcBackbone(EsmcConfig(**ESM, mlp_bias=True)),
            "mlp_bias is True, and only False is known.",
        ),
        (lambda: EsmBackbone({**ESM, "is_decoder": True}), "is_decoder is True"),
        (
            lambda: SaProtBackbone(ESM, plddt_below=170),
            "plddt_below must be from 0 to 100, or 'auto', got 170.",
        ),
        (lambda: ProstT5Backbone(T5, encodes="both"), "Unknown alphabet 'both'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(make_it: Callable[[], Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_it()
    assert text in str(caught.value)


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    folder = folder_of(CONFIGS["esm"](), tmp_path / "esm")
    with pytest.raises(CheckpointError) as caught:
        EsmcBackbone(ESM, weights=folder / "model.safetensors")
    assert "It holds no ESM-C: expected weights under layers." in str(caught.value)
    with pytest.raises(CheckpointError) as caught:
        EsmBackbone({**ESM, "num_hidden_layers": 3}, weights=folder / "model.safetensors")
    assert "does not fit this ESM (3 blocks, width 64): 16 weights missing" in str(caught.value)
    assert "The file has 2 blocks: take the config that belongs to it." in str(caught.value)
    with pytest.raises(CheckpointError, match="num_hidden_layers: 2 there, 3 in this model"):
        EsmBackbone({**ESM, "num_hidden_layers": 3}, weights=folder)


def test_the_class_of_fair_esm_and_that_of_transformers_agree(tmp_path: Path) -> None:
    """One file of ESM-2 in both classes: the same numbers."""
    from molfun.backbones.esm2 import ESM2Backbone

    config = EsmConfig(**EsmBackbone(ESM).config.to_dict())
    folder = folder_of(EsmForMaskedLM(config), tmp_path / "model")
    ours = TransformersBackbone(weights=folder).eval()
    fair = ESM2Backbone("esm2_t2_d64_h4", weights=folder).eval()
    batch = fair.collate(features(ours, SEQUENCES))
    with torch.no_grad():
        agree([run(ours, SEQUENCES).single], [fair(batch).single])
    assert isinstance(ours.model, EsmModel)


# --- a layer in the middle -----------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_cut_after_a_block_gives_that_layer(family: str) -> None:
    whole, cut = make(family), FAMILIES[family][0](FAMILIES[family][1], seed=1, layer=1).eval()
    first = cut.state_dict()
    cut.load_state_dict({n: t for n, t in whole.state_dict().items() if n in first})
    assert len(cut.blocks()) == 1
    assert torch.equal(run(cut, SEQUENCES).single, run(whole, SEQUENCES, layer=1).single)
    again = type(cut)(**cut.arguments_from(cut.config_dict))
    assert again.state_dict().keys() == first.keys()
    assert len(first) < len(whole.state_dict())
    with pytest.raises(ConfigError, match="layer=1 leaves out the last blocks"):
        cut.token_logits(cut.collate(features(cut, ["MKV"])), torch.tensor([1]))
    with pytest.raises(ConfigError, match="layer must be from 1 to 2 for 2 blocks, got 3"):
        FAMILIES[family][0](FAMILIES[family][1], layer=3)


def test_a_checkpoint_keeps_the_layer(tmp_path: Path) -> None:
    folder = folder_of(CONFIGS["esmc"](), tmp_path / "model")
    model = MolfunStructureModel(
        "transformers", weights=folder, backbone_config={"layer": 1}, head="linear", device="cpu"
    )
    samples = [Sample(id=f"s{i}", sequence=s, target=float(i)) for i, s in enumerate(SEQUENCES)]
    model.fit([samples], strategy="lora", epochs=1).to_pandas()
    expected = model.predict(samples)["prediction"]
    model.save(tmp_path / "checkpoint")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    assert len(again.backbone.blocks()) == 1
    assert torch.equal(again.predict(samples)["prediction"], expected)
    with pytest.raises(ConfigError, match="layer=1 leaves out the last blocks of ESM-C, and"):
        export_hugging_face(again, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


# --- written for transformers --------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_exported_folders_load_into_transformers(family: str, tmp_path: Path) -> None:
    cls, config = FAMILIES[family]
    model = MolfunStructureModel(cls.name, config=config, head="linear", device="cpu")
    spec = lora.LoRASpec(
        rank=2, alpha=4.0, dropout=0.0, target_modules=TARGETS[family], scope=cls.block_prefix
    )
    lora.inject(model.backbone, spec)
    for name, parameter in lora.parameters(model.backbone):
        if "lora_B" in name:
            parameter += 0.1
    backbone: Any = model.backbone.eval()
    before = run(backbone, SEQUENCES).single
    export_hugging_face(model, tmp_path / "out")
    assert torch.equal(run(backbone, SEQUENCES).single, before)
    stock_class: Any = getattr(transformers, cls.whole_class.__name__)
    theirs, found = stock_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values()), found
    encoder = getattr(theirs, cls.root.rstrip("."), theirs).eval()
    ours = rows_of(run(backbone, SEQUENCES), SEQUENCES)
    agree(ours, hidden(backbone, encoder, SEQUENCES), 2 * TOLERANCE)
    # and back
    again = TransformersBackbone(weights=tmp_path / "out").eval()
    agree(rows_of(run(again, SEQUENCES), SEQUENCES), ours, 2 * TOLERANCE)
    if (tmp_path / "out" / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        written = "M#K#V#" if family == "saprot" else "MKV"
        (tokens,) = features(backbone, ["MKV"])
        assert tokenizer(written)["input_ids"] == tokens["tokens"].tolist()


@torch.no_grad()
def test_esm2_of_fair_esm_is_exported(tmp_path: Path) -> None:
    model = MolfunStructureModel("esm2_tiny", device="cpu")
    export_hugging_face(model, tmp_path / "out")
    theirs, found = EsmForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values()), found
    again = TransformersBackbone(weights=tmp_path / "out").eval()
    agree([run(again, SEQUENCES).single], [run(model.backbone, SEQUENCES).single])  # type: ignore[arg-type]
    assert theirs.config.num_hidden_layers == 2


def test_other_models_have_no_class_of_transformers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only protein language models can be exported with"):
        export_hugging_face(series_model(), tmp_path / "out")
