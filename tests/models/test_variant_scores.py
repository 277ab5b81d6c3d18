"""Scores of variants are those of the published definitions, by the stock models."""

from __future__ import annotations

import itertools
from typing import Any

import esm
import numpy as np
import pytest
import torch
from transformers import EsmForMaskedLM

from molfun import MolfunStructureModel
from molfun.data.variants import parse_variant
from molfun.errors import ConfigError, DataError
from molfun.models.variant_scores import substitution_matrix
from molfun.protein import AMINO_ACIDS
from molfun.sample import Sample
from molfun.testing.samples import series_model

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
NAMES = ["K2E", "p.Thr3Ala", "M1A:Q22W", "I6V:A7G:K8R", "WT"]
ESM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
Table = np.ndarray[Any, Any]


def build(**settings: Any) -> MolfunStructureModel:
    return MolfunStructureModel("esm2", config="esm2_t3_d32_h4", device="cpu", seed=3, **settings)


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    return build()


@pytest.fixture(scope="module")
def fair(model: MolfunStructureModel) -> Any:
    """fair-esm's own class with the same weights."""
    stock = esm.model.esm2.ESM2(3, 32, 4, alphabet="ESM-1b")
    stock.load_state_dict(model.backbone.model.state_dict())  # type: ignore[union-attr]
    return stock.eval()


@torch.no_grad()
def log_probs(fair: Any, sequence: str, *, masked: bool) -> Table:
    """(residues, 20) by fair-esm, with one residue masked at a time or with none."""
    tokens = fair.alphabet.get_batch_converter()([("x", sequence)])[2]
    columns = [fair.alphabet.get_idx(letter) for letter in AMINO_ACIDS]
    if not masked:
        return torch.log_softmax(fair(tokens)["logits"], -1)[0, 1:-1, columns].numpy()
    rows = []
    for i in range(1, len(sequence) + 1):
        hidden = tokens.clone()
        hidden[0, i] = fair.alphabet.mask_idx
        rows.append(torch.log_softmax(fair(hidden)["logits"], -1)[0, i, columns])
    return torch.stack(rows).numpy()


def marginal(table: Table, name: str) -> float:
    return sum(
        table[c.place, AMINO_ACIDS.index(c.new)] - table[c.place, AMINO_ACIDS.index(c.old)]
        for c in parse_variant(name, WILD_TYPE).changes
    )


def likelihood(fair: Any, sequence: str) -> float:
    table = log_probs(fair, sequence, masked=True)
    return sum(table[i, AMINO_ACIDS.index(letter)] for i, letter in enumerate(sequence))


def mutant_marginal(fair: Any, name: str) -> float:
    mutant = parse_variant(name, WILD_TYPE).apply(WILD_TYPE)
    return marginal(log_probs(fair, mutant, masked=False), name)


def near(found: Any, expected: Any, size: Any) -> bool:
    """Within 1e-5 of the largest number that goes into it: logits of random models are large."""
    return np.allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(size).max()))


@pytest.mark.parametrize("method", ["masked_marginal", "wt_marginal"])
def test_marginals_are_those_of_fair_esm(
    model: MolfunStructureModel, fair: Any, method: str
) -> None:
    table = log_probs(fair, WILD_TYPE, masked=method == "masked_marginal")
    found = model.score_variants(WILD_TYPE, NAMES, method=method)
    assert near(found.scores, [marginal(table, name) for name in NAMES], table)
    every = model.score_variants(WILD_TYPE, method=method)
    assert len(every.scores) == 19 * len(WILD_TYPE)
    assert near(every.log_probs, table, table)
    expected = [marginal(table, variant.name()) for variant in every.variants]
    assert near(every.scores, expected, table)
    shares = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(1)
    assert near(every.entropy(), entropy, table)


def test_mutant_marginals_read_the_mutant(model: MolfunStructureModel, fair: Any) -> None:
    found = model.score_variants(WILD_TYPE, NAMES, method="mutant_marginal")
    expected = [mutant_marginal(fair, name) for name in NAMES]
    assert near(found.scores, expected, log_probs(fair, WILD_TYPE, masked=False))
    assert found.log_probs is None
    with pytest.raises(ConfigError, match="'mutant_marginal' gives no probabilities per residue"):
        found.entropy()


def test_pseudo_likelihoods_are_differences(model: MolfunStructureModel, fair: Any) -> None:
    found = model.score_variants(WILD_TYPE, NAMES, method="pseudo_perplexity")
    reference = likelihood(fair, WILD_TYPE)
    expected = [
        likelihood(fair, parse_variant(name, WILD_TYPE).apply(WILD_TYPE)) - reference
        for name in NAMES
    ]
    assert near(found.scores, expected, reference)
    assert found.scores[-1] == 0.0


@pytest.mark.parametrize("method", ["masked_marginal", "mutant_marginal", "pseudo_perplexity"])
def test_the_batch_size_changes_nothing(model: MolfunStructureModel, method: str) -> None:
    few = model.score_variants(WILD_TYPE, NAMES, method=method, batch_tokens=1)
    many = model.score_variants(WILD_TYPE, NAMES, method=method)
    size = 20.0 if method != "pseudo_perplexity" else 200.0
    assert near(few.scores, many.scores, size)


def test_tables_and_matrices(model: MolfunStructureModel) -> None:
    found = model.score_variants(WILD_TYPE, NAMES, offset=0)
    table = found.to_pandas()
    assert table["variant"].tolist() == ["K2E", "T3A", "M1A:Q22W", "I6V:A7G:K8R", "WT"]
    assert table["n_mutations"].tolist() == [1, 1, 2, 3, 0]
    matrix = found.matrix()
    assert matrix[1, AMINO_ACIDS.index("E")] == found.scores[0]
    assert np.isfinite(matrix).sum() == len(WILD_TYPE) + 2
    moved = model.score_variants(WILD_TYPE, ["K25E"], offset=23)
    assert moved.to_pandas()["variant"].tolist() == ["K25E"]
    assert near(moved.scores, found.scores[:1], 20.0)
    assert np.isnan(substitution_matrix("X", [], [])).all()


def test_esm_c_and_esm_of_transformers(fair: Any) -> None:
    for name in ("esmc", "esm"):
        one = MolfunStructureModel(name, config=ESM, device="cpu")
        found = one.score_variants(WILD_TYPE, NAMES)
        assert np.isfinite(found.scores).all()
        assert abs(found.scores[0]) > 0


@torch.no_grad()
def test_saprot_sums_over_its_structures() -> None:
    model = MolfunStructureModel("saprot", config=ESM, device="cpu", seed=5)
    backbone: Any = model.backbone
    letters = "pvdlanwrcq#svdlaypvdhk"
    sample = Sample(id="w", sequence=WILD_TYPE, structure_letters=letters)
    stock = EsmForMaskedLM(backbone.model.config).eval()
    stock.esm.load_state_dict(backbone.model.state_dict())
    stock.lm_head.load_state_dict(backbone.lm_head.state_dict())
    # as SaprotFoldseekMutationModel.predict_mut has it (westlake-repl/SaProt@e91e485)
    structures = "pynwrqhgdlvtmfsaeikc#"
    words_of = itertools.product("ACDEFGHIKLMNPQRSTVWY#", structures)
    vocabulary = {a + b: 5 + i for i, (a, b) in enumerate(words_of)}

    def score(name: str) -> float:
        change = parse_variant(name, WILD_TYPE).changes[0]
        words = [a + b for a, b in zip(WILD_TYPE, letters, strict=True)]
        words[change.place] = "#" + letters[change.place]
        ids = torch.tensor([[0, *(vocabulary[word] for word in words), 2]])
        probs = stock(input_ids=ids).logits.softmax(-1)[0, change.place + 1]
        old, new = (vocabulary[a + "p"] for a in (change.old, change.new))
        return float(torch.log(probs[new : new + 21].sum() / probs[old : old + 21].sum()))

    found = model.score_variants(sample, ["K2E", "T3A", "Q11L"])
    assert np.allclose(found.scores, [score(n) for n in ("K2E", "T3A", "Q11L")], rtol=0, atol=1e-5)
    alone = model.score_variants(WILD_TYPE, ["K2E", "T3A", "Q11L"])
    assert not np.allclose(found.scores, alone.scores)


def test_long_proteins_are_scored_in_windows() -> None:
    whole = build()
    settings = {"long": "window", "context": 10}
    windowed = build(backbone_config=settings)
    found = windowed.score_variants(WILD_TYPE, ["A7G"])
    # of the windows that hold the residue, the one that shows most on both sides of it
    spans = [s for s in windowed.backbone._spans(22) if s[0] <= 6 < s[1]]  # type: ignore[operator]
    begin, end = max(spans, key=lambda s: min(6 - s[0], s[1] - 1 - 6))
    part = WILD_TYPE[begin:end]
    expected = whole.score_variants(part, [f"A{7 - begin}G"])
    assert near(found.scores, expected.scores, 20.0)
    cropped = build(backbone_config={"long": "crop", "context": 10})
    with pytest.raises(DataError, match="Q22W: ESM-2 sees the first 10 residues alone"):
        cropped.score_variants(WILD_TYPE, ["Q22W"])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"method": "marginal"}, ConfigError, "Unknown method 'marginal'"),
        ({"variants": "some"}, ConfigError, "variants must be 'all' or a list of names, got"),
        ({"batch_tokens": 0}, ConfigError, "batch_tokens must be at least 1, got 0."),
        ({"variants": ["A1G"]}, DataError, "residue 1 of the wild type is M, not A"),
        ({"wild_type": "MK<mask>"}, DataError, "has hidden residues (<mask>); give all of them."),
        ({"wild_type": "M1K"}, DataError, "'1' at position 2 is no amino acid"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored(
    model: MolfunStructureModel, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        model.score_variants(**{"wild_type": WILD_TYPE, **options})
    assert text in str(caught.value)


def test_models_without_a_language() -> None:
    with pytest.raises(ConfigError, match="predicts no residues, so it scores no variants"):
        series_model().score_variants(WILD_TYPE)
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    encoder = MolfunStructureModel("prott5", config=sizes, device="cpu")
    with pytest.raises(ConfigError, match="ProtT5 is an encoder alone: it predicts no residues"):
        encoder.score_variants(WILD_TYPE)
