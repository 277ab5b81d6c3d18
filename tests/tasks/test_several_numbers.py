"""Tasks of several numbers per label: mean and deviation, quantiles, several properties."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from molfun import HeadOnlyFinetune, MolfunStructureModel, SequenceDataset
from molfun.data import DataSplitter
from molfun.errors import ConfigError, TableError
from molfun.models import Ensemble, cross_validate
from molfun.tasks import GaussianTask, MultiTargetTask, QuantileTask, RegressionTask

QUIET_AND_LOUD = 400


def noisy(seed: int = 0) -> SequenceDataset:
    """Sequences of A with little noise around 5, of W with a deviation of 2 around 5."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(QUIET_AND_LOUD):
        loud = i % 2
        rows.append(("WWW" if loud else "AAA", 5 + (2.0 if loud else 0.2) * rng.normal()))
    return SequenceDataset.from_list(rows)


def trained(task: str, **settings: object) -> MolfunStructureModel:
    data = noisy()
    model = MolfunStructureModel(
        "esm2_tiny", head="mlp", task=task, task_config=settings, device="cpu"
    )
    model.fit(data, strategy=HeadOnlyFinetune(lr=3e-3), epochs=30)
    return model


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_deviations_are_those_of_the_labels(beta: float) -> None:
    model = trained("gaussian", beta=beta)
    found = model.predict(["AAA", "WWW"])
    assert found["prediction"].numpy() == pytest.approx([5, 5], abs=0.5)
    quiet, loud = found["std"].tolist()
    assert 0.1 < quiet < 0.5
    assert 1.5 < loud < 2.5
    scores = model.evaluate(noisy(1))
    assert scores["nll"] < stats.norm(5, 1.42).entropy()  # of one deviation for all


def test_intervals_hold_as_many_labels_as_they_say() -> None:
    model = trained("quantile", quantiles=[0.1, 0.5, 0.9])
    found = model.predict(["AAA", "WWW"])
    width = (found["upper"] - found["lower"]).tolist()
    # 2.56 deviations
    assert 0.2 < width[0] < 1.2
    assert 3.5 < width[1] < 7
    scores = model.evaluate(noisy(1))
    assert scores["coverage"] == pytest.approx(0.8, abs=0.1)
    assert scores["coverage_error"] == pytest.approx(abs(scores["coverage"] - 0.8))


def test_an_ensemble_adds_the_spread_of_its_models() -> None:
    task = GaussianTask()
    rows = [np.array([1.0, 0.3]), np.array([3.0, 0.4])]
    mean, std = task.combined(rows)
    assert mean == 2.0
    assert std == pytest.approx(math.sqrt((0.09 + 0.16) / 2 + 1.0))
    both = Ensemble([
        MolfunStructureModel("esm2_tiny", head="mlp", task="gaussian", seed=seed, device="cpu")
        for seed in (0, 1)
    ])  # fmt: skip
    found = both.predict(["MKV"])
    assert float(found["std"][0]) > 0.5


def test_likelihoods_are_those_of_scipy() -> None:
    task = GaussianTask(standardize=False)
    outputs = {"prediction": torch.tensor([[1.0, 0.3], [2.0, -1.0]])}
    mean, std = task.predictions(outputs).unbind(-1)
    labels = torch.tensor([1.5, 0.0], dtype=torch.float64)
    expected = -stats.norm(mean.numpy(), std.numpy()).logpdf(labels.numpy())
    assert float(task.loss(outputs, labels).total) == pytest.approx(expected.sum(), rel=1e-5)
    rows = task.predictions(outputs).numpy()
    assert task.metrics(rows, labels.numpy())["nll"] == pytest.approx(expected.mean(), rel=1e-6)


def test_quantiles_that_cross_are_sorted() -> None:
    task = QuantileTask(standardize=False)
    crossed = task.predictions({"prediction": torch.tensor([[3.0, 1.0, 2.0]])})
    assert crossed.tolist() == [[1.0, 2.0, 3.0]]


def test_baselines_have_no_interval() -> None:
    for task, own in (
        (GaussianTask(), {"nll"}),
        (QuantileTask(), {"coverage", "coverage_error", "width"}),
    ):
        found = task.metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
        plain = RegressionTask().metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
        assert {k: found[k] for k in plain} == plain
        assert {k for k, v in found.items() if math.isnan(v)} == own


def test_wrong_settings() -> None:
    for task, settings, message in (
        (GaussianTask, {"beta": 2}, "beta must be from 0 to 1, got 2"),
        (QuantileTask, {"quantiles": [0.1, 0.9]}, r"with 0.5 among them; got \[0.1, 0.9\]"),
        (QuantileTask, {"quantiles": [0.5, 0.9]}, "must be at least 3 for an interval"),
        (QuantileTask, {"quantiles": [0.5, 0.1, 0.9]}, "must increase"),
        (MultiTargetTask, {"targets": ["kd"]}, "two properties or more"),
        (MultiTargetTask, {"targets": "kd"}, "two properties or more, each once; got 'kd'"),
        (MultiTargetTask, {"targets": ["kd", "kd"]}, "each once"),
    ):
        with pytest.raises(ConfigError, match=message):
            task(**settings)


# Several properties


TABLE = "sequence,kd,tm,lab\n" + "".join(
    f"{'MKVLAGHT'[i % 8] * 3}{'ACDEFGHIKLMN'[i]},{'' if i == 2 else i / 4},{50 + 9 * (i % 5)},x\n"
    for i in range(12)
)


def test_properties_have_units_and_metrics_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text(TABLE)
    data = SequenceDataset.from_csv(tmp_path / "two.csv", target_column=["kd", "tm"])
    assert data[1].target.tolist() == [0.25, 59.0]
    assert math.isnan(data[2].target[0])
    assert data.metadata.columns.tolist() == ["lab"]
    model = MolfunStructureModel(
        "esm2_tiny", head="mlp", task="multitarget", task_config={"targets": ["kd", "tm"]},
        device="cpu",
    )  # fmt: skip
    model.fit(data, data, strategy=HeadOnlyFinetune(lr=1e-2), epochs=60)
    scores = model.evaluate(data)
    single = RegressionTask()
    rows = np.array(list(data.targets))
    found = model.predict(data)
    assert found["targets"] == ["kd", "tm"]
    predicted = found["prediction"].numpy()
    for k, name in enumerate(("kd", "tm")):
        expected = single.metrics(predicted[:, k], rows[:, k])
        assert {m: scores[f"{name}/{m}"] for m in expected} == pytest.approx(expected, rel=1e-5)
    # both are learned, though one has fifty times the deviation of the other
    assert scores["kd/r2"] > 0.8
    assert scores["tm/r2"] > 0.8
    assert scores["r2"] == pytest.approx((scores["kd/r2"] + scores["tm/r2"]) / 2)
    model.save(tmp_path / "checkpoint")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(again.predict(data)["prediction"], found["prediction"])


def test_tables_of_several_labels_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text("sequence,kd,tm\nMKV,1,\nACD,,\nGGG,x,3\n")
    with pytest.raises(
        TableError, match=r"(?s)'x' is not a number.*line 3: has no label in kd, tm"
    ):
        SequenceDataset.from_csv(path, target_column=["kd", "tm"])
    path.write_text("sequence,kd,tm\nMKV,1,\nACD,,\n")
    loose = SequenceDataset.from_csv(path, target_column=["kd", "tm"], require_target=False)
    assert loose[1].target is None
    with pytest.raises(ConfigError, match="target_column names no column"):
        SequenceDataset.from_csv(path, target_column=[])
    with pytest.raises(ConfigError, match="Give classes and residues a head each"):
        SequenceDataset.from_csv(path, target_column=["kd", "tm"], labels="class")


def test_the_command_line_writes_a_column_per_property(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from molfun.cli.main import app

    monkeypatch.chdir(tmp_path)
    Path("two.csv").write_text(TABLE)
    options = ["--target-column", "kd,tm", "--task", "multitarget", "--epochs", "1", "--no-report"]
    backbone = ["--backbone", "esm2_tiny", "--device", "cpu", "--output", "run"]
    done = CliRunner().invoke(app, ["fine-tune", "--data", "two.csv", *options, *backbone])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(
        app, ["predict", "run/checkpoint", "--data", "two.csv", "--output", "out.csv"]
    )
    assert done.exit_code == 0, done.output
    out = pd.read_csv("out.csv")
    assert {"kd", "tm", "kd_prediction", "tm_prediction", "lab"} <= set(out.columns)
    assert out["kd"].isna().sum() == 1
    for columns in ((), ("--target-column", "kd,tm")):
        done = CliRunner().invoke(
            app, ["evaluate", "run/checkpoint", "--data", "two.csv", *columns]
        )
        assert done.exit_code == 0, done.output
        assert "tm/rmse" in done.output
    done = CliRunner().invoke(app, ["report", "run"])
    assert done.exit_code == 0, done.output
    assert "kd, tm" in Path("run/report.html").read_text()


@pytest.mark.parametrize("task", ["gaussian", "quantile"])
def test_intervals_of_folds_are_those_of_the_prediction(task: str) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDEFGHIKL"), 6)) for _ in range(40)]
    data = SequenceDataset.from_list([(text, 5 + rng.normal()) for text in texts])
    folds = DataSplitter.k_fold(data, 2, val_frac=0.0)
    found = cross_validate(
        lambda: MolfunStructureModel("esm2_tiny", head="linear", task=task, device="cpu"),
        data, folds,
        strategy="head_only", epochs=1,
    )  # fmt: skip
    (calibration,) = found.calibrations().values()
    lower, upper = calibration.intervals(np.array([5.0]), coverage=0.9)
    assert lower[0] < 5 < upper[0]
