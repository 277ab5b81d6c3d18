"""Embeddings of the base weights of a trained model, as long as they are at hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from molfun import MolfunStructureModel
from molfun.models.base_embeddings import BaseEmbeddings
from molfun.sample import Sample
from molfun.training import (
    FinetuneStrategy,
    FullFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    PartialFinetune,
)

SAMPLES = [
    Sample(id=s, sequence=s, target=float(i)) for i, s in enumerate(("MKVL", "MKAL", "MWVL"))
]


def made() -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="regression", device="cpu", seed=4)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("strategy", [HeadOnlyFinetune(lr=1e-2), LoRAFinetune(rank=2, lr_lora=0.1)])
def test_they_are_those_before_training(strategy: FinetuneStrategy, merged: bool) -> None:
    model, lora = made(), isinstance(strategy, LoRAFinetune)
    before = model.embed(SAMPLES, pooling="mean")
    model.fit(SAMPLES, strategy=strategy, epochs=2)
    after = model.embed(SAMPLES, pooling="mean")
    assert np.allclose(before, after) is not lora
    if merged and lora:
        model.merge()
    predicted = model.predict(SAMPLES)["prediction"]
    trains = {n: p.requires_grad for n, p in model.named_parameters()}
    embedder = BaseEmbeddings(model)
    found = embedder(SAMPLES)
    assert found is not None
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, before, rtol=0, atol=1e-6)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == trains
    assert torch.equal(
        torch.as_tensor(model.predict(SAMPLES)["prediction"]), torch.as_tensor(predicted)
    )
    fresh = made()
    assert embedder.key_of(SAMPLES) == BaseEmbeddings(fresh).key_of(SAMPLES)
    assert embedder.key_of(SAMPLES) != embedder.key_of(SAMPLES[1:])
    fresh.fit(SAMPLES, strategy="head_only", epochs=1, precision="bf16")
    assert embedder.key_of(SAMPLES) != BaseEmbeddings(fresh).key_of(SAMPLES)


@pytest.mark.parametrize(
    "strategy", [FullFinetune(lr=1e-2), PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2)]
)
def test_weights_that_were_trained_have_none(strategy: FinetuneStrategy) -> None:
    model = made()
    model.fit(SAMPLES, strategy=strategy, epochs=1)
    assert BaseEmbeddings(model)(SAMPLES) is None


def test_each_sample_runs_once(caplog: pytest.LogCaptureFixture) -> None:
    embedder = BaseEmbeddings(made())
    with caplog.at_level("INFO", "molfun.models.base_embeddings"):
        first = embedder(SAMPLES[:2])
        again = embedder([*SAMPLES, SAMPLES[0]])
    assert first is not None
    assert again is not None
    assert np.array_equal(again[:2], first)
    assert np.array_equal(again[3], first[0])
    said = [text for text in caplog.messages if "through the base weights" in text]
    assert [text.split()[0] for text in said] == ["2", "1"]
    assert embedder([]) is None
