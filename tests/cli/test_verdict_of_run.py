"""The end of a run compares it with baselines, on the command line and in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from molfun import MolfunStructureModel, SequenceDataset
from molfun.cli.judging import judge_run
from molfun.errors import ConfigError
from molfun.models.judging import Measured, as_samples_say, groups_of
from molfun.runs.folder import RunFolder
from molfun.sample import Sample


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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--split", "group", "--group-column", "assay"],
            "--test has no column 'assay', which --split group keeps whole: intervals of its",
        ),
        (
            ["--metrics-by", "assai"],
            "--metrics-by for --data: Unknown column 'assai'; known: assay, split. Did you mean "
            "'assay'?",
        ),
        (
            ["--metrics-by", "assay"],
            "--metrics-by for --test: Unknown column 'assay'; known: none.",
        ),
    ],
)
def test_columns_of_the_verdict_are_checked_before_training(
    tmp_path: Path, molfun: Callable[..., Result], flags: list[str], said: str
) -> None:
    (tmp_path / "test.csv").write_text("sequence,target\nACDEAC,2\n")
    done = molfun(
        "fine-tune", "--backbone", "esm2_tiny", "--data", table(tmp_path / "t.csv"), "--test",
        tmp_path / "test.csv", "--output", tmp_path / "run", *flags,
    )  # fmt: skip
    assert done.exit_code != 0
    assert said in done.output
    assert "Strategy" not in done.output


def test_a_run_whose_verdict_fails_is_a_good_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing: Any = None
    judge_run(RunFolder(tmp_path), nothing, nothing, nothing, {"val": nothing})
    assert "The verdict could not be written: " in caplog.text
    judge_run(RunFolder(tmp_path), nothing, nothing, nothing, {})
    assert "No verdict: there is neither a validation nor a test part." in capsys.readouterr().out


def test_blank_cells_are_groups_of_their_own() -> None:
    cells: Any = pd.DataFrame({"family": ["a", None, "b", " ", "a", float("nan")]})
    dataset: Any = SimpleNamespace(metadata=cells)
    groups = groups_of(dataset, split="group", column="family")
    assert groups is not None
    assert groups[0] == groups[4] == "a"
    assert len(set(groups)) == 5


def test_subjects_of_series_are_groups_in_python_too() -> None:
    values = np.zeros((3, 1), np.float32)
    samples = [
        Sample(id=str(i), features={"timeseries": values}, metadata={"group": f"s{i // 2}"})
        for i in range(6)
    ]
    found = as_samples_say(Measured(samples, (), {}), samples)
    assert found.groups == ["s0", "s0", "s1", "s1", "s2", "s2"]
    texts = [Sample(id=str(i), sequence="MKV", metadata={"group": "x"}) for i in range(6)]
    assert as_samples_say(Measured(texts, (), {}), texts).groups is None


def test_evaluate_compares_with_the_training_set(tmp_path: Path) -> None:
    data = SequenceDataset.from_csv(table(tmp_path / "t.csv", 120))
    train, val, test = (data.subset(range(*at)) for at in ((60,), (60, 90), (90, 120)))
    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    model.fit(train, val, strategy="head_only", epochs=1)
    scores = model.evaluate(test, baselines=True)
    assert scores.verdict.startswith("Spearman ")
    assert " on 30 test rows (random backbone weights); " in scores.verdict
    assert scores["baseline/composition/spearman"] > 0.95
    by_assay = scores.verdicts[""].parts["test"].groups["assay"]
    assert {name: group.n for name, group in by_assay.items()} == {"x": 15, "y": 15}
    labels = [s.target for s in test]
    mean = np.mean([s.target for s in train])
    error = np.sqrt(np.mean([(y - mean) ** 2 for y in labels]))
    assert scores["baseline/mean/rmse"] == pytest.approx(error)
    assert model.evaluate(test).verdict == ""
    known = model.evaluate(train, baselines=True).verdict
    assert " on 60 rows (random" in known
    assert known.endswith(
        "60 of 60 rows trained the model, so this is no test of new ones and no baseline is fitted."
    )
    chose = model.evaluate(val, baselines=True).verdict
    assert " on 30 rows (random" in chose
    assert chose.endswith("30 of 30 rows also chose the epoch.")
    model.save(tmp_path / "saved")
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "saved")
    with pytest.raises(ConfigError, match="was not trained in this process"):
        loaded.evaluate(test, baselines=True)
    assert loaded.evaluate(test, baselines=train)["baseline/mean/rmse"] == pytest.approx(error)
