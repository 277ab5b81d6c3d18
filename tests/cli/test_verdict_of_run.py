"""The end of a run compares it with baselines, on the command line and in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from molfun import MolfunStructureModel, SequenceDataset
from molfun.errors import ConfigError


def table(path: Path, n: int = 90) -> Path:
    """Write sequences of equal length whose label is the number of A."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDE"), 6)) for _ in range(n)]
    lines = ["sequence,target,assay,split"]
    for i, text in enumerate(texts):
        part = "train" if i < n - 60 else "val" if i < n - 30 else "test"
        lines.append(f"{text},{text.count('A')},{'xy'[i % 2]},{part}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_run_ends_with_a_verdict(tmp_path: Path, molfun: Callable[..., Result]) -> None:
    out = tmp_path / "run"
    done = molfun(
        "fine-tune", "--backbone", "esm2_tiny", "--data", table(tmp_path / "t.csv"), "--split",
        "column", "--strategy", "head_only", "--epochs", "1", "--output", out,
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Verdict: ")]
    assert line.startswith("Verdict: Spearman ")
    assert " on 30 test rows (random backbone weights); ridge on " in line
    found = json.loads((out / "evaluation.json").read_text())
    assert found["verdict"] == line.removeprefix("Verdict: ")
    assert set(found["parts"]) == {"val", "test"}
    test = found["parts"]["test"]
    assert test["n"] == 30
    assert set(test["baselines"]) == {"mean", "composition", "one_hot", "neighbour"}
    # the label is linear in the composition
    assert test["baselines"]["composition"]["metrics"]["spearman"]["value"] > 0.95
    assert {name: group["n"] for name, group in test["groups"]["assay"].items()} == {
        "x": 15, "y": 15,
    }  # fmt: skip
    assert found["random_weights"] is True


def test_evaluate_compares_with_the_training_set(tmp_path: Path) -> None:
    data = SequenceDataset.from_csv(table(tmp_path / "t.csv"))
    train, test = data.subset(range(60)), data.subset(range(60, 90))
    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    model.fit(train, strategy="head_only", epochs=1)
    scores = model.evaluate(test, baselines=True)
    assert scores.verdict.startswith("Spearman ")
    assert " on 30 test rows (random backbone weights); " in scores.verdict
    assert scores["baseline/composition/spearman"] > 0.95
    labels = [s.target for s in test]
    mean = np.mean([s.target for s in train])
    error = np.sqrt(np.mean([(y - mean) ** 2 for y in labels]))
    assert scores["baseline/mean/rmse"] == pytest.approx(error)
    assert model.evaluate(test).verdict == ""
    model.save(tmp_path / "saved")
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "saved")
    with pytest.raises(ConfigError, match="was not trained in this process"):
        loaded.evaluate(test, baselines=True)
    assert loaded.evaluate(test, baselines=train)["baseline/mean/rmse"] == pytest.approx(error)
