"""Features of series are compared by name wherever a trained model meets data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from molfun import MolfunStructureModel, TimeSeriesDataset
from molfun.errors import DataError

VALUES = np.random.default_rng(0).normal(size=(8, 5, 2)) * [1, 100]


def series(names: list[str] | None, values: np.ndarray = VALUES) -> TimeSeriesDataset:
    return TimeSeriesDataset.from_arrays(
        values, labels=np.arange(8.0), feature_names=names, ids=[f"s{i}" for i in range(8)]
    )


def make(**options: Any) -> MolfunStructureModel:
    config = {"name": "linear", "d_input": 2, "d_model": 4}
    return MolfunStructureModel(
        "timeseries", config=None if options else config, head="regression", device="cpu", **options
    )


TRAIN, TURNED = series(["hr", "bp"]), series(["bp", "hr"], VALUES[..., ::-1])


def test_order_does_not_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = make()
    history = model.fit(TRAIN, TURNED, strategy="full", epochs=1)
    assert "Features (2): hr, bp" in caplog.messages
    twin = make()
    assert twin.fit(TRAIN, TRAIN, strategy="full", epochs=1)[-1] == history[-1]
    model.save(tmp_path / "checkpoint")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    expected = model.predict(TRAIN)["prediction"]
    loader = DataLoader(Subset(TURNED, range(8)), 4, collate_fn=TURNED.collate_fn)
    for data in (TURNED, loader):
        assert torch.allclose(again.predict(data)["prediction"], expected)
    assert again.evaluate(TURNED) == pytest.approx(model.evaluate(TRAIN))


def test_other_features(caplog: pytest.LogCaptureFixture) -> None:
    model = make()
    model.fit(TRAIN, strategy="full", epochs=1)
    expected = model.predict(TRAIN)["prediction"]
    with pytest.raises(DataError, match=r"lacks the feature bp that the model .* \(it has hr, t\)"):
        model.predict(series(["hr", "t"]))
    with pytest.raises(DataError, match="lacks the feature bp that the training set"):
        make().fit(TRAIN, series(["hr", "t"]), strategy="full", epochs=1)
    more = np.concatenate([np.zeros((8, 5, 1)), VALUES], axis=2)
    caplog.clear()
    found = model.predict(series(["fold", "hr", "bp"], more))["prediction"]
    assert torch.equal(found, expected)
    assert "Not used, since the model was trained without them: fold." in caplog.messages
    caplog.clear()
    assert torch.equal(model.predict(series(None))["prediction"], expected)
    assert caplog.messages[0].startswith("The features have no names to compare: feature_0, feat")


def test_pretrained_weights_know_their_features(tmp_path: Path) -> None:
    make().pretrain(TRAIN, epochs=1, objective="mae", output_dir=tmp_path)
    weights = tmp_path / "weights.safetensors"
    rows = [make(weights=weights).fit(data, strategy="head_only", epochs=1)[-1]["train_loss"]
            for data in (TRAIN, TURNED)]  # fmt: skip
    assert rows[0] == pytest.approx(rows[1])
    with pytest.raises(DataError, match="lacks the feature hr that the backbone was trained on"):
        make(weights=weights).fit(series(["bp", "t"]), strategy="head_only", epochs=1)
