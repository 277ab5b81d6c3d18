"""A checkpoint with several heads on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from molfun.data import NamedTargets, SequenceDataset
from molfun.models.structure import MolfunStructureModel

Command = Callable[..., Result]
COLUMNS = ["id", "sequence", "ddg", "state", "year"]
ROWS = [["a", "MKVA", 1.0, "open", 2011], ["b", "MKVV", 2.5, "closed", 2012],
        ["c", "MKVD", 0.5, "open", 2013], ["d", "AKVD", -1.0, "closed", 2014]]  # fmt: skip


def parts(table: Path) -> NamedTargets:
    read: dict[str, Any] = {"id_column": "id"}
    ddg = SequenceDataset.from_csv(table, target_column="ddg", **read)
    state = SequenceDataset.from_csv(table, target_column="state", labels="class", **read)
    return NamedTargets({"ddg": ddg, "folding": state})


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of two columns of ``two.csv``, in the current folder."""
    monkeypatch.chdir(tmp_path)
    with Path("two.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *ROWS])
    binary = {"task": "binary", "task_config": {"classes": ["closed", "open"]}}
    heads = {"ddg": {"task": "regression"}, "folding": binary}
    model = MolfunStructureModel("esm2_tiny", heads=heads, device="cpu")
    model.fit(parts(Path("two.csv")), strategy="head_only", epochs=1)
    model.save("model")
    return tmp_path / "model"


def test_predict_writes_columns_of_each_head(molfun: Command, checkpoint: Path) -> None:
    result = molfun("predict", checkpoint, "--data", "two.csv", "--output", "out.csv")
    assert result.exit_code == 0, result.output
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    predicted = MolfunStructureModel.from_checkpoint(checkpoint, device="cpu").predict(
        parts(Path("two.csv"))
    )
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert [float(row["ddg_prediction"]) for row in rows] == pytest.approx(
        predicted["ddg"]["prediction"].tolist()
    )
    assert [row["folding_prediction"] for row in rows] == list(predicted["folding"]["prediction"])
    assert {row["state"] for row in rows} == {"open", "closed"}, "other columns stay"
    assert [float(row["ddg"]) for row in rows] == [row[2] for row in ROWS]


def test_evaluate_compares_each_head_with_its_column(molfun: Command, checkpoint: Path) -> None:
    result = molfun("evaluate", checkpoint, "--data", "two.csv", "--output", "metrics.json")
    assert result.exit_code == 0, result.output
    found = json.loads(Path("metrics.json").read_text())
    model = MolfunStructureModel.from_checkpoint(checkpoint, device="cpu")
    expected = model.evaluate(parts(Path("two.csv")))
    assert found["ddg/rmse"] == pytest.approx(expected["ddg/rmse"])
    assert found["folding/accuracy"] == expected["folding/accuracy"]
    result = molfun("evaluate", checkpoint, "--data", "two.csv", "--target-column", "ddg")
    assert result.exit_code == 1
    assert "--target-column: the model has the heads ddg, folding" in result.output


def test_one_label_for_several_heads_is_refused_in_a_line(
    molfun: Command, checkpoint: Path
) -> None:
    result = molfun(
        "fine-tune", "--init-from", checkpoint, "--data", "two.csv", "--target-column", "ddg",
        "--epochs", 1, "--output", "again",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "The model has several heads, so a label maps their names to labels" in result.output
    assert "Traceback" not in result.output
