"""Representations and scores in bfloat16: near those in float32, and the model stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from molfun import LoRAFinetune, MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError
from molfun.models.precision import computing, inference_precision
from molfun.nn import bf16, packed_attention

TEXTS = ["MKVLAAGG", "ACDEFGHIKLMNPQRSTVWY" * 2, "M", "MKVLAAGC", "GGSGGSGGSGGSGG"]
WIDE = {"hidden_size": 160, "num_hidden_layers": 2, "num_attention_heads": 10}
T5 = {"d_model": 160, "d_ff": 200, "d_kv": 16, "num_heads": 10, "num_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "esm2": {"num_layers": 2, "embed_dim": 160, "attention_heads": 10},
    "esm": WIDE,
    "esmc": WIDE,
    "saprot": WIDE,
    "prott5": T5,
    "ankh": T5,
}

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here"
)


def model_of(name: str, head: str | None = None) -> MolfunStructureModel:
    return MolfunStructureModel(name, config=MODELS[name], head=head, device="cpu", seed=1)


@pytest.fixture
def model() -> MolfunStructureModel:
    return model_of("esm2")


@pytest.fixture(params=["avx512", None], ids=["units", "none"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Run as a CPU with units for bfloat16 does, and as one without them."""
    if request.param and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 here")
    monkeypatch.setattr(bf16, "units", lambda: request.param)
    return request.param


def error(found: Any, wanted: Any) -> float:
    pairs = [(np.ravel(a), np.ravel(b)) for a, b in zip(found, wanted, strict=True)]
    a, b = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", MODELS)
def test_representations_are_near(name: str, units: str | None) -> None:
    model = model_of(name)
    exact = model.embed(TEXTS)
    found = model.embed(TEXTS, precision="bf16")
    assert all(array.dtype == np.float32 for array in found)
    assert 1e-6 < error(found, exact) < 1e-2
    assert error(model.embed(TEXTS, precision="fp32"), exact) == 0
    assert model.precision == "32-true"
    means = model.embed(TEXTS, pooling="mean", precision="bf16")
    assert error(means, [array.mean(0) for array in found]) < 5e-3


def test_each_is_what_it_is_alone(model: MolfunStructureModel, units: str | None) -> None:
    together = model.embed(TEXTS, precision="bf16")
    for text, array in zip(TEXTS, together, strict=True):
        alone = model.embed(text, precision="bf16")
        assert error([array], alone) < 5e-3  # the product of other rows may round elsewhere


def test_scores_are_near(model: MolfunStructureModel, units: str | None) -> None:
    for method in ("masked_marginal", "wt_marginal"):
        exact = model.score_variants("MKVLAAGGSCDE", method=method).scores
        found = model.score_variants("MKVLAAGGSCDE", method=method, precision="bf16").scores
        assert 1e-6 < error([found], [exact]) < 2e-2, method


@needs_bf16
def test_adapters_count(units: str | None) -> None:
    """Trained ones are folded into the weights that are cast."""
    model = model_of("esm2", "regression")
    data = SequenceDataset.from_list([(text, float(len(text))) for text in TEXTS])
    base = model.embed(TEXTS)
    model.fit(data, strategy=LoRAFinetune(rank=4, lr_lora=0.05), epochs=3, seed=0)
    exact = model.embed(TEXTS)
    assert error(exact, base) > 0.05
    assert error(model.embed(TEXTS, precision="bf16"), exact) < 1e-2


def test_the_head_of_the_language_model_is_in_float32(
    model: MolfunStructureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    head = model.backbone.model.lm_head
    head.register_forward_hook(lambda _, given, found: seen.append((given[0].dtype, found.dtype)))
    monkeypatch.setattr(bf16, "units", lambda: "avx512")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        model.score_variants("MKVLA", ["K2A"], precision="bf16")
        assert seen == [(torch.float32, torch.float32)]


def test_attention_in_bfloat16_is_ours_where_there_are_units(
    model: MolfunStructureModel, units: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    attend = packed_attention.attend
    monkeypatch.setattr(
        packed_attention, "attend", lambda *a, **k: (ran.append(a[2].dtype), attend(*a, **k))[1]
    )
    model.embed(TEXTS, precision="bf16")
    assert ran == ([torch.bfloat16] * 2 if units else [])


def test_a_model_stays_as_it_was(model: MolfunStructureModel) -> None:
    with pytest.raises(ZeroDivisionError), computing(model, "bf16"):
        assert 1 / (model.precision == "32-true")
    assert model.precision == "32-true"
    assert not torch.is_autocast_enabled("cpu")
    assert bf16.current() is None


def test_a_model_that_trained_in_bfloat16_computes_in_it() -> None:
    model = model_of("esm2", "regression")
    data = SequenceDataset.from_list([(text, float(len(text))) for text in TEXTS])
    model.fit(data, epochs=1, seed=0, precision="bf16")
    assert inference_precision(model, None) is None
    as_trained, exact = model.embed(TEXTS), model.embed(TEXTS, precision="fp32")
    assert 1e-6 < error(as_trained, exact) < 1e-2
    assert error(model.embed(TEXTS, precision="bf16"), as_trained) == 0
    assert model.precision == "bf16-mixed"


def test_auto_asks_the_device(model: MolfunStructureModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for found, wanted in (("amx", "bf16"), ("avx512", "bf16"), (None, "fp32")):
        monkeypatch.setattr(bf16, "units", lambda found=found: found)
        assert inference_precision(model, "auto") == wanted


def test_other_names_are_refused(model: MolfunStructureModel) -> None:
    text = r"Unknown precision 'half'; known: auto, bf16, fp32"
    with pytest.raises(ConfigError, match=text):
        model.embed(TEXTS, precision="half")
    with pytest.raises(ConfigError, match=text):
        model.score_variants("MKV", precision="half")
