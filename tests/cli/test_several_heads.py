"""A checkpoint with several heads on the command line."""

from __future__ import annotations

import csv
import io
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


SETTINGS = """
backbone: esm2_tiny
data: two.csv
val: two.csv
id_column: id
test_frac: 0
epochs: 1
device: cpu
output: run
heads:
  ddg: {task: regression, loss: huber, task_config: {standardize: false}}
  folding: {task: binary, target_column: state, weight: 0.5, positive_class: open}
"""
BLANKS = [*ROWS, ["e", "AKVDD", "", "closed", 2014], ["f", "AKVDE", 0.5, "", 2014],
          ["g", "AKVEE", "", "", 2015]]  # fmt: skip


@pytest.fixture
def two_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``heads.yaml`` for ``two.csv``, which has blank labels, in the current folder."""
    monkeypatch.chdir(tmp_path)
    with Path("two.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *BLANKS])
    Path("heads.yaml").write_text(SETTINGS)
    return tmp_path


def test_several_heads_learn_from_columns_with_blanks(molfun: Command, two_heads: Path) -> None:
    result = molfun("fine-tune", "--config", "heads.yaml", "--strategy", "lora")
    assert result.exit_code == 0, result.stderr
    assert "Classes: closed (negative), open (positive)" in result.stdout
    assert "ddg: 2 of 7 training samples have no label" in result.stderr
    model = MolfunStructureModel.from_checkpoint("run/checkpoint", device="cpu")
    ddg, folding = model.heads
    assert (ddg.name, ddg.weight, folding.name, folding.weight) == ("ddg", 1.0, "folding", 0.5)
    assert ddg.task.config_dict["loss"] == "huber"
    assert ddg.task.config_dict["standardize"] is False
    assert folding.task.config_dict["classes"] == ["closed", "open"]

    with Path("run/predictions_val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ddg"] for row in rows] == ["1.0", "2.5", "0.5", "-1.0", "", "0.5", ""]
    assert [row["state"] for row in rows] == [row[3] for row in BLANKS]
    predicted = molfun("predict", "run/checkpoint", "--data", "two.csv", "--output", "p.csv")
    assert predicted.exit_code == 0, predicted.stderr
    with Path("p.csv").open(newline="") as file:
        again = [float(row["ddg_prediction"]) for row in csv.DictReader(file)]
    assert again == pytest.approx([float(row["ddg_prediction"]) for row in rows], abs=1e-5)
    evaluated = molfun("evaluate", "run/checkpoint", "--data", "two.csv", "--output", "m.json")
    assert evaluated.exit_code == 0, evaluated.stderr
    metrics = json.loads(Path("m.json").read_text())
    labelled = [(p, row[2]) for p, row in zip(again, BLANKS, strict=True) if row[2] != ""]
    rmse = (sum((p - float(y)) ** 2 for p, y in labelled) / len(labelled)) ** 0.5
    assert metrics["ddg/rmse"] == pytest.approx(rmse, rel=1e-4)
    assert "state" not in metrics
    assert "folding/accuracy" in metrics


def test_a_run_of_several_heads_goes_on_from_its_config(molfun: Command, two_heads: Path) -> None:
    arguments = ("fine-tune", "--config", "heads.yaml", "--strategy", "head_only")
    first_run = molfun(*arguments)
    assert first_run.exit_code == 0
    [line] = [x for x in first_run.stdout.splitlines() if x.startswith("  epoch   1")]
    assert "ddg/" in line
    assert "folding/" in line
    result = molfun("fine-tune", "--resume", "--output", "run")
    assert result.exit_code == 0, result.stderr
    assert "resumed after epoch 1" in result.stdout
    again = molfun("fine-tune", "--config", "run/config.yaml", "--output", "b")
    assert again.exit_code == 0, again.stderr
    first, second = (Path(run, "history.csv").read_text() for run in ("run", "b"))
    losses = [
        [row["train_loss"] for row in csv.DictReader(io.StringIO(t))] for t in (first, second)
    ]
    assert losses[0] == losses[1]
    result = molfun(*arguments, "--resume", "heads.ddg.weight=2")
    assert result.exit_code == 1
    assert "was started with other settings" in result.stderr
    result = molfun(*arguments, "--init-from", "run/checkpoint", "--output", "c")
    assert result.exit_code == 1
    assert "init_from brings its own model: leave out heads" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heads.ddg.tsk=regression",), "heads.ddg.tsk: unknown setting. Did you mean 'task'?"),
        (("heads.ddg.weight=-1",), "heads.ddg.weight: Input should be greater than 0 (got -1)"),
        (("heads.ddg.loss=mes",), "Unknown regression loss 'mes'; known: huber, listmle,"),
        (("heads.ddg.task=null",), "heads.ddg: give its head or its task"),
        (("heads.ddg=regression",), "heads.ddg: Input should be a valid dictionary"),
        (("heads.ddg.task=regresion",), "Did you mean 'regression'?"),
        (("heads.ddg.target_column=dgd",), "has no column 'dgd'; found 'id', 'sequence', 'ddg'"),
        (("heads.ids={task: regression, target_column: ddg}",), "'ids' cannot name a head"),
        (("heads.ddg.mask_column=year",), "heads.ddg: mask_column='year' is for labels of residue"),
        (("heads.ddg.target_key=gap",), "heads.ddg: target_key: for structures of atoms"),
        (("--head", "mlp", "--loss", "mae"), "write head, loss into them, or leave heads out"),
        (("--task", "binary", "--target-column", "x"), "write target_column, task into them"),
    ],
)
def test_a_wrong_head_gets_one_line(
    molfun: Command, two_heads: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = molfun("fine-tune", "--config", "heads.yaml", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_bad_label_is_no_blank(molfun: Command, two_heads: Path) -> None:
    Path("two.csv").write_text(Path("two.csv").read_text().replace("2.5", "2x"))
    result = molfun("fine-tune", "--config", "heads.yaml")
    assert result.exit_code == 1
    assert "line 3, column ddg: '2x'" in result.stderr


def test_series_with_several_heads_name_their_features(molfun: Command, two_heads: Path) -> None:
    steps = ["id,time,hr,ddg,state"]
    for i in range(8):
        state = ("open", "closed", "")[i % 3]
        steps += [f"s{i},{t},{i + t},{i if i % 2 else ''},{state}" for t in range(4)]
    Path("series.csv").write_text("\n".join(steps) + "\n")
    command = (
        "fine-tune", "--config", "heads.yaml", "--backbone", "timeseries", "data=series.csv",
        "val=null", "backbone_config.config={name: transformer, d_model: 16, n_heads: 2}",
    )  # fmt: skip
    result = molfun(*command)
    assert result.exit_code == 1
    assert "several heads need a table, and feature_columns" in result.stderr
    result = molfun(*command, "--feature-columns", "hr")
    assert result.exit_code == 0, result.stderr
    assert "Features (1): hr" in result.stdout
    evaluated = molfun("evaluate", "run/checkpoint", "--data", "series.csv")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert "ddg/rmse=" in evaluated.stdout


def test_structures_with_several_heads(train: Command, molfun: Command, project: Path) -> None:
    lines = (project / "data.csv").read_text().splitlines()
    rows = [f"{line},{i if i % 2 else ''}" for i, line in enumerate(lines[1:])]
    (project / "data.csv").write_text("\n".join([f"{lines[0]},kon", *rows]) + "\n")
    heads = "heads={affinity: {head: affinity}, kon: {task: regression, head: mlp}}"
    result = train(heads, "--strategy", "head_only", "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    evaluated = molfun("evaluate", "run/checkpoint", "--data", "data.csv", "--pdbs", "pdbs")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert "affinity/rmse=" in evaluated.stdout
    assert "kon/rmse=" in evaluated.stdout


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
