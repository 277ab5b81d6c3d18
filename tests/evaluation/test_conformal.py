"""Conformal intervals and sets: they cover as often as they say, and calibration is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from molfun.errors import ConfigError, DataError
from molfun.evaluation.conformal import Calibration, least, reliability


def rows(seed: int, n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Labels with noise of several widths, which no model can know."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    noise = rng.standard_t(3, size=n) * (0.5 + np.abs(x[:, 0]))
    return x, x @ np.arange(1.0, 6.0) + noise


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_intervals_cover_within_two_points(coverage: float) -> None:
    found = []
    for seed in range(20):
        x, y = rows(seed)
        model = Ridge().fit(x[:500], y[:500])
        predictions = model.predict(x)
        calibration = Calibration.of_numbers(predictions[500:1000], y[500:1000])
        low, high = calibration.intervals(predictions[1000:], coverage=coverage)
        found.append(np.mean((low <= y[1000:]) & (y[1000:] <= high)))
    assert abs(np.mean(found) - coverage) < 0.02


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_the_rank_is_that_of_theory(coverage: float) -> None:
    """Of n errors the interval reaches as far as number ceil(coverage * (n + 1)), by size."""
    for n in (19, 39, 99):
        calibration = Calibration.of_numbers(np.zeros(n), np.arange(1.0, n + 1))
        (high,) = calibration.intervals(np.zeros(1), coverage=coverage)[1]
        assert high == math.ceil(round(coverage * (n + 1), 9))
        # a class whose probability is lower than that of so many calibrated rows is left out
        scores = np.arange(1, n + 1) / (n + 1)
        probs = np.stack([1 - scores, scores], 1)
        classes = Calibration.of_classes(probs, np.zeros(n), ["no", "yes"])
        held = classes.sets(probs, coverage=coverage)[:, 0]
        assert held.sum() == math.ceil(round(coverage * (n + 1), 9))


def test_sets_cover_each_class() -> None:
    coverage, found = 0.9, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = rng.choice(3, size=2000, p=[0.75, 0.2, 0.05])
        logits = rng.normal(size=(2000, 3)) + 1.5 * np.eye(3)[labels]
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        half = slice(0, 1000)
        calibration = Calibration.of_classes(probs[half], labels[half].astype(float), list("abc"))
        sets = calibration.sets(probs[1000:], coverage=coverage)
        held = sets[np.arange(1000), labels[1000:]]
        found.append([held[labels[1000:] == place].mean() for place in range(3)])
    # a class of 50 calibrated rows is covered by two points more on average
    assert np.abs(np.mean(found, 0) - coverage).max() < 0.03


def test_errors_survive_a_file_and_rows_without_a_label_are_left_out() -> None:
    calibration = Calibration.of_numbers(np.zeros(4), np.array([1.0, np.nan, -2.0, 3.0]))
    assert calibration.errors == [1.0, -2.0, 3.0]
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    with pytest.raises(DataError, match="A calibration holds classes, errors, labels, scores"):
        Calibration.from_dict({"errors": []})


def test_what_cannot_be_calibrated() -> None:
    numbers = Calibration.of_numbers(np.zeros(9), np.arange(9.0))
    classes = Calibration.of_classes(np.full((4, 2), 0.5), np.zeros(4), ["no", "yes"])
    assert least(0.9) == 9
    with pytest.raises(
        DataError, match="9 out-of-fold predictions are too few for intervals of 95%: at least 19"
    ):
        numbers.intervals(np.zeros(1), coverage=0.95)
    assert numbers.intervals(np.zeros(1), coverage=0.9)[1].tolist() == [8]
    nothing = Calibration.of_numbers(np.full(9, np.nan), np.arange(9.0))
    with pytest.raises(DataError, match="0 out-of-fold predictions are too few"):
        nothing.intervals(np.zeros(1), coverage=0.9)
    low, high = numbers.intervals(np.zeros(1), coverage=0.5)
    assert high == -low == 4
    with pytest.raises(ConfigError, match="coverage must be between 0 and 1, got 90"):
        numbers.intervals(np.zeros(1), coverage=90)
    with pytest.raises(ConfigError, match="Sets of classes are for classes"):
        numbers.sets(np.zeros((1, 2)), coverage=0.9)
    with pytest.raises(ConfigError, match="Intervals are for numbers"):
        classes.intervals(np.zeros(1), coverage=0.9)
    # no calibrated row is of the class "yes": it is never excluded
    assert classes.sets(np.array([[0.99, 0.01]]), coverage=0.5).tolist() == [[True, True]]


def test_reliability_of_a_calibrated_and_of_a_boasting_model() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    labels = (rng.uniform(size=len(p)) < p).astype(int)
    honest = reliability(np.stack([1 - p, p], 1), labels)
    assert honest["ece"] < 0.01
    assert np.allclose(honest["confidence"], honest["accuracy"], atol=0.03)
    assert sum(honest["n"]) == len(p)
    sure = np.where(p > 0.5, 0.99, 0.01)
    boasting = reliability(np.stack([1 - sure, sure], 1), labels)
    assert boasting["ece"] == pytest.approx(0.99 - np.mean((p > 0.5) == labels), abs=1e-6)
