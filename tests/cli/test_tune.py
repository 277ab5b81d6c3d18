"""``molfun tune`` as a user meets it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
import yaml
from click.testing import Result

pytest.importorskip("optuna", reason="pip install 'molfun[tune]'")

Command = Callable[..., Result]
BASE = {
    "backbone": "esm2_tiny", "data": "data.csv", "split": "column", "device": "cpu",
    "epochs": 3, "monitor": "val/rmse", "strategy": "head_only", "batch_size": 4,
}  # fmt: skip
SPACE = "lr: {low: 1e-4, high: 1e-1, log: true}\nbatch_size: [2, 4]\n"
SEQUENCES = [f"MK{a}{b}LAW" for a in "ACDEF" for b in "LKIVM"]


def write_base(**changes: object) -> None:
    Path("base.yaml").write_text(yaml.safe_dump({**BASE, **changes}))


def write_table(test: float = 1.0) -> None:
    """25 rows; `test` changes the labels of the test rows."""
    parts = ("train", "train", "train", "valid", "test")
    rows = [
        f"{s},{(i % 7) * (test if i % 5 == 4 else 1.0)},{parts[i % 5]}"
        for i, s in enumerate(SEQUENCES)
    ]
    Path("data.csv").write_text("\n".join(["sequence,target,split", *rows, ""]))


@pytest.fixture
def tune(molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Search settings of a tiny ESM-2 on a table: ``tune("--trials", 3)``."""
    monkeypatch.chdir(tmp_path)
    write_table()
    write_base()
    Path("space.yaml").write_text(SPACE)
    return lambda *arguments: molfun(
        "tune", "--config", "base.yaml", "--space", "space.yaml", "--output", "study",
        "--no-report", *arguments,
    )  # fmt: skip


def trials(folder: str = "study") -> list[dict[str, str]]:
    with Path(folder, "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"]
    return rows


def history(folder: str) -> list[dict[str, str]]:
    with Path(folder, "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_best_settings_train_as_they_stand(tune: Command, molfun: Command) -> None:
    done = tune("--trials", 4)
    assert done.exit_code == 0, done.output
    assert "5 test rows are held out: no trial sees them." in done.output
    assert "Study: 4 trials in study, by val/rmse" in done.output
    assert "measure it on test rows, which no trial saw." in done.output
    best = min(trials(), key=lambda row: float(row["val/rmse"]))
    assert f"Best: trial {best['trial']}, val/rmse=" in done.output
    run = molfun("fine-tune", "--config", "study/best.yaml", "--no-report")
    assert run.exit_code == 0, run.output
    # the same model as that of the trial, and its frozen trunk is in the cache of the study
    assert min(float(row["val/rmse"]) for row in history("study/best")) == float(best["val/rmse"])
    assert "ran 0 times instead of" in run.output
    assert "Test: rmse=" in run.output


def test_a_study_goes_on_with_the_settings_of_its_folder(tune: Command, molfun: Command) -> None:
    assert tune("--trials", 2, "--sampler", "random", "epochs=1").exit_code == 0
    first = trials()
    done = molfun("tune", "--output", "study", "--trials", 3, "--no-report")
    assert done.exit_code == 0, done.output
    assert "Goes on after 2 trials." in done.output
    assert trials()[:2] == first
    assert len(trials()) == 3
    again = molfun("tune", "--output", "study", "--no-report")
    assert "Study: 3 trials in study" in again.output  # as many as were asked for before


def test_test_rows_influence_nothing(tune: Command) -> None:
    assert tune("--trials", 3).exit_code == 0
    write_table(test=100.0)
    done = tune("--trials", 3, "--output", "other")
    assert done.exit_code == 0, done.output
    assert trials("other") == trials()
    for folder, scale in (("folds", 1.0), ("folds_other", -7.0)):
        write_table(test=scale)
        done = tune("--trials", 3, "--folds", 3, "--output", folder)
        assert done.exit_code == 0, done.output
        assert "Data: 20 rows in 3 folds, each validated by a model of the others." in done.output
        assert "5 test rows are held out: no trial sees them." in done.output
    assert trials("folds") == trials("folds_other")
    assert {row["epochs_or_folds"] for row in trials("folds")} == {"3"}
    assert trials("folds")[0]["val/rmse"] != trials()[0]["val/rmse"]


@pytest.mark.slow
def test_a_killed_search_has_the_same_trials(tune: Command, tmp_path: Path) -> None:
    assert tune("--trials", 7, "--output", "whole").exit_code == 0
    command = (
        "-m", "molfun.cli", "tune", "--config", "base.yaml", "--space", "space.yaml",
        "--output", "study", "--no-report", "--trials", 7,
    )  # fmt: skip
    for n in (1, 4):
        process = warm.Process(*command, cwd=tmp_path, output=tmp_path)
        deadline = time.monotonic() + 240
        while not Path("study/trials.csv").is_file() or len(trials()) < n:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(trials()) < 7
    assert tune("--trials", 7).exit_code == 0
    assert trials() == trials("whole")


@pytest.mark.slow
def test_several_workers_share_a_study(tune: Command) -> None:
    done = tune("--trials", 6, "--workers", 2)
    assert done.exit_code == 0, done.output
    assert [row["trial"] for row in trials()] == list("012345")
    assert {row["state"] for row in trials()} <= {"complete", "pruned"}
    assert "Trials: " in done.output


@pytest.mark.slow
def test_workers_end_with_the_command(tune: Command) -> None:
    flags = ("--config", "base.yaml", "--space", "space.yaml", "--output", "study", "--no-report")
    command = [sys.executable, "-m", "molfun", "tune", *flags, "--trials", "400", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        deadline = time.monotonic() + 120
        while not Path("study/trials.csv").is_file() or len(trials()) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = [int(child) for child in children.read_text().split()]
        assert len(workers) == 2
        parent.kill()
        # they hold the pipe: it ends with the last of them
        assert parent.stdout is not None
        assert b"The process that started this one ended" in parent.stdout.read()


def test_a_trial_that_fails_is_told_and_the_others_go_on(tune: Command) -> None:
    Path("space.yaml").write_text("lr: [0.01]\nhead_config.hidden_dim: [8, 16, -3]\n")
    done = tune("--trials", 5, "--sampler", "random", "head=affinity")
    assert done.exit_code == 0, done.output
    failed = [row for row in trials() if row["state"] == "failed"]
    assert 0 < len(failed) < 5
    for row in failed:
        assert row["head_config.hidden_dim"] == "-3"
        assert f"trial {int(row['trial']):3d}  failed: {row['error']}" in done.output
    Path("space.yaml").write_text("lr: [0.01]\nhead_config.hidden_dim: [-3]\n")
    done = tune("--trials", 2, "--output", "all", "head=affinity")
    assert done.exit_code == 1
    assert "Error: No trial succeeded: 2 of 2 failed, first trial 0: ConfigError: " in done.output


def test_a_metric_that_is_undefined_fails_the_trial(tune: Command) -> None:
    rows = [f"{s},{i % 7},{'valid' if i == 3 else 'train'}" for i, s in enumerate(SEQUENCES)]
    Path("data.csv").write_text("\n".join(["sequence,target,split", *rows, ""]))
    done = tune("--trials", 2, "monitor=val/spearman")  # of one row
    assert done.exit_code == 1
    assert {row["error"] for row in trials()} == {"val/spearman is nan in every epoch"}
    assert "No trial succeeded: 2 of 2 failed" in done.output


def test_settings_of_a_strategy_are_drawn_with_it(tune: Command) -> None:
    Path("space.yaml").write_text(
        "strategy: [head_only, partial]\nunfreeze_blocks: [1, 2]\n"
        "lr: {low: 1.0e-3, high: 1.0e-2, log: true}\n"
    )
    assert tune("--trials", 6, "epochs=1", "--sampler", "random").exit_code == 0
    for row in trials():
        assert (row["strategy"] == "partial") == (row["unfreeze_blocks"] in ("1", "2"))
    assert {row["strategy"] for row in trials()} == {"head_only", "partial"}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("", "space.yaml must hold `name: value` lines; found nothing instead."),
        ("lrr: [1]", "space.yaml: lrr: unknown setting. Did you mean 'lr'?"),
        ("lr: {low: 1, high: 0.1}", "space.yaml: lr: low (1.0) is above high (0.1). Exchange"),
        ("batch_size: [4, x]", "space.yaml: batch_size: Input should be a valid integer"),
        ("batch_size: {low: 0, high: 4}", "batch_size: Input should be greater than or equal to 1"),
        ("strategy: [lora, fulll]", "Unknown strategy 'fulll'"),
        ("strategy_config.rnak: [1]", "rnak"),
        ("strategy_config: [1]", "space.yaml: strategy_config is drawn as strategy_config.NAME."),
        ("lr.x: [1]", "space.yaml: lr.x is drawn as lr."),
        ("seed: [1, 2]", "space.yaml: seed is the same in all trials, or their values could not"),
        ("lora_rank: [4, 8]", "lora_rank is for lora; the strategy is head_only."),
    ],
)
def test_a_wrong_space_is_refused_before_any_trial(tune: Command, space: str, said: str) -> None:
    Path("space.yaml").write_text(space + "\n")
    done = tune()
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert not Path("study").exists()


def test_other_bad_starts_are_refused(tune: Command, molfun: Command) -> None:
    def refused(*arguments: object, run: Command = tune) -> str:
        done = run(*arguments)
        assert done.exit_code == 1
        return " ".join(done.output.split())

    assert "Cannot read nowhere.yaml: No such file" in refused("--space", "nowhere.yaml")
    assert "empty holds no study yet: give --config" in refused(
        "tune", "--output", "empty", run=molfun
    )
    Path("space.yaml").write_text("loss: [mse, mae]\n")
    assert "loss changes what val/loss means" in refused("monitor=val/loss")
    Path("space.yaml").write_text(SPACE)
    assert "monitor 'val/rmes'" in refused("monitor=val/rmes")
    assert "A search does not use logger: leave it out." in refused("logger=csv")
    assert "Folds have no order in time" in refused("--folds", 2, "split=temporal")
    assert not Path("study").exists()
    assert tune("--trials", 1).exit_code == 0
    said = refused("--trials", 2, "epochs=2")
    assert "study holds a study of another base (base.epochs was 3 and is 2). Repeat its" in said
    Path("space.yaml").write_text("batch_size: [2, 4]\n")
    assert "study holds a study of another space (space.lr.low was 0.0001 and is" in refused()
    assert "study has its settings already: leave out epochs=2" in refused(
        "tune", "--output", "study", "epochs=2", run=molfun
    )


def test_the_report_tells_what_mattered(tune: Command, molfun: Command) -> None:
    from molfun.report.tuned import is_study

    Path("space.yaml").write_text(
        f"strategy: [head_only, partial]\nunfreeze_blocks: [1, 2]\n{SPACE}"
    )
    done = tune("--trials", 8, "--report", "epochs=2")
    assert done.exit_code == 0, done.output
    assert "Report: study/report.html" in done.output
    text = Path("study/report.html").read_text()
    titles = ("Best settings", "Course", "What mattered", "Slices", "Trials")
    assert all(f">{title}</h2>" in text for title in titles)
    assert "no trial saw a test row" in text
    assert "What each setting explains among all complete trials" in text
    assert "mathdefault" not in text  # formulas of ticks, which this page does not show
    for row in trials():
        assert f'<th scope="row">{row["trial"]}</th>' in text
    Path("study/report.html").unlink()
    assert molfun("report", "study").exit_code == 0
    assert Path("study/report.html").read_text() == text
    assert is_study("study")
    assert not is_study("nowhere")
    assert json.loads(Path("study/study.json").read_text())["base"]["monitor"] == "val/rmse"
