"""Intervals of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from molfun import MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError
from molfun.models.evaluation import intervals
from molfun.tasks import MulticlassTask, RegressionTask


def test_bounds_cover_the_mean_as_often_as_they_say() -> None:
    """MAE of noise of known size: its interval is that of theory (a mean of half-normals)."""
    rng = np.random.default_rng(0)
    truth = [np.array(0.0)] * 400
    noise = [np.array(x) for x in rng.normal(size=400)]
    found = intervals(RegressionTask(), noise, truth, n=500)
    mean = float(np.mean([abs(float(x)) for x in noise]))
    half = 1.96 * float(np.std([abs(float(x)) for x in noise])) / 20
    assert found["mae_low"] == pytest.approx(mean - half, abs=0.015)
    assert found["mae_high"] == pytest.approx(mean + half, abs=0.015)
    wider = intervals(RegressionTask(), noise, truth, n=500, confidence=0.99)
    assert wider["mae_low"] < found["mae_low"] < found["mae_high"] < wider["mae_high"]
    assert math.isnan(found["pearson_low"]), "correlation with a constant is not defined"


def test_residues_of_a_protein_stay_together() -> None:
    """Two proteins, one all right and one all wrong: accuracies of a draw are 0, 1/2 or 1."""
    task = MulticlassTask(classes=["a", "b"], level="residue")
    right, wrong = np.array([[1.0, 0.0]] * 50), np.array([[0.0, 1.0]] * 50)
    found = intervals(task, [right, wrong], [np.zeros(50)] * 2, n=200)
    assert (found["accuracy_low"], found["accuracy_high"]) == (0.0, 1.0)


def test_evaluate_gives_them_and_repeats() -> None:
    data = SequenceDataset.from_list([("MKV" + "A" * i, float(i)) for i in range(12)])
    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    model.fit(data, strategy="head_only", epochs=2)
    metrics = model.evaluate(data, bootstrap=50)
    assert metrics["rmse_low"] <= metrics["rmse"] <= metrics["rmse_high"]
    assert metrics == model.evaluate(data, bootstrap=50)
    assert "rmse_low" not in model.evaluate(data)
    with pytest.raises(ConfigError, match="a confidence between 0 and 1, got 5 and 2"):
        model.evaluate(data, bootstrap=5, confidence=2)
