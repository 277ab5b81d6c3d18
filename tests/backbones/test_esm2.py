"""ESM-2 gives the numbers of the packages it comes from, by every path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import esm
import numpy as np
import pytest
import torch
from torch import nn

from molfun.backbones.esm2 import ESM2Backbone
from molfun.backbones.language import packing
from molfun.backbones.language.alphabet import ESM
from molfun.errors import ConfigError, DataError
from molfun.nn import kernels, lora
from molfun.sample import Sample

SEQUENCES = [
    "MKTAYIAKQR<mask>DLVFA",
    "M",
    "ACDEFGHIKLMNPQRSTVWYXBUZO" * 5,
    "GG<mask><mask>AV",
]
TOLERANCE = 1e-5


@pytest.fixture(params=["torch", "onednn"])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to multiply matrices; skips where oneDNN's is not there."""
    try:
        kernels.set_matrix_kernel(request.param)
    except ConfigError as error:
        pytest.skip(str(error))
    yield request.param
    kernels.set_matrix_kernel("auto")


def make(config: str = "esm2_t6_8M_UR50D", **settings: Any) -> ESM2Backbone:
    """A random model in which no bias or norm is trivial."""
    backbone = ESM2Backbone(config, seed=1, **settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return backbone


def stock(backbone: ESM2Backbone) -> nn.Module:
    """fair-esm's own class with the same weights."""
    model = esm.model.esm2.ESM2(**backbone.config.to_dict(), alphabet="ESM-1b")
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()


def convert(model: Any, sequences: list[str]) -> torch.Tensor:
    """Padded tokens by fair-esm's own converter."""
    converter = model.alphabet.get_batch_converter()
    tokens: torch.Tensor = converter([(str(i), s) for i, s in enumerate(sequences)])[2]
    return tokens


def run(backbone: ESM2Backbone, sequences: list[str], *outputs: str, **options: Any) -> Any:
    samples = [Sample(id=f"s{i}", sequence=s) for i, s in enumerate(sequences)]
    batch = backbone.collate([backbone.featurize(sample) for sample in samples])
    return backbone(batch, outputs=outputs or ("single",), **options)


# --- the same numbers ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("config", ["esm2_tiny", "esm2_t6_8M_UR50D", "esm2_t12_35M_UR50D"])
def test_outputs_are_those_of_fair_esm(kernel: str, config: str) -> None:
    backbone = make(config)
    model, n = stock(backbone), backbone.config.num_layers
    tokens = convert(model, SEQUENCES)
    theirs = model(tokens, repr_layers=[0, 1, n], return_contacts=True)
    maps = theirs["attentions"].flatten(1, 2).permute(0, 2, 3, 1)
    ours = run(backbone, SEQUENCES, "single", "mean", "cls", "pair")
    layers = {k: run(backbone, SEQUENCES, layer=k) for k in (0, 1)}
    assert torch.allclose(ours.cls, theirs["representations"][n][:, 0], rtol=0, atol=TOLERANCE)
    for i, length in enumerate([16, 1, 125, 6]):
        inner = slice(1, length + 1)
        single = theirs["representations"][n][i, inner]
        assert torch.allclose(ours.single[i, :length], single, rtol=0, atol=TOLERANCE)
        assert not ours.single[i, length:].any()
        assert torch.allclose(ours.mean[i], single.mean(0), rtol=0, atol=TOLERANCE)
        for k, output in layers.items():
            expected = theirs["representations"][k][i, inner]
            assert torch.allclose(output.single[i, :length], expected, rtol=0, atol=TOLERANCE)
        pair = maps[i, inner, inner]
        assert torch.allclose(ours.pair[i, :length, :length], pair, rtol=0, atol=1e-6)


def test_gradients_are_those_of_fair_esm(kernel: str) -> None:
    backbone = make()
    model = stock(backbone)
    run(backbone, SEQUENCES).single.square().sum().backward()
    tokens = convert(model, SEQUENCES)
    theirs = model(tokens, repr_layers=[6])["representations"][6]
    inner = (tokens != 1) & (tokens != 0) & (tokens != 2)
    theirs[inner].square().sum().backward()
    pairs = dict(model.named_parameters())
    for name, parameter in backbone.model.named_parameters():
        expected = pairs[name].grad
        if expected is None or parameter.grad is None:
            assert "head" in name, f"{name} has no gradient"
            continue
        size = float(expected.abs().max())
        assert torch.allclose(parameter.grad, expected, rtol=0, atol=2e-5 * size), name


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"dropout": 0.3}, {"use_rslora": True}])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "out_proj", "fc1", "fc2")])
def test_adapters_add_what_peft_adds(
    kernel: str, targets: tuple[str, ...], kind: dict[str, Any]
) -> None:
    """Fused products against peft's own layers, outputs and gradients; in eval and in training."""
    backbone = make("esm2_tiny")
    lora.inject(
        backbone,
        lora.LoRASpec(
            **{"rank": 3, "alpha": 5.0, "dropout": 0.0, **kind},
            target_modules=targets,
            scope=backbone.block_prefix,
        ),
    )
    with torch.no_grad():
        for name, parameter in lora.parameters(backbone):
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    backbone.train(mode=not kind.get("dropout"))
    tokens = convert(backbone.model, SEQUENCES)
    inner = (tokens != 1) & (tokens != 0) & (tokens != 2)

    def gradients(output: torch.Tensor) -> dict[str, torch.Tensor]:
        backbone.zero_grad()
        output.square().sum().backward()
        return {n: p.grad.clone() for n, p in lora.parameters(backbone) if p.grad is not None}

    ours = backbone({"tokens": tokens})
    found = gradients(ours.single)
    # the layers take fair-esm's own arguments too, and peft's layers are inside them
    theirs = backbone.model(tokens, repr_layers=[2])["representations"][2]
    flat = torch.cat([row[: int(n)] for row, n in zip(ours.single, ours.mask.sum(1), strict=True)])
    assert torch.allclose(flat, theirs[inner], rtol=0, atol=TOLERANCE)
    expected = gradients(theirs[inner])
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 2 * len(targets) * (1.5 if kind.get("use_dora") else 1)
    for name, grad in found.items():
        size = float(expected[name].abs().max())
        assert torch.allclose(grad, expected[name], rtol=0, atol=5e-5 * size), name


def test_merged_adapters_give_the_same(kernel: str) -> None:
    backbone = make("esm2_tiny")
    spec = lora.LoRASpec(
        rank=2, alpha=4.0, dropout=0.0, target_modules=("q_proj", "fc1"), scope="model.layers"
    )
    lora.inject(backbone, spec)
    with torch.no_grad():
        for name, parameter in lora.parameters(backbone):
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    before = run(backbone, SEQUENCES).single
    lora.merge(backbone)
    assert torch.allclose(run(backbone, SEQUENCES).single, before, rtol=0, atol=TOLERANCE)
    lora.unmerge(backbone)
    assert torch.equal(run(backbone, SEQUENCES).single, before)


def test_checkpointing_changes_no_gradient() -> None:
    plain, saving = make("esm2_tiny"), make("esm2_tiny", checkpointing=True)
    for backbone in (plain, saving):
        run(backbone, SEQUENCES).single.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]


@torch.no_grad()
def test_masked_tokens_rescale_the_rest_of_their_own_sequence_only() -> None:
    backbone = make("esm2_tiny")
    alone = run(backbone, ["MKTAYIAK"], layer=0).single[0]
    beside = run(backbone, ["MKTAYIAK", "<mask><mask>GG"], layer=0).single
    assert torch.equal(beside[0], alone)
    plain = run(backbone, ["AAGG"], layer=0).single[0]
    # 2 of 6 tokens are masked: 0.88 / (1 - 2 / 6) instead of 0.88
    assert torch.allclose(beside[1, 2:4], plain[2:] * 6 / 4, atol=1e-7)
    assert not beside[1, :2].any()


# --- sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequence", "text"),
    [
        ("", "s1: the sequence is empty."),
        (
            "MK*",
            "s1: '*' at position 3 is no amino acid: a stop codon; end the sequence",
        ),
        ("M-K-A", "s1: '-' at position 2 is no amino acid (and 1 more): a gap; remove it"),
        ("MJ", "s1: 'J' at position 2 is no amino acid: it stands for leucine or isoleucine"),
        ("M1K", "s1: '1' at position 2 is no amino acid: digit one; allowed are ACDEF"),
        ("M K", "s1: ' ' at position 2 is no amino acid: a space; allowed are"),
        ("M\u0410K", "s1: '\u0410' at position 2 is no amino acid: cyrillic capital letter a;"),
        ("M<pad>K", "s1: '<' at position 2 is no amino acid (and 1 more): only the token <mask>"),
        ("M\0K", "s1: '?' at position 2 is no amino acid"),
    ],
)
def test_other_letters_are_named_with_their_place(sequence: str, text: str) -> None:
    backbone = make("esm2_tiny")
    for method in (backbone.featurize, backbone.check):
        with pytest.raises(DataError) as caught:
            method(Sample(id="s1", sequence=sequence))
        assert text in str(caught.value)


def test_lower_case_is_upper_case() -> None:
    assert ESM.encode("mkvx").tolist() == ESM.encode("MKVX").tolist()


def test_every_letter_is_fair_esm_s_token() -> None:
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    text = "".join(ESM.ids) + "<mask>"
    assert ESM.encode(text).tolist() == alphabet.encode(text)


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 9, 10, 11, 14, 15, 25, 64])
def test_windows_cover_every_residue_once(n: int) -> None:
    backbone = make("esm2_tiny", long="window", context=10)
    sequence = "ACDEFGHIKLMNPQRSTVWY" * 4
    output = run(backbone, [sequence[:n], "MK"], "single", "cls", "mean")
    assert output.mask.sum(1).tolist() == [n, 2]
    assert torch.allclose(output.single[0, :n].mean(0), output.mean[0], atol=1e-6)
    spans = backbone._spans(n)
    assert all(b - a <= 10 for a, b in spans)
    for i in range(n):
        holding = [(min(i - a, b - 1 - i), a, b) for a, b in spans if a <= i < b]
        _, a, b = max(holding, key=lambda found: found[0])
        alone = run(backbone, [sequence[a:b]]).single[0, i - a]
        assert torch.allclose(output.single[0, i], alone, rtol=0, atol=TOLERANCE), i


@torch.no_grad()
def test_long_sequences_are_cropped_or_run_whole_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    crop = make("esm2_tiny", long="crop", context=10)
    assert torch.equal(run(crop, ["ACDEF" * 5]).single, run(crop, ["ACDEF" * 2]).single)
    (message,) = caplog.messages
    assert message == "s0 has 25 residues and is cut to the first 10, as are all longer ones."
    caplog.clear()
    full = make("esm2_tiny", context=10)
    for _ in range(2):
        assert run(full, ["ACDEF" * 5]).single.shape == (1, 25, 32)
    (message,) = caplog.messages
    assert message.startswith("s0 has 25 residues, more than the 10 ESM-2 was trained on;")


def test_a_limit_of_the_data_crops_first() -> None:
    backbone = make("esm2_tiny")
    features = backbone.featurize(Sample(id="s", sequence="ACDEF", max_length=3))
    assert features["tokens"].tolist() == [0, *ESM.encode("ACD").tolist(), 2]


def test_contacts_are_not_put_together_from_windows() -> None:
    backbone = make("esm2_tiny", long="window", context=10)
    with pytest.raises(DataError, match="Contacts need each sequence in one piece"):
        run(backbone, ["ACDEF" * 5], "pair")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"config": "esm2_t6_8m_UR50D"}, "Did you mean 'esm2_t6_8M_UR50D'?"),
        ({"config": {"num_layers": 2}}, "The ESM-2 config lacks embed_dim, attention_heads."),
        ({"config": {"layers": 2}}, "Unknown key in the ESM-2 config 'layers'"),
        (
            {"config": {"num_layers": 0, "embed_dim": 30, "attention_heads": 4}},
            "num_layers must be a whole number of at least 1, got 0.",
        ),
        (
            {"config": {"num_layers": 1, "embed_dim": 30, "attention_heads": 4}},
            "embed_dim=30 does not divide into 4 heads of an even size",
        ),
        ({"long": "cut"}, "Unknown long policy 'cut'"),
        ({"context": 0}, "context must be at least 1, got 0."),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ESM2Backbone(**settings)
    assert text in str(caught.value)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(ConfigError, match=f"layer must be from -3 to 2 for 2 blocks, got {layer}"):
        run(make("esm2_tiny"), ["MK"], layer=layer)


def test_names_of_the_sizes_build_those_sizes() -> None:
    backbone = ESM2Backbone("esm2_t6_8M_UR50D")
    # 7.5 M without the contact head; the output embedding is the input embedding
    assert sum(p.numel() for p in backbone.parameters()) == 7_512_474
    assert np.isclose(float(backbone.model.layers[0].self_attn.rot_emb.inv_freq[0]), 1.0)


def test_inference_mode_leaves_nothing_behind() -> None:
    """What is kept between calls has to serve calls with a graph, too."""
    packing._pair_order.cache_clear()
    backbone = make("esm2_tiny")
    with torch.inference_mode():
        run(backbone, ["MKV"])
    run(backbone, ["MKV"]).single.sum().backward()


# --- tokens of others ----------------------------------------------------------------------------


@torch.no_grad()
def test_padded_tokens_with_and_without_begin_and_end(kernel: str) -> None:
    backbone = make("esm2_tiny")
    model = stock(backbone)
    texts = ["MKTAYIAK", "GGSG", "MK"]
    plain = [backbone.featurize(Sample(id="s", sequence=t))["tokens"][1:-1] for t in texts]
    for begin, end in ((0, 2), (None, 2), (0, None), (None, None)):
        rows = [
            torch.tensor([*([begin] * (begin is not None)), *t.tolist(), *([end] * bool(end))])
            for t in plain
        ]
        longest = max(map(len, rows))
        for left in (False, True):
            padded = torch.full((len(rows), longest), 1)
            for row, tokens in zip(padded, rows, strict=True):
                place = slice(longest - len(tokens), None) if left else slice(len(tokens))
                row[place] = tokens
            found = backbone({"tokens": padded})
            assert found.mask.sum(1).tolist() == [8, 4, 2]
            for i, tokens in enumerate(rows):
                alone = model(tokens[None], repr_layers=[2])["representations"][2][0]
                residues = alone[(tokens != 0) & (tokens != 2)]
                single = found.single[i, : len(residues)]
                assert float((single - residues).abs().max()) <= TOLERANCE
    with pytest.raises(DataError, match="'cls' needs a token in front of each"):
        backbone({"tokens": torch.tensor([[5, 6, 2]])}, outputs=("cls",))
    with pytest.raises(DataError, match="one piece between its tokens for beginning and end"):
        backbone({"tokens": torch.tensor([[5, 6, 2]])}, outputs=("pair",))
    with pytest.raises(DataError, match="no residue in row 1"):
        backbone({"tokens": torch.tensor([[0, 5, 2], [0, 2, 1]])})
