"""Runs that go on: from another folder, and from the checkpoint of a finished one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from molfun import MolfunStructureModel
from molfun.cli.places import as_started

Command = Callable[..., Result]
TRAIN = ("fine-tune", "--backbone", "esm2_tiny", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"MKVA{'ACDEFGHIKLMNPQRSTVWY'[i]},{i % 7}" for i in range(20))
    (tmp_path / "t.csv").write_text(f"sequence,target\n{rows}\n")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


def test_relative_paths_of_a_run_are_those_of_the_folder_it_was_started_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "runs/a").mkdir(parents=True)
    values = {"data": "t.csv", "val": ["t.csv", "gone.csv"], "weights": "/abs/w.pt", "epochs": 3}
    stored = {**values, "started_in": "../.."}
    assert as_started(stored, folder / "runs/a") == values
    monkeypatch.chdir(folder / "elsewhere")
    moved = {"data": "../t.csv", "val": ["../t.csv", "gone.csv"], "weights": "/abs/w.pt"}
    assert as_started(stored, folder / "runs/a") == {**moved, "epochs": 3}
    assert as_started(values, folder / "runs/a") == values  # of a version without the note


def test_a_run_is_resumed_from_another_folder(
    molfun: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = molfun(*TRAIN, "--data", "t.csv", "--epochs", 1, "--output", "runs/a")
    assert first.exit_code == 0, first.output
    monkeypatch.chdir(folder / "elsewhere")
    again = molfun("fine-tune", "--resume", "--output", "../runs/a")
    assert again.exit_code == 0, again.output
    assert "this run is complete; to train longer, start another with --init-from" in again.output
    monkeypatch.chdir(folder)  # and from where it began, once more
    assert molfun("fine-tune", "--resume", "--output", "runs/a").exit_code == 0


@pytest.mark.parametrize("strategy", ["head_only", "lora", "full"])
def test_a_new_run_goes_on_from_a_checkpoint(molfun: Command, folder: Path, strategy: str) -> None:
    common = ("--data", "t.csv", "--strategy", strategy, "--seed", 3)
    assert molfun(*TRAIN, *common, "--epochs", 2, "--output", "a").exit_code == 0
    before = MolfunStructureModel.from_checkpoint("a/checkpoint", device="cpu")
    second = molfun(
        "fine-tune", "--init-from", "a/checkpoint", *common, "--epochs", 1, "--lr", 1e-12,
        "--output", "b",
    )  # fmt: skip
    assert second.exit_code == 0, second.output
    assert "Starts from: a/checkpoint (trained weights)" in second.output
    after = MolfunStructureModel.from_checkpoint("b/checkpoint", device="cpu")
    sequences = ["MKVAC", "MKVAW"]
    found = after.predict(sequences)["prediction"].tolist()
    assert found == pytest.approx(before.predict(sequences)["prediction"].tolist(), abs=1e-5)
    assert yaml.safe_load((folder / "b/config.yaml").read_text())["backbone"] == "esm2"


def test_names_of_columns_come_with_the_checkpoint(molfun: Command, folder: Path) -> None:
    text = (folder / "t.csv").read_text().replace("sequence,target", "seq,score")
    (folder / "mine.csv").write_text(text)
    names = ("--sequence-column", "seq", "--target-column", "score")
    train = (*TRAIN, "--data", "mine.csv", *names, "--epochs", 1, "--output", "a")
    assert molfun(*train).exit_code == 0
    start = ("fine-tune", "--init-from", "a/checkpoint", "--epochs", 1)
    again = molfun(*start, "--data", "mine.csv", "--output", "b")
    assert again.exit_code == 0, again.output
    other = (*names[:3], "target", "--sequence-column", "sequence")
    assert molfun(*start, "--data", "t.csv", *other, "--output", "c").exit_code == 0


def test_a_checkpoint_of_another_model_is_refused(molfun: Command, folder: Path) -> None:
    train = (*TRAIN, "--data", "t.csv", "--epochs", 1, "--output", "a")
    assert molfun(*train).exit_code == 0
    start = ("fine-tune", "--init-from", "a/checkpoint", "--data", "t.csv", "--output", "b")
    for flags, text in [
        (("--head", "linear"), "has the head 'mlp', and --head asks for 'linear'"),
        (("--preset", "x"), "init_from brings its own model: leave out preset"),
        (("--task", "binary"), "has the task 'regression', and --task asks for 'binary'"),
    ]:
        result = molfun(*start, *flags)
        assert result.exit_code == 1
        assert text in result.output
    assert "No checkpoint at nowhere" in molfun(*start[:2], "nowhere", *start[3:]).output


def test_other_settings_on_resume_are_told_how_to_go_on(molfun: Command, folder: Path) -> None:
    assert molfun(*TRAIN, "--data", "t.csv", "--epochs", 1, "--output", "a").exit_code == 0
    result = molfun("fine-tune", "--resume", "--epochs", 4, "--output", "a")
    assert result.exit_code == 1
    assert "epochs: 1 in the run, 4 now" in result.output
    assert "--init-from a/checkpoint with another --output" in result.output


@pytest.mark.parametrize(("given", "stored"), [("bf16", "bf16-mixed"), ("fp32", "32-true")])
def test_short_names_of_precisions_are_taken(
    molfun: Command, folder: Path, given: str, stored: str
) -> None:
    result = molfun(*TRAIN, "--data", "t.csv", "--epochs", 1, "--precision", given, "--output", "a")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((folder / "a/config.yaml").read_text())["precision"] == stored
    unknown = molfun(*TRAIN, "--data", "t.csv", "--precision", "bf61", "--output", "b")
    assert "Unknown precision 'bf61'; known: " in unknown.output
    assert "Did you mean 'bf16'?" in unknown.output
