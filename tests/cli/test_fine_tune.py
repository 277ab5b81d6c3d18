"""``molfun fine-tune`` as a user meets it."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from click.testing import Result
from pdb_text import pdb_chain

from molfun.sample import SampleBatch
from molfun.training import engine

Command = Callable[..., Result]

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
EPOCH_LINE = re.compile(r"  epoch +\d+  train_loss=\S+  val_loss=\S+  lr=\d\.\d\de[-+]\d\d")


@pytest.mark.parametrize("strategy", ["head_only", "lora", "partial", "full"])
def test_every_strategy_trains_predicts_and_is_reproduced(
    train: Command, molfun: Command, project: Path, strategy: str
) -> None:
    extra = ("--unfreeze-blocks", 1) if strategy == "partial" else ()
    result = train("--strategy", strategy, *extra)
    assert result.exit_code == 0, result.output
    assert "Data: 8 train / 1 val / 1 test (random split of data.csv)" in result.output
    assert len(EPOCH_LINE.findall(result.output)) == 2
    run = project / "run"
    names = {path.name for path in run.iterdir()}
    assert {
        "checkpoint", "history.csv", "config.yaml", "run.log", "splits.csv", "predictions_val.csv"
    } <= names  # fmt: skip

    again = molfun(
        "predict", "run/checkpoint", "--data", "run/predictions_test.csv", "--pdbs", "pdbs",
        "--output", "again.csv",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert (project / "again.csv").read_text() == (run / "predictions_test.csv").read_text()

    best = min(_history(run), key=lambda row: float(row["val_loss"]))
    judged = molfun(
        "evaluate", "run/checkpoint", "--data", "run/predictions_val.csv", "--pdbs", "pdbs",
        "--output", "metrics.json",
    )  # fmt: skip
    metrics = yaml.safe_load((project / "metrics.json").read_text())
    assert judged.exit_code == 0, judged.output
    assert metrics["loss"] == float(best["val_loss"])
    assert metrics["rmse"] == float(best["val/rmse"])
    assert metrics["pearson"] is None  # one sample has no correlation
    assert "pearson=undefined" in judged.output


def _history(run: Path) -> list[dict[str, str]]:
    return _rows(run / "history.csv")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_demo_prints_the_guide_s_lines_and_rates(molfun: Command, project: Path) -> None:
    result = molfun(
        "fine-tune", "--demo", "--preset", "tiny", "--strategy", "lora", "--epochs", 3, "--output",
        "runs/demo",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Demo mode: 6 train / 2 val (synthetic, seq_len=32)"
    assert lines[1] == "Model: OpenFold (145,210 params)"
    assert lines[2:6] == [
        "Strategy: LoRAFinetune (lr=1.0e-04)",
        "Peak learning rates: adapters 1.0e-04, head 1.0e-03; lr is that of head",
        "",
        "Training for 3 epochs...",
    ]
    rates = [re.search(r"lr=(\S+)", line)[1] for line in lines[6:9]]  # type: ignore[index]
    assert rates == ["8.01e-04", "2.77e-04", "1.00e-09"]
    losses = [float(row["train_loss"]) for row in _history(project / "runs/demo")]

    repeated = molfun(
        "fine-tune", "--demo", "--preset", "tiny", "--strategy", "lora", "--epochs", 3, "--output",
        "runs/demo",
    )  # fmt: skip
    assert repeated.exit_code == 0, "the demo replaces its own output"
    assert [float(row["train_loss"]) for row in _history(project / "runs/demo")] == losses


@pytest.mark.slow
def test_the_demo_on_the_full_trunk(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "fine_tune.py"
    result = subprocess.run(
        [sys.executable, script, "--demo", "--strategy", "head_only", "--epochs", "1",
         "--demo-seq-len", "8", "--output", str(tmp_path / "demo")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Model: OpenFold (93,237,338 params)" in result.stdout
    assert "random weights" in result.stderr
    # warnings of wrapped packages stay away from training to the last prediction
    assert "UserWarning" not in result.stderr


def test_a_settings_file_and_flags_that_go_first(train: Command, project: Path) -> None:
    (project / "run.yaml").write_text("strategy: head_only\nlr: 0.01\nepochs: 7\nema: 0\n")
    result = train("--config", "run.yaml")
    assert result.exit_code == 0, result.output
    stored = yaml.safe_load((project / "run/config.yaml").read_text())
    assert (stored["strategy"], stored["lr"], stored["epochs"]) == ("head_only", 0.01, 2)
    assert "Strategy: HeadOnlyFinetune (lr=1.0e-02)" in result.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stratgy: lora\n", "stratgy: unknown setting. Did you mean 'strategy'?"),
        ("epochs: many\n", "epochs: Input should be a valid integer"),
        ("- 1\n", "must hold `name: value` lines; found list instead"),
        ("a: !!python/object/apply:os.system [true]\n", "is no valid YAML"),
    ],
)
def test_a_wrong_settings_file_is_named(
    molfun: Command, project: Path, content: str, message: str
) -> None:
    (project / "wrong.yaml").write_text(content)
    result = molfun("fine-tune", "--data", "data.csv", "--pdbs", "pdbs", "--config", "wrong.yaml")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "lorra"), "strategy: Unknown strategy 'lorra'; known: auto, full, gradual"),
        (("--blocks-per-stage", 1), "blocks_per_stage needs unfreeze_epoch"),
        (("--device", "cuda:7"), "torch sees no CUDA GPU here"),
        (("--preset", "model_9"), "Unknown openfold preset 'model_9'"),
        (("--weights", "none.pt"), "No such file: none.pt"),
        (("--precision", "8"), "Unknown precision '8'"),
        (("--backbone", "openfolt"), "Did you mean 'openfold'?"),
        (("--ema", 1), "ema: Input should be less than 1"),
        (("--config", "absent.yaml"), "Cannot read absent.yaml"),
        (("--val-frac", 0, "--patience", 2), "patience needs a validation set"),
    ],
)
def test_a_wrong_argument_gets_one_line(
    train: Command, arguments: tuple[object, ...], message: str
) -> None:
    result = train(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_data_it_says_what_to_give(molfun: Command, project: Path) -> None:
    result = molfun("fine-tune", "--strategy", "lora")
    assert result.exit_code == 1
    assert "give --data TABLE and --pdbs FOLDER" in result.stderr
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pdb_id,affinity", "pdb_id,afinity", "affinity"),
        ("s003,", "zzz9,", "1 of 10 structures are missing in pdbs"),
        (",2012", ",2012\nbad1,nan,2000\nbad2,6.0,2000", "nan"),
        ("s001", "../s001", "../s001"),
    ],
)
def test_bad_tables_are_refused_before_training(
    train: Command, project: Path, old: str, new: str, message: str
) -> None:
    table = project / "data.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    result = train("--strategy", "head_only")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Training for" not in result.stdout
    assert not (project / "run" / "checkpoint").exists()


def test_skip_missing_continues_with_a_count(train: Command, project: Path) -> None:
    (project / "pdbs/s003.pdb").unlink()
    result = train("--strategy", "head_only", "--skip-missing")
    assert result.exit_code == 0, result.output
    assert "1 of 10 structures are missing" in result.stderr
    assert "7 train / 1 val / 1 test" in result.stdout


def test_a_malicious_feature_pickle_is_refused(train: Command, project: Path) -> None:
    (project / "features").mkdir()
    canary = project / "canary"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    (project / "features/s000.pkl").write_bytes(payload)
    result = train("--features", "features")
    assert result.exit_code == 1
    assert "s000.pkl" in result.stderr
    assert not canary.exists()


def test_splits(train: Command, project: Path) -> None:
    for split in ("temporal", "identity"):
        result = train("--split", split, "--strategy", "head_only", "--overwrite")
        assert result.exit_code == 0, result.output
        rows = _rows(project / "run/splits.csv")
        assert len(rows) == 10
        if split == "temporal":
            assert [row["pdb_id"] for row in rows if row["split"] == "test"] == ["s009"]


def test_an_existing_run_is_not_overwritten_by_accident(train: Command, project: Path) -> None:
    assert train("--strategy", "head_only").exit_code == 0
    before = (project / "run/history.csv").read_text()
    result = train("--strategy", "head_only")
    assert result.exit_code == 1
    assert "already holds a run" in result.stderr
    assert "--resume" in result.stderr
    assert (project / "run/history.csv").read_text() == before
    assert train("--strategy", "head_only", "--overwrite").exit_code == 0


def test_resuming_under_other_settings_lists_them(train: Command) -> None:
    assert train("--strategy", "head_only").exit_code == 0
    result = train("--strategy", "head_only", "--resume", "--lr", 0.5, "--epochs", 9)
    assert result.exit_code == 1
    assert "strategy.lr: 0.001 in the run, 0.5 now" in result.stderr
    assert "epochs: 2 in the run, 9 now" in result.stderr


def test_resume_of_a_run_that_never_had_a_state_begins_it(train: Command) -> None:
    result = train("--strategy", "head_only", "--resume")
    assert result.exit_code == 0, result.output
    assert "WARNING: run/resume holds no state yet: the run starts from its" in result.stderr


def test_what_a_run_killed_at_its_start_left_is_in_nobodys_way(
    train: Command, project: Path
) -> None:
    assert train("--strategy", "head_only").exit_code == 0
    for name in ("checkpoint", "resume"):
        shutil.rmtree(project / "run" / name)
    (project / "run/history.csv").unlink()
    assert {"config.yaml", "splits.csv", "run.log"} <= {p.name for p in (project / "run").iterdir()}
    result = train("--strategy", "head_only")
    assert result.exit_code == 0, result.output


class Killed(BaseException):
    """End of a process that handles nothing on its way out."""


@pytest.mark.parametrize("n_written", [1, 2, 3])
def test_a_kill_between_the_first_files_is_in_nobodys_way(
    train: Command, project: Path, monkeypatch: pytest.MonkeyPatch, n_written: int
) -> None:
    written: list[Path] = []

    def replace(source: Any, target: Any) -> None:
        written.append(Path(target))
        os.rename(source, target)  # noqa: PTH104
        if len(written) == n_written:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("molfun._io.os.replace", replace)
        with pytest.raises(Killed):
            train("--strategy", "head_only")
    assert {path.parent.name for path in written} == {"run"}, "the files of the start"
    result = train("--strategy", "head_only")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "name", ["config.yaml", "splits.csv", "predictions_test.csv", "predictions_val.csv", "run.log"]
)
def test_files_that_no_run_wrote_are_kept(train: Command, project: Path, name: str) -> None:
    (project / "run").mkdir()
    (project / "run" / name).write_text("lr: 0.1\n")
    result = train("--strategy", "head_only")
    assert result.exit_code == 1
    assert f"run holds {name}, which no run wrote" in result.stderr
    assert (project / "run" / name).read_text() == "lr: 0.1\n"


def test_settings_of_an_older_version_are_those_of_a_run(train: Command, project: Path) -> None:
    (project / "run").mkdir()
    (project / "run/config.yaml").write_text("output: run\nbackbone: openfold\nseed: 42\n")
    (project / "run/run.log").write_text("2026-01-01 10:00:00,123 INFO molfun.x: a line\n")
    result = train("--strategy", "head_only")
    assert result.exit_code == 0, result.output


def test_evaluate_without_labels_and_with_a_broken_checkpoint(
    train: Command, molfun: Command, project: Path
) -> None:
    assert train("--strategy", "head_only").exit_code == 0
    (project / "new.csv").write_text("pdb_id\ns000\ns001\n")
    result = molfun("predict", "run/checkpoint", "--data", "new.csv", "--pdbs", "pdbs")
    assert result.exit_code == 0, result.output
    rows = _rows(project / "predictions.csv")
    assert [row["pdb_id"] for row in rows] == ["s000", "s001"]
    assert all(row["affinity"] == "" and float(row["prediction"]) for row in rows)
    result = molfun("evaluate", "run/checkpoint", "--data", "new.csv", "--pdbs", "pdbs")
    assert result.exit_code == 1
    assert "affinity" in result.stderr

    (project / "run/checkpoint/head.pt").write_bytes(b"x")
    result = molfun("predict", "run/checkpoint", "--data", "new.csv", "--pdbs", "pdbs")
    assert result.exit_code == 1
    assert "head.pt: 1 bytes, expected" in result.stderr
    result = molfun("predict", "nowhere", "--data", "new.csv", "--pdbs", "pdbs")
    assert "No checkpoint at nowhere" in result.stderr
    for path, place in (("run/checkpoint/meta.json", "the checkpoint is run/checkpoint"),
                        ("new.csv", "give a folder")):  # fmt: skip
        said = molfun("predict", path, "--data", "new.csv", "--pdbs", "pdbs").stderr
        assert said == f"Error: No checkpoint at {path}: it is a file; {place}.\n"


def test_the_crop_of_training_is_used_for_prediction(
    train: Command, molfun: Command, project: Path
) -> None:
    assert train("--strategy", "lora", "--max-length", 5).exit_code == 0
    result = molfun(
        "predict", "run/checkpoint", "--data", "run/predictions_val.csv", "--pdbs", "pdbs",
        "--output", "again.csv",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (project / "again.csv").read_text() == (project / "run/predictions_val.csv").read_text()


def test_a_refused_resume_leaves_the_run_as_it_was(train: Command, project: Path) -> None:
    assert train("--strategy", "lora").exit_code == 0
    before = (project / "run/config.yaml").read_text()
    assert train("--strategy", "lora", "--resume", "--lr", 0.5).exit_code == 1
    assert (project / "run/config.yaml").read_text() == before
    assert train("--strategy", "lora", "--resume").exit_code == 0


def test_other_data_is_no_resume(train: Command, project: Path) -> None:
    assert train("--strategy", "head_only").exit_code == 0
    result = train("--strategy", "head_only", "--resume", "--max-length", 5)
    assert result.exit_code == 1
    assert "inputs: " in result.stderr
    table = (project / "data.csv").read_text()
    (project / "data.csv").write_text(table.replace("s009,", "s009,1"))
    assert train("--strategy", "head_only", "--resume").exit_code == 1


def test_a_run_that_never_started_leaves_nothing_in_the_way(train: Command) -> None:
    assert train("--strategy", "head_only", "--weights", "absent.pt").exit_code == 1
    result = train("--strategy", "head_only")
    assert result.exit_code == 0, result.output


def test_the_demo_never_replaces_a_real_run(train: Command, molfun: Command, project: Path) -> None:
    assert train("--strategy", "head_only").exit_code == 0
    before = (project / "run/splits.csv").read_text()
    result = molfun("fine-tune", "--demo", "--preset", "tiny", "--output", "run")
    assert result.exit_code == 1
    assert "already holds a run" in result.stderr
    assert (project / "run/splits.csv").read_text() == before
    result = molfun("fine-tune", "--demo", "--data", "data.csv", "--output", "other")
    assert "--demo makes its own data" in result.stderr


def test_an_unusable_structure_is_refused_before_training(train: Command, project: Path) -> None:
    lines = (project / "pdbs/s003.pdb").read_text().splitlines()
    one_residue = [line for line in lines if line[22:26].strip() == "1"]
    (project / "pdbs/s003.pdb").write_text("\n".join([*one_residue, "END", ""]))
    result = train("--strategy", "lora")
    assert result.exit_code == 1
    assert "s003 has 1 residues; openfold takes 2 or more" in result.stderr
    assert "Training for" not in result.stdout


def test_notes_on_structures_reach_the_user(train: Command, molfun: Command, project: Path) -> None:
    path = project / "pdbs/s003.pdb"
    path.write_text("\n".join(line[:21] + " " + line[22:] for line in pdb_chain("ALA GLY SER")))
    far = [f"{line[:21]} {line[22:30]}{90:8.3f}{line[38:]}" for line in pdb_chain("LYS MET")]
    path.write_text("\n".join([path.read_text(), "TER", *far, ""]))
    result = train("--strategy", "head_only", "--epochs", "1")
    said = "with notes (see run.log): "
    assert said in result.stdout
    assert "chains told apart (1)" in result.stdout
    log = (project / "run/run.log").read_text()
    assert log.count("s003: told apart 2 chains without ids by TER") == 1
    arguments = ("evaluate", "run/checkpoint", "--data", "data.csv", "--pdbs", "pdbs")
    assert "with notes (--debug lists them): " in molfun(*arguments).stdout
    assert "INFO: s003: told apart 2 chains" in molfun(*arguments, "--debug").stderr


def test_alignments_missing_in_prediction_are_told(
    train: Command, molfun: Command, project: Path
) -> None:
    from molfun.data import read_structure

    sequence = read_structure(project / "pdbs/s000.pdb").sequence
    (project / "msa/s000").mkdir(parents=True)
    text = f">query\n{sequence}\n>hit\n{sequence[:-1]}-\n"
    (project / "msa/s000/hits.a3m").write_text(text)
    assert train("--strategy", "head_only", "--alignments", "msa").exit_code == 0
    arguments = ("predict", "run/checkpoint", "--data", "data.csv", "--pdbs", "pdbs")
    assert "trained with alignments" in molfun(*arguments).stderr
    assert "trained with" not in molfun(*arguments, "--alignments", "msa").stderr


def test_auto_says_why_and_config_holds_what_was_used(train: Command, project: Path) -> None:
    result = train("--strategy", "auto")
    assert "Chosen for 8 training samples: head_only (fewer than 100 samples)" in result.stdout
    stored = yaml.safe_load((project / "run/config.yaml").read_text())
    assert (stored["strategy"], stored["lr"], stored["precision"]) == ("head_only", 1e-3, "32-true")
    assert stored["device"] == "cpu"


def test_batches_by_length(train: Command, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of 6 and of 18 residues; no more than one of the batches has both."""
    rows = ["pdb_id,affinity,split"]
    for i in range(10):
        chain = pdb_chain(["ALA", "GLY", "LEU"] * (6 if i % 2 else 2))
        (project / f"pdbs/s{i:03d}.pdb").write_text("\n".join([*chain, "END", ""]))
        rows.append(f"s{i:03d},{6 + i / 7:.3f},{'train' if i < 9 else 'val'}")
    (project / "data.csv").write_text("\n".join(rows) + "\n")
    batches: list[list[int]] = []
    original = engine.as_inputs

    def recording(batch: SampleBatch) -> object:
        batches.append([len(sample.protein) for sample in batch])
        return original(batch)

    monkeypatch.setattr(engine, "as_inputs", recording)
    arguments = ("--split", "column", "--batch-size", 2)
    result = train(*arguments, "--group-by-length")
    assert result.exit_code == 0, result.output
    assert len(batches) == 2 * 5
    for epoch in (batches[:5], batches[5:]):
        assert sorted(n for batch in epoch for n in batch) == [6] * 5 + [18] * 4
        assert sum(len(set(batch)) > 1 for batch in epoch) <= 1
    stored = yaml.safe_load((project / "run/config.yaml").read_text())
    assert stored["group_by_length"] is True
    history = (project / "run/history.csv").read_text()

    (project / "grouped.yaml").write_text("group_by_length: true\n")
    again = train(*arguments, "--config", "grouped.yaml", "--overwrite")
    assert again.exit_code == 0, again.output
    assert (project / "run/history.csv").read_text() == history
    (project / "other.yaml").write_text("group_by_length: false\n")
    result = train(*arguments, "--config", "other.yaml", "--resume")
    assert result.exit_code == 1
    assert (
        "batches by length: {'batch_size': 2, 'power': 3.0, 'max_cost': None, 'shuffle': True} in "
        "the run, None now"
    ) in result.stderr
    assert "batch size: " not in result.stderr


def test_single_samples_are_not_grouped(train: Command, project: Path) -> None:
    assert train("--strategy", "head_only").exit_code == 0
    before = (project / "run/history.csv").read_text()
    result = train("--strategy", "head_only", "--group-by-length", "--overwrite")
    assert result.exit_code == 0, result.output
    assert (project / "run/history.csv").read_text() == before
    assert train("--strategy", "head_only", "--resume").exit_code == 0


# In processes of their own


def _start(project: Path, *arguments: str) -> warm.Process:
    """A run in the background."""
    return warm.Process("-m", "molfun.cli", "fine-tune", *arguments, cwd=project, env=ONE_THREAD)


def _run(*arguments: str) -> tuple[str, ...]:
    return (
        "--data", "data.csv", "--pdbs", "pdbs", "--preset", "tiny", "--strategy", "lora", "--accum",
        "3", *arguments,
    )  # fmt: skip


def _wait_for_epochs(n: int, folder: Path, process: warm.Process) -> None:
    while not (folder / "history.csv").exists() or len(_history(folder)) < n:
        assert process.poll() is None, process.stderr()  # the first state is older than the first
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_end(project: Path) -> None:
    """End a run by each signal: 8 epochs of 8 batches in windows of 3, with EMA and dropout."""
    with _start(project, *_run("--epochs", "8", "--output", "whole")) as whole:
        assert whole.wait() == 0, whole.stderr()
    begin = _run("--epochs", "8", "--output", "stopped")
    resume = ("--resume", "--output", "stopped")
    stopped = project / "stopped"
    ends = ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9))
    for i, (number, expected) in enumerate(ends):
        done = len(_history(stopped)) if i else 0
        with _start(project, *(resume if i else begin)) as process:
            _wait_for_epochs(done + 1, stopped, process)
            process.send_signal(number)
            assert process.wait(60) == expected, process.stderr()
        assert done < len(_history(stopped)) < 8
    with _start(project, *resume) as resumed:
        assert resumed.wait() == 0, resumed.stderr()
    for file in ("history.csv", "predictions_val.csv", "predictions_test.csv"):
        assert (project / "whole" / file).read_text() == (stopped / file).read_text()


@pytest.mark.slow
def test_two_runs_in_one_folder(project: Path) -> None:
    with _start(project, *_run("--epochs", "60", "--output", "run")) as first:
        _wait_for_epochs(1, project / "run", first)
        second = warm.run("-m", "molfun.cli", "fine-tune", "--demo", "--output", "run", cwd=project)
        assert second.returncode == 1
        assert f"run is in use by process {first.pid}" in second.stderr


@pytest.mark.slow
def test_a_closed_pipe_does_not_end_the_run(project: Path) -> None:
    line = (
        f"{sys.executable} -m molfun.cli fine-tune --data data.csv --pdbs pdbs --preset tiny "
        "--strategy head_only --epochs 2 --output run | head -1"
    )
    result = subprocess.run(
        ["bash", "-c", line], cwd=project, text=True, capture_output=True, check=False
    )
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
    assert (project / "run/predictions_test.csv").exists()
