"""Reports of pre-training runs: reconstructions of series, perplexity of sequences."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import FAMILIES
from test_report import Page, read
from typer.testing import CliRunner

from molfun.cli.main import app
from molfun.report.finished import FinishedRun
from molfun.report.sections import pretraining, reconstructions

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def pretrain(*arguments: str) -> Any:
    fixed = ["--epochs", "2", "--device", "cpu", "--output", "run"]
    done = CliRunner().invoke(app, ["pretrain", *arguments, *fixed])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


@pytest.fixture
def folder(tmp_path: Path, reports: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_series_are_shown_as_the_model_fills_them_in(folder: Path) -> None:
    FAMILIES["series"](folder)
    common = ["--backbone", "timeseries", "--preset", "linear", "--data", "data.csv",
              "--feature-columns", "x,y", "--val-frac", "0.3"]  # fmt: skip
    assert "Report: run/report.html" in pretrain(*common).output
    with (folder / "run/reconstructions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["feature"] for row in rows} == {"x", "y"}
    assert len({row["id"] for row in rows}) == 4
    assert 0.05 < np.mean([row["hidden"] == "1" for row in rows]) < 0.3
    found = read(folder / "run")
    assert {"Results", "Reconstructed series", "Data", "Learning curves"} <= set(found.headings)
    assert "of the variance of hidden values is explained, on " in found.text
    assert "straight lines between the seen values" in found.text
    assert "No baselines and intervals were computed" not in found.text
    assert "molfun pretrain --config run/config.yaml" in found.text
    # the run that replaces it predicts no values, and keeps the weights of its last epoch
    pretrain(*common, "--objective", "jepa", "--overwrite")
    assert not (folder / "run/reconstructions.csv").exists()
    found = read(folder / "run")
    assert "Reconstructed series" not in found.headings
    assert "Nothing ranks the epochs: the weights of the last one, 2, are kept." in found.text


def test_perplexity_is_next_to_that_of_frequencies(folder: Path) -> None:
    texts = [LETTERS[i:] + LETTERS[:i] for i in range(16)]
    (folder / "data.csv").write_text("\n".join(["sequence", *texts]) + "\n")
    common = ["--backbone", "esm2", "--preset", "esm2_t1_d16_h2", "--sequences", "data.csv",
              "--val-frac", "0.3"]  # fmt: skip
    done = pretrain(*common, "--no-report")
    assert "Report" not in done.output
    assert not (folder / "run/report.html").exists()
    assert CliRunner().invoke(app, ["report", "run"]).exit_code == 0
    # every residue is as frequent as any other
    assert "guessing by their frequencies: 20." in read(folder / "run").text
    guess = pretraining.guessed(FinishedRun("run"))
    assert guess == pytest.approx({"val/perplexity": 20.0, "val/accuracy": 0.05})


def test_frequencies_of_training_guess_validation(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("epoch,train_loss,val/perplexity\n1,2.5,9.0\n")
    (tmp_path / "config.yaml").write_text("objective: masked_lm\n")
    letters = {"train": {"A": 79, "W": 1, "X": 50}, "val": {"A": 1, "W": 1}}
    (tmp_path / "provenance.json").write_text(json.dumps({"data": {"letters": letters}}))
    guess = pretraining.guessed(FinishedRun(tmp_path))
    # of 80 known residues and one more of each kind
    expected = math.exp(-(math.log(80 / 100) + math.log(2 / 100)) / 2)
    assert guess == pytest.approx({"val/perplexity": expected, "val/accuracy": 0.5})


def test_a_line_is_drawn_between_seen_values(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("epoch,train_loss\n1,2.5\n")
    (tmp_path / "config.yaml").write_text("objective: mae\n")
    rows = ["0,0,", "1,10,1", "2,2,", "3,,", "4,4,"]  # 10 is hidden, the line says 1
    table = [f"a<b>,{r.split(',')[0]},x,{r.split(',')[1]},{r.split(',')[2] or 0},10" for r in rows]
    (tmp_path / "reconstructions.csv").write_text(
        "\n".join(["id,step,feature,value,hidden,predicted", *table]) + "\n"
    )
    made = reconstructions.section(FinishedRun(tmp_path))
    assert made is not None
    scale = np.std([0, 2, 4])
    assert f"values: 0 standard deviations of the series; straight lines between the seen values: {9 / scale:.3g}." in made.blocks[0].text  # fmt: skip  # noqa: E501
    from molfun.report import write_report

    found = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "a<b>" in found.text
