"""What the command line shows: numbers, progress, help, and nothing that controls a terminal."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from click.testing import Result

from molfun.cli import console
from molfun.cli.console import ConsoleProgress, duration, metric_line, say, set_up_logging
from molfun.cli.main import app
from molfun.cli.tables import write_predictions
from molfun.data import SequenceDataset
from molfun.data.cells import escape, read_cells, unescape
from molfun.errors import DataError, RunError, printable
from molfun.training.callbacks import CSVLog, FitPlan
from molfun.training.history import History

Command = Callable[..., Result]
EVIL = "1abc\x1b[2J\x9b31m\u202e\u2066\u200b\x00"


def commands() -> Iterator[tuple[str, click.Command]]:
    group: Any = typer.main.get_command(app)
    yield from group.commands.items()


# --- help ----------------------------------------------------------------------------------------


def test_no_help_text_has_lost_its_default(
    molfun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name, command in commands():
        everything = "--help-all" if any(p.name == "help_all" for p in command.params) else "--help"
        shown = " ".join(molfun(name, everything).output.split())
        for option in command.params:
            text = getattr(option, "help", None)
            if text and "[" in text:
                plain = text.replace("\\[", "[")
                assert plain in shown, f"molfun {name} {option.name}: {plain}"


def test_examples_fit_a_terminal_of_80_columns() -> None:
    for name, command in commands():
        lines = (command.help or "").splitlines()
        long = [line for line in lines if line.strip().startswith("molfun ") and len(line) > 78]
        assert not long, f"molfun {name}: {long}"


# --- progress ------------------------------------------------------------------------------------


def test_progress_is_that_of_the_whole_run_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = ConsoleProgress()
    plan = FitPlan(epochs=4, batches_per_epoch=10, steps_per_epoch=10, total_steps=40)
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "lr": 1e-3}
    progress.on_fit_start(plan, History([row]))
    clock[0] += 600  # five batches of epoch 2 in ten minutes: 25 of 40 are left
    progress.on_batch_end(2, 5, 0.5)
    said = capsys.readouterr()
    assert "resumed after epoch 1" in said.out
    assert said.err == "  epoch 2/4: batch 5/10  loss=0.5  50 min left\n"


def test_a_bar_counts_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = ConsoleProgress()
    plan = FitPlan(epochs=3, batches_per_epoch=10, steps_per_epoch=10, total_steps=30)
    progress.on_fit_start(plan, History())
    progress.on_batch_end(1, 10, 0.5)
    progress.on_epoch_end({"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "lr": 1e-3}, True)
    progress.on_batch_end(2, 5, 0.5)
    task = progress._bar.tasks[0]
    assert (task.completed, task.total) == (15, 30)
    progress.close()


def test_a_finished_run_says_how_to_train_longer(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "lr": 1e-3}
    plan = FitPlan(epochs=1, batches_per_epoch=1, steps_per_epoch=1, total_steps=1)
    ConsoleProgress().on_fit_start(plan, History([row]))
    assert "to train longer, start another with --init-from" in capsys.readouterr().out


def test_numbers_have_three_significant_digits() -> None:
    metrics = {"rmse": 1.23456, "mae": 4665.4, "r2": -0.0712345, "auroc": float("nan")}
    assert metric_line(metrics) == "rmse=1.23  mae=4665  r2=-0.0712  auroc=undefined"
    assert duration(89) == "89 s"


# --- the log -------------------------------------------------------------------------------------


def test_the_log_of_a_run_has_details_only_when_asked(tmp_path: Path, molfun: Command) -> None:
    for debug in (False, True):
        path = tmp_path / f"{debug}.log"
        set_up_logging(str(path), debug=debug)
        logging.getLogger("molfun.data").debug("a detail")
        logging.getLogger("molfun.data").info("a note")
        assert ("a detail" in path.read_text()) == debug
        assert path.read_text().count("a note") == 1


# --- control characters --------------------------------------------------------------------------


def test_nothing_reaches_a_terminal_or_log_that_controls_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], molfun: Command
) -> None:
    set_up_logging(str(tmp_path / "run.log"), debug=False)
    say(f"id {EVIL}")
    logging.getLogger("molfun.data").warning("id %s", EVIL)
    logging.getLogger("another.package").warning("id %s", EVIL)
    with pytest.raises(SystemExit):
        console._fail(f"id {EVIL}", debug=False)
    said = capsys.readouterr()
    texts = [said.out, said.err, (tmp_path / "run.log").read_text(), str(DataError(f"id {EVIL}"))]
    for text in texts:
        assert r"1abc\x1b[2J\x9b31m\u202e\u2066\u200b\x00" in text
        assert text == printable(text)


def test_plain_text_of_other_alphabets_stays() -> None:
    assert printable("Ångström β-sheet 蛋白\n\tline") == "Ångström β-sheet 蛋白\n\tline"
    assert printable("\udcff") == r"\udcff"  # a byte of a file name that is no text


# --- spreadsheets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["=cmd|' /C calc'!A0", "+1+2", "-1+2", "@SUM(A1)", "\t=1", "\uff1d1", "'=x", "''=x", "'-5"],
)
def test_what_a_spreadsheet_would_run_is_escaped_and_read_back(text: str) -> None:
    assert escape(text) == f"'{text}"
    assert unescape(escape(text)) == text


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-5", "-EEH", "H--E", "5'-UTR", "1a4w", ""])
def test_numbers_and_labels_of_residues_stay(text: str) -> None:
    assert escape(text) == text == unescape(text)


def test_every_text_of_a_table_of_predictions_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("sequence,=cmd,note\nMKV,-1+2,@x\nACD,b,y\n")
    data = SequenceDataset.from_csv(path, target_column="=cmd", labels="class")
    result = {"ids": data.ids, "prediction": ["-1+2", "b"]}
    write_predictions(tmp_path / "p.csv", result, data)

    with (tmp_path / "p.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert {"'=cmd", "'-1+2", "'@x"} <= set(cells)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    again = read_cells(tmp_path / "p.csv", "sequence")
    assert "=cmd" in again.header
    assert again.column("=cmd") == ["-1+2", "b"]


def test_columns_of_a_history_are_escaped(tmp_path: Path) -> None:
    log = CSVLog(tmp_path / "h.csv")
    log.on_fit_start(FitPlan(1, 1, 1, 1), History())
    log.on_epoch_end({"epoch": 1, "=f1": 0.5}, True)
    assert (tmp_path / "h.csv").read_text().splitlines() == ["epoch,'=f1", "1,0.5"]


def test_a_history_does_not_take_the_place_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("pdb_id,affinity\n1abc,5\n")
    with pytest.raises(RunError, match="is not a history of a fit, and the fit would replace it"):
        CSVLog(path).on_fit_start(FitPlan(1, 1, 1, 1), History())
    assert path.read_text().startswith("pdb_id")
