"""Layers are compared as heads on them would be trained, by one pass over the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from molfun import HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
from molfun.backbones.language import LanguageBackbone
from molfun.errors import ConfigError
from molfun.models.layer_sweep import sweep_layers
from molfun.testing.samples import series_model

STRATEGY = HeadOnlyFinetune(lr=1e-2)


def data(seed: int) -> SequenceDataset:
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 5 + i % 7)) for i in range(12)]
    return SequenceDataset.from_list([(t, t.count("A") + rng.normal() / 9) for t in texts])


def model(**settings: Any) -> MolfunStructureModel:
    return MolfunStructureModel("esm2_tiny", head="linear", device="cpu", **settings)


def test_rows_are_those_of_models_with_that_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = data(0), data(1)
    passes: list[int] = []
    run = LanguageBackbone.layer_means

    def counted(self: LanguageBackbone, batch: Any) -> torch.Tensor:
        passes.append(len(batch["shape"]))
        return run(self, batch)

    monkeypatch.setattr(LanguageBackbone, "layer_means", counted)
    whole = model()
    before = whole.predict(val)["prediction"]
    found = sweep_layers(whole, train, val, strategy=STRATEGY, epochs=3, batch_size=4, seed=7)
    assert sum(passes) == 24
    assert torch.equal(whole.predict(val)["prediction"], before)
    assert found.monitor == "val/loss"
    assert [row["layer"] for row in found.rows] == [1, 2]
    losses = []
    for row in found.rows:
        one = model(backbone_config={"layer": row["layer"]})
        loader = DataLoader(train, batch_size=4, shuffle=True, collate_fn=train.collate_fn)
        expected = one.fit(loader, val, strategy=STRATEGY, epochs=3, seed=7).best
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-4)
        assert row["val/rmse"] == pytest.approx(expected["val/rmse"], rel=1e-4)
        losses.append(expected["val_loss"])
    assert found.best == 1 + int(np.argmin(losses))


def test_what_has_no_layers_to_compare() -> None:
    sequences = data(0)
    with pytest.raises(ConfigError, match="Layers of protein language models are compared, and"):
        sweep_layers(series_model(head="regression"), sequences, sequences)
    attention = model(head_config={"pooling": "attention"})
    with pytest.raises(ConfigError, match="the head reads single"):
        sweep_layers(attention, sequences, sequences)
    with pytest.raises(ConfigError, match="Layers are compared on sequences with one label each"):
        sweep_layers(model(), [sequences[0]], sequences)
