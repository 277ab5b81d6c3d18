"""Intervals and the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molfun.errors import ConfigError
from molfun.evaluation import results, verdict
from molfun.evaluation.bootstrap import Estimate, estimates
from molfun.evaluation.results import HeadVerdict
from molfun.evaluation.verdict import Predicted
from molfun.tasks import BinaryTask, MulticlassTask, MultilabelTask, RegressionTask
from molfun.tasks.base import Task

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=200)
NOISE = RNG.normal(size=200)


def judge(task: Task, parts: dict[str, Predicted], **options: Any) -> HeadVerdict:
    return verdict.judge(task, parts, **{"draws": 100, **options})


def rows(values: np.ndarray) -> list[np.ndarray]:
    return [np.array(v) for v in values]


def part(model: float, baseline: float, n: int = 200) -> Predicted:
    """Predictions with so much noise each."""
    return Predicted(
        rows((TRUTH + model * NOISE)[:n]),
        rows(TRUTH[:n]),
        {"mean": rows(np.zeros(n)), "one_hot": rows((TRUTH - baseline * NOISE[::-1])[:n])},
    )


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = RNG.normal(size=400)
    (mean,) = estimates(lambda drawn: np.array([values[drawn].mean()]), 400)
    half = 1.96 * values.std() / 20
    assert mean.value == values.mean()
    assert (mean.low, mean.high) == pytest.approx((mean.value - half, mean.value + half), abs=0.01)


def test_samples_of_a_group_are_drawn_together() -> None:
    """Ten groups of equal values hold ten observations, and not a hundred."""
    values = np.repeat(RNG.normal(size=10), 10)

    def mean(drawn: np.ndarray) -> np.ndarray:
        return np.array([values[drawn].mean()])

    (single,) = estimates(mean, 100)
    (grouped,) = estimates(mean, 100, groups=np.repeat(range(10), 10).tolist())
    ratio = (grouped.high - grouped.low) / (single.high - single.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.3)


def test_undefined_draws_are_left_out_up_to_half() -> None:
    def often(share: float) -> float:
        def value(drawn: np.ndarray) -> np.ndarray:
            return np.array([math.nan if drawn.mean() / 100 > share else drawn.mean()])

        return estimates(value, 100)[0].low

    assert math.isfinite(often(0.52))
    assert math.isnan(often(0.3))


@pytest.mark.parametrize(("draws", "confidence"), [(0, 0.95), (100, 1.0)])
def test_settings_are_checked(draws: int, confidence: float) -> None:
    with pytest.raises(ConfigError, match="at least 1 draw and a confidence between 0 and 1"):
        estimates(lambda drawn: drawn[:1], 10, draws=draws, confidence=confidence)


@pytest.mark.parametrize(
    ("model", "baseline", "outcome", "words"),
    [
        (0.2, 1.0, "better", "better than the baseline (by 0.2"),
        (0.5, 0.5, "not better", "not better than the baseline."),
        (1.0, 0.2, "worse", "not better than the baseline, and worse by 0.3"),
    ],
)
def test_the_verdict_compares_with_the_best_baseline(
    model: float, baseline: float, outcome: str, words: str
) -> None:
    found = judge(RegressionTask(), {"val": part(0.1, 3.0), "test": part(model, baseline)})
    assert found.outcome == outcome
    assert words in found.verdict
    assert found.verdict.startswith("Spearman 0.")
    assert "] on 200 test rows; ridge on one-hot 0." in found.verdict
    test = found.parts["test"]
    own, other = test.metrics["spearman"], test.baselines["one_hot"].metrics["spearman"]
    difference = test.baselines["one_hot"].difference
    assert difference.value == pytest.approx(own.value - other.value)
    assert difference.low < difference.value < difference.high
    assert own.low < own.value < own.high
    # the same samples are drawn for both: their difference is surer than either
    assert test.metrics["rmse"].low < test.metrics["rmse"].value


def test_where_small_is_good_a_gain_is_a_smaller_value() -> None:
    # the mean has no correlation, so the verdict falls back on an error
    only_mean = Predicted(rows(TRUTH + 0.1 * NOISE), rows(TRUTH), {"mean": rows(np.zeros(200))})
    found = judge(RegressionTask(), {"test": only_mean})
    assert found.verdict.startswith("RMSE 0.1")
    assert "; mean of the training labels 0.9" in found.verdict
    assert found.outcome == "better"
    assert found.parts["test"].baselines["mean"].difference.low > 0


def test_validation_rows_and_random_weights_are_named() -> None:
    found = judge(RegressionTask(), {"val": part(0.2, 1.0)}, random_weights=True)
    said = "on 200 validation rows, which also chose the epoch (random backbone weights); "
    assert said in found.verdict
    assert found.part == "val"


def test_few_samples_conclude_nothing() -> None:
    found = judge(RegressionTask(), {"test": part(0.1, 1.0, n=8)})
    assert found.outcome == "too few"
    assert found.verdict.endswith(": nothing can be concluded from 8 samples.")
    assert "[" not in found.verdict
    grouped = judge(
        RegressionTask(),
        {"test": Predicted(rows(TRUTH), rows(TRUTH), groups=["a"] * 100 + ["b"] * 100)},
    )
    assert grouped.verdict.endswith(": nothing can be concluded from 2 independent groups.")


def classes(
    labels: Sequence[float], probs: Sequence[float], groups: list[str] | None = None
) -> Predicted:
    """Predictions of two classes, next to a constant."""
    rows_of = [np.array([1 - p, p]) for p in probs]
    constant = [np.array([0.5, 0.5])] * len(rows_of)
    return Predicted(rows_of, rows(np.array(labels)), {"mean": constant}, groups=groups)


BINARY = BinaryTask(classes=["no", "yes"])


def test_few_of_a_class_conclude_nothing() -> None:
    labels = [0.0] * 39 + [1.0]
    found = judge(BINARY, {"test": classes(labels, np.linspace(0, 1, 40).tolist())})
    assert found.outcome == "too few"
    assert found.verdict == (
        "AUROC 1 on 40 test rows; class frequencies 0.5: nothing can be concluded, since only 1 of "
        "40 samples has another class than 'no'."
    )
    # ten are enough, unless they are of a few patients
    labels, probs = [0.0] * 30 + [1.0] * 10, np.linspace(0, 1, 40).tolist()
    assert judge(BINARY, {"test": classes(labels, probs)}, draws=10).outcome == "better"
    patients = [str(i) for i in range(30)] + ["x"] * 5 + ["y"] * 5
    found = judge(BINARY, {"test": classes(labels, probs, patients)})
    assert found.verdict.endswith(
        "since only 2 of 32 independent groups have another class than 'no'."
    )
    # most samples are negative, but of two patients
    labels, patients = [1.0] * 20 + [0.0] * 60, [str(i) for i in range(20)] + ["x", "y"] * 30
    found = judge(BINARY, {"test": classes(labels, np.linspace(1, 0, 80).tolist(), patients)})
    assert "only 2 of 22 independent groups have another class than 'yes'" in found.verdict


def test_rare_classes_among_many() -> None:
    """Accuracy needs samples outside the most frequent class, and not ten of each class."""
    truth = np.array([0.0] * 20 + [1.0] * 18 + [2.0] * 2)
    right = [np.eye(3)[int(t)] for t in truth]
    task = MulticlassTask(classes=["x", "y", "z"])
    blind = [np.full(3, 1 / 3)] * 40
    found = judge(task, {"test": Predicted(right, rows(truth), {"mean": blind})}, draws=10)
    assert found.outcome == "better"
    labels = [np.array([float(i < 3), float(i < 37)]) for i in range(40)]
    found = judge(MultilabelTask(classes=["x", "y"]), {"test": Predicted(labels, labels)})
    assert "since no class has 10 samples with it and as many without." in found.verdict


def test_an_undefined_value_is_not_compared() -> None:
    """A prediction that is not finite leaves the model without metrics, and the verdict says so."""
    labels, probs = [0.0, 1.0] * 20, np.linspace(0, 1, 40).tolist()
    one = classes(labels, [math.nan, *probs[1:]])
    found = judge(BINARY, {"val": one, "test": one}, draws=10)
    assert found.outcome == "no baseline"
    assert found.verdict == (
        "AUROC undefined on 40 test rows (1 prediction is not finite); class frequencies 0.5: "
        "undefined for the model, so that nothing is compared."
    )
    assert found.threshold is not None, "of the rows that are finite"


def test_without_a_baseline() -> None:
    found = judge(RegressionTask(), {"test": Predicted(rows(TRUTH + NOISE), rows(TRUTH))})
    assert found.verdict.endswith("on 200 test rows: no baseline to compare with.")


def test_metrics_by_a_column() -> None:
    values = ["a"] * 150 + ["b"] * 50
    one = part(0.3, 1.0)
    found = judge(
        RegressionTask(),
        {"test": Predicted(one.predictions, one.targets, one.baselines, columns={"assay": values})},
    )
    by_assay = found.parts["test"].groups["assay"]
    assert {name: group.n for name, group in by_assay.items()} == {"a": 150, "b": 50}
    error = TRUTH[150:] - (TRUTH + 0.3 * NOISE)[150:]
    assert by_assay["b"].metrics["rmse"].value == pytest.approx(np.sqrt((error**2).mean()))


def test_intervals_by_a_column_draw_whole_groups() -> None:
    """Each value stands in the table five times: intervals over rows are too narrow."""
    one = part(0.3, 1.0, n=40)
    places = [i for i in range(40) for _ in range(5)]

    def interval(groups: list[Any] | None, column: list[str]) -> Estimate:
        given = Predicted(
            [one.predictions[i] for i in places], [one.targets[i] for i in places],
            groups=groups, columns={"assay": column},
        )  # fmt: skip
        by_assay = judge(RegressionTask(), {"test": given}).parts["test"].groups["assay"]
        return by_assay["a"].metrics["rmse"]

    alone, grouped = (interval(groups, ["a"] * 200) for groups in (None, places))
    assert grouped.high - grouped.low > 1.7 * (alone.high - alone.low)
    # 75 rows, but 15 groups
    few = interval(places, ["a"] * 75 + ["b"] * 125)
    assert math.isnan(few.low)


def test_groups_are_counted_before_intervals_are_shown() -> None:
    found = judge(
        RegressionTask(),
        {"test": Predicted(rows(TRUTH + NOISE), rows(TRUTH), groups=[i // 14 for i in range(200)])},
    )
    assert found.outcome == "too few"
    assert "[" not in found.verdict
    assert all(math.isnan(one.low) for one in found.parts["test"].metrics.values())


def test_all_metrics_of_many_samples_have_intervals() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=2100)
    found = judge(
        RegressionTask(), {"test": Predicted(rows(truth + rng.normal(size=2100)), rows(truth))}
    )
    assert all(one.low < one.value < one.high for one in found.parts["test"].metrics.values())


def test_classes_by_accuracy_and_residues_within_samples() -> None:
    rng = np.random.default_rng(1)
    truth = [rng.integers(3, size=30).astype(float) for _ in range(40)]
    right = [np.eye(3)[t.astype(int)] for t in truth]
    blind = [np.full((30, 3), 1 / 3) for _ in truth]
    task = MulticlassTask(classes=["C", "E", "H"], level="residue")
    found = judge(task, {"test": Predicted(right, truth, {"mean": blind})})
    assert found.verdict.startswith("Accuracy 1 [1, 1] on 40 test rows; class frequencies 0.3")
    assert found.outcome == "better"
    assert found.parts["test"].n_labels == 1200


def test_the_file(tmp_path: Path) -> None:
    one = judge(RegressionTask(), {"test": part(0.2, 1.0, n=30)})
    results.write(tmp_path / "one.json", {"": one})
    content = json.loads((tmp_path / "one.json").read_text())
    assert content["format"] == 1
    assert content["verdict"] == one.verdict
    baselines = content["parts"]["test"]["baselines"]
    assert baselines["mean"]["metrics"]["spearman"]["value"] is None, "JSON has no NaN"
    assert baselines["one_hot"]["title"] == "ridge on one-hot"
    results.write(tmp_path / "two.json", {"ddg": one, "tm": one})
    content = json.loads((tmp_path / "two.json").read_text())
    assert list(content["heads"]) == ["ddg", "tm"]
    assert content["verdict"].splitlines()[1] == f"tm: {one.verdict}"


def test_a_threshold_is_chosen_on_validation_and_judged_on_test() -> None:
    """All probabilities are below 0.5: at the chosen threshold the classes separate."""
    val = classes([0, 0, 1, 1], [0.05, 0.1, 0.2, 0.3])
    test = classes([0, 0, 1, 1], [0.05, 0.25, 0.1, 0.4])
    found = judge(BINARY, {"val": val, "test": test}).threshold
    assert found is not None
    assert found.value == 0.2
    assert found.metrics["accuracy"] == 0.5
    assert judge(BINARY, {"test": test}).threshold is None
    assert judge(RegressionTask(), {"val": part(1, 1), "test": part(1, 1)}).threshold is None
    one_class = classes([0, 0], [0.1, 0.2])
    assert judge(BINARY, {"val": one_class, "test": test}).threshold is None
