"""Experiment trackers: what they are sent, and what the real ones then hold."""

from __future__ import annotations

import csv
import json
import logging
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from molfun import Callback, History, LoRAFinetune, MolfunStructureModel, SequenceDataset
from molfun.cli.main import app
from molfun.errors import ConfigError, ContractError, MissingDependencyError, RunError
from molfun.registry import LOGGERS
from molfun.training import StepReport
from molfun.training.loggers import CSVLogger, LoggedRun, Logger

EPOCHS, STEPS = 3, 3  # 20 sequences in batches of 8


class Kept(Logger):
    """Keeps all that a tracker is sent."""

    name = "kept"

    def __init__(self, *, every: int = 1, fails_at: int | None = None) -> None:
        super().__init__(every=every)
        self.fails_at = fails_at
        self.runs: list[LoggedRun] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.files: list[str] = []
        self.ends: list[bool] = []

    def start(self, run: LoggedRun) -> str:
        if self.fails_at == 0:
            raise ConnectionError("no route to host")
        self.runs.append(run)
        return run.id or f"id-{len(self.runs)}"

    def write(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("no route to host")
        self.rows.append((step, dict(values)))

    def write_file(self, path: Path) -> None:
        self.files.append(path.name)

    def finish(self, *, failed: bool) -> None:
        self.ends.append(failed)

    def of(self, name: str) -> list[float]:
        return [row[name] for _, row in self.rows if name in row]


class Refusing(Kept):
    """Cannot be reached from the start."""

    name = "refusing"

    def start(self, run: LoggedRun) -> str:
        raise ConnectionError("no route to host")


class StopAt(Callback):
    """Interrupts the run after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, report: StepReport) -> None:
        if report.step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDEFGHIKL"), 6)) for _ in range(20)]
    return SequenceDataset.from_list([(text, float(i)) for i, text in enumerate(texts)])


@pytest.fixture
def fit(
    data: SequenceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., History]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(LOGGERS._entries, "kept", Kept)

    def run(*loggers: Any, stop: int | None = None, **settings: Any) -> History:
        model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
        return model.fit(
            data,
            data,
            strategy=LoRAFinetune(rank=2),
            epochs=EPOCHS,
            loggers=loggers,
            callbacks=[] if stop is None else [StopAt(stop)],
            **{"output_dir": "run", **settings},
        )

    return run


def test_what_a_logger_is_sent(
    fit: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        norms.append(float(clip(*args, **kwargs)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    kept = Kept()
    history = fit(kept)
    assert [step for step, _ in kept.rows] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    steps = [row for _, row in kept.rows if "val/loss" not in row]
    assert [row["grad_norm"] for row in steps] == norms
    # rates of the next step; warm-up and cosine are the same for both groups
    assert [row["lr/head"] for row in steps] == pytest.approx(
        [10 * row["lr/lora"] for row in steps]
    )
    assert steps[2]["lr/head"] == history[0]["lr"]
    epochs = [row for _, row in kept.rows if "val/loss" in row]
    for row, logged in zip(history, epochs, strict=True):
        assert logged["val/loss"] == row["val_loss"]
        assert logged["train/epoch_loss"] == row["train_loss"]
        assert logged["val/rmse"] == row["val/rmse"]
        assert logged["skipped"] == 0
        assert logged["samples_per_second"] > 0
        assert logged["peak_memory_gb"] > 0.05
    # a batch of 8, 8 and 4 labels each: the epoch is their mean over labels
    by_step = [row["train/loss"] for row in steps[:3]]
    assert np.dot(by_step, [8, 8, 4]) / 20 == pytest.approx(history[0]["train_loss"])
    [run] = kept.runs
    assert run.name == "run"
    assert (run.config["backbone"], run.config["strategy.rank"]) == ("esm2", 2)
    assert kept.ends == [False]
    # nothing of the training changes
    assert repr(fit(output_dir="plain")) == repr(history)


def test_every_tenth_step_and_skipped_ones(
    fit: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    from molfun.tasks import RegressionTask

    calls: list[int] = []
    loss = RegressionTask.loss

    def broken(self: Any, *args: Any) -> Any:
        calls.append(0)
        found = loss(self, *args)
        return found if len(calls) != 2 else type(found)(found[0] * math.nan, found[1])

    monkeypatch.setattr(RegressionTask, "loss", broken)
    kept = Kept(every=4)
    history = fit(kept)
    assert history[-1]["skipped"] == 1
    assert [step for step, row in kept.rows if "val/loss" not in row] == [1, 1, 4, 8]
    assert kept.of("skipped") == [0, 1, 1, 1, 1, 1, 1]
    assert [step for step, row in kept.rows if "val/loss" in row] == [2, 5, 8]


def test_a_resumed_run_continues_and_a_new_one_does_not(
    fit: Callable[..., History], tmp_path: Path
) -> None:
    first, second, third = Kept(), Kept(), Kept()
    with pytest.raises(KeyboardInterrupt):
        fit(first, stop=5, save_every_steps=4)
    assert first.ends == [True]
    ids = json.loads((tmp_path / "run/loggers.json").read_text())
    assert ids == {"format": 1, "runs": {"kept": "id-1"}}
    fit(second, resume=True)
    assert (second.runs[0].id, second.runs[0].step) == ("id-1", 4)
    assert second.rows[0][0] == 5
    (tmp_path / "run/logs/kept").mkdir(parents=True)
    (tmp_path / "run/logs/mine").mkdir()
    fit(third, overwrite=True)
    assert (third.runs[0].id, third.runs[0].step) == (None, 0)
    # what the run before had listed is gone, what it had not is a user's own
    assert [path.name for path in (tmp_path / "run/logs").iterdir()] == ["mine"]
    other = json.dumps({"format": 1, "runs": {"../../data": "x", "kept": "y"}})
    (tmp_path / "data").mkdir()
    (tmp_path / "run/loggers.json").write_text(other)
    fit(Kept(), overwrite=True)
    assert (tmp_path / "data").is_dir()
    (tmp_path / "run/loggers.json").write_text("[]")
    with pytest.raises(RunError, match=r"loggers.json does not name the runs of the loggers"):
        fit(Kept(), resume=True)


def test_a_report_that_comes_after_fit_is_attached(
    fit: Callable[..., History], tmp_path: Path
) -> None:
    kept = Kept()
    with kept:
        fit(kept)
        assert not kept.ends
        (tmp_path / "run/report.html").write_text("<p>")
        metrics = {"rmse": {"value": 1.5, "low": None, "high": None}, "r2": {"value": None}}
        parts = {"val": {"metrics": metrics}, "test": {"metrics": metrics}}
        (tmp_path / "run/evaluation.json").write_text(json.dumps({"format": 1, "parts": parts}))
    assert (kept.files, kept.ends) == (["report.html"], [False])
    assert kept.rows[-1] == (9, {"test/rmse": 1.5})
    heads = {"ddg": {"parts": parts}}
    (tmp_path / "run/evaluation.json").write_text(json.dumps({"format": 1, "heads": heads}))
    again = Kept()
    fit(again, overwrite=True)
    assert again.rows[-1] == (9, {"test/ddg/rmse": 1.5})


def test_a_tracker_that_fails_stops_alone(
    fit: Callable[..., History], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = Kept(fails_at=4), CSVLogger(every=1)
    with caplog.at_level(logging.WARNING):
        history = fit(broken, whole)
    assert len(history) == EPOCHS
    said = [r.message for r in caplog.records if "stops" in r.message]
    assert said == [
        "The logger kept stops: ConnectionError: no route to host. The run goes on, and "
        "history.csv has its rows."
    ]
    assert broken.rows[-1][0] == 3
    # its run must not stay open in the tracker
    assert broken.ends == [True]
    assert (tmp_path / "run/logs/csv/metrics.csv").read_text().count("\n") == 1 + EPOCHS * (
        STEPS + 1
    )
    with pytest.raises(RunError, match=r"^The logger kept cannot start: ConnectionError: no route"):
        fit(Kept(fails_at=0), output_dir="other")


def files_in(folder: Path) -> dict[str, bytes]:
    """Content of all files of a run, apart from its lock and its log."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: text for name, text in found.items() if name not in (".lock", "run.log")}


def test_a_tracker_that_refuses_leaves_the_run_that_it_would_replace(
    fit: Callable[..., History], tmp_path: Path
) -> None:
    fit(CSVLogger(every=1), Kept())
    before = files_in(tmp_path / "run")
    assert {"logs/csv/metrics.csv", "loggers.json", "history.csv"} <= before.keys()
    started = Kept()
    with pytest.raises(RunError, match=r"^The logger refusing cannot start: ConnectionError"):
        fit(started, CSVLogger(every=1), Refusing(), overwrite=True)
    assert started.ends == [True]
    assert files_in(tmp_path / "run") == before
    # without it the run is replaced, and continues where it was stopped
    with pytest.raises(KeyboardInterrupt):
        fit(CSVLogger(every=1), stop=5, overwrite=True, save_every_steps=4)
    fit(CSVLogger(every=1), resume=True)
    after = files_in(tmp_path / "run")
    assert after["logs/csv/metrics.csv"].count(b"\n") == 1 + EPOCHS * (STEPS + 1)
    assert not any("replaced" in name for name in after)


@pytest.mark.parametrize(
    ("loggers", "text"),
    [
        (["wandd"], r"Unknown logger 'wandd'; known: .*Did you mean 'wandb'\?"),
        (["csv", CSVLogger()], r"The logger csv is given twice"),
        ("csv,csv", r"The logger csv is given twice"),
        ([3], r"loggers must be names \(csv, tensorboard, wandb, mlflow.*\) or .*, got '3'"),
    ],
)
def test_loggers_that_cannot_be(fit: Callable[..., History], loggers: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fit(*loggers) if isinstance(loggers, list) else fit(loggers)


def test_a_folder_and_a_name_are_needed(fit: Callable[..., History]) -> None:
    with pytest.raises(ConfigError, match="loggers need output_dir"):
        fit("csv", output_dir=None)
    with pytest.raises(ConfigError, match="The logger csv: every must be a whole number"):
        CSVLogger(every=0)
    with pytest.raises(ContractError, match="must set the class attribute name"):

        class Nameless(Logger):
            def start(self, run: LoggedRun) -> str: ...
            def write(self, values: Mapping[str, float], step: int) -> None: ...
            def finish(self, *, failed: bool) -> None: ...


# --- the real trackers: a run that is interrupted in its second epoch, and resumed ----------------


@pytest.fixture
def resumed(fit: Callable[..., History], tmp_path: Path) -> Callable[[str], History]:
    def run(name: str) -> History:
        with pytest.raises(KeyboardInterrupt):
            fit(name, stop=5, save_every_steps=4)
        (tmp_path / "run/report.html").write_text("<p>report</p>")
        return fit(name, resume=True)

    return run


def values_of(rows: Iterator[tuple[int, float]] | list[tuple[int, float]]) -> dict[int, float]:
    """Values by step; a step that was logged again has the same value."""
    found: dict[int, float] = {}
    for step, value in rows:
        assert found.setdefault(step, value) == pytest.approx(value, rel=1e-6)
    return found


def test_csv(resumed: Callable[[str], History], tmp_path: Path) -> None:
    history = resumed("csv")
    with (tmp_path / "run/logs/csv/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 3, 6, 9]
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert losses == [row["val_loss"] for row in history]
    assert json.loads((tmp_path / "run/logs/csv/config.json").read_text())["strategy.rank"] == 2


def test_csv_keeps_its_rows_whenever_a_resumed_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "logs/csv/metrics.csv"
    file.parent.mkdir(parents=True)
    rows = "epoch,step,train/loss\n1,1,0.5\n1,2,0.25\n"
    file.write_text(rows + "1,3,0.125\n1")  # the last one was not written to its end
    run = LoggedRun(name="run", folder=file.parent, config={}, id="run", step=2)
    with monkeypatch.context() as patch:
        patch.setattr("lightning_fabric.loggers.CSVLogger.save", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            CSVLogger().start(run)
    assert not file.exists()
    CSVLogger().start(run)
    assert file.read_text().replace("\r", "") == rows
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["csv"]


def test_tensorboard(resumed: Callable[[str], History], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'molfun[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = resumed("tensorboard")
    events = EventAccumulator(str(tmp_path / "run/logs/tensorboard")).Reload()
    assert {"lr/head", "lr/lora", "grad_norm", "skipped", "samples_per_second"} <= set(
        events.Tags()["scalars"]
    )
    found = values_of([(e.step, e.value) for e in events.Scalars("val/loss")])
    assert found == pytest.approx({3 * row["epoch"]: row["val_loss"] for row in history})
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.slow
def test_wandb_offline(
    resumed: Callable[[str], History], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'molfun[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    history = resumed("wandb")
    folders = sorted((tmp_path / "run/logs/wandb").glob("offline-run-*"))
    records = [record for folder in folders for record in wandb_records(folder)]
    # both parts are the same run, which `wandb sync` joins
    assert len(folders) == 2
    assert len({r.run.run_id for r in records if r.HasField("run")}) == 1
    config = {
        item.key: json.loads(item.value_json)
        for r in records if r.HasField("run") for item in r.run.config.update
    }  # fmt: skip
    assert config["strategy.rank"] == 2
    rows = [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
        for r in records if r.HasField("history")
    ]  # fmt: skip
    found = values_of([(row["step"], row["val/loss"]) for row in rows if "val/loss" in row])
    assert found == pytest.approx({3 * row["epoch"]: row["val_loss"] for row in history})
    assert {"lr/head", "lr/lora", "grad_norm", "samples_per_second"} <= set().union(*rows)
    assert any(r.artifact.type == "report" for r in records if r.HasField("artifact"))


def wandb_records(folder: Path) -> Iterator[Any]:
    """Records of an offline run: protocol buffers in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("*.wandb")
    content, place, parts = file.read_bytes(), 7, b""  # after ":W&B" and a version
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # a block has no room for another header
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of mlflow and alembic
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mlflow_in_sqlite(
    resumed: Callable[[str], History], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow", reason="pip install 'molfun[mlflow]'")
    pytest.importorskip("sqlalchemy", reason="pip install 'molfun[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    history = resumed("mlflow")
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("molfun")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["strategy.rank"] == "2"
    assert {"lr/head", "lr/lora", "grad_norm", "samples_per_second"} <= set(run.data.metrics)
    logged = client.get_metric_history(run.info.run_id, "val/loss")
    found = values_of([(metric.step, metric.value) for metric in logged])
    assert found == pytest.approx({3 * row["epoch"]: row["val_loss"] for row in history})
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


# --- from the command line ------------------------------------------------------------------------


def test_settings_name_loggers(
    fit: Callable[..., History], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "\n".join(f"MKVL{'ACDEFGHIKL'[i]}A,{i}.0" for i in range(10))
    Path("a.csv").write_text(f"sequence,fitness\n{rows}\n")
    Path("run.yaml").write_text(
        "backbone: esm2\npreset: tiny\ndata: a.csv\ntarget_column: fitness\nepochs: 1\n"
        "strategy: head_only\nlogger: [csv, kept]\nlogger_config: {csv: {every: 1}}\n"
    )

    def command(*arguments: str) -> str:
        given = ["fine-tune", "--config", "run.yaml", "--device", "cpu", *arguments]
        return CliRunner().invoke(app, given).output

    kept = Kept()
    monkeypatch.setitem(LOGGERS._entries, "kept", lambda: kept)
    command("--output", "one")
    with Path("one/logs/csv/metrics.csv").open(newline="") as file:
        assert csv.DictReader(file).fieldnames
    assert json.loads(Path("one/loggers.json").read_text())["runs"].keys() == {"csv", "kept"}
    # the settings of the command, which `fit` is not given
    assert kept.runs[0].config["target_column"] == "fitness"
    assert any(name.startswith("test/") for name in kept.rows[-1][1])
    assert kept.ends == [False]
    assert "Unknown logger 'tensorbord'" in command("--logger", "csv,tensorbord")
    assert "Unknown logger with settings 'csv'" in command("--logger", "kept")
    assert "Unknown key in logger csv 'evry'" in command("logger_config.csv.evry=3")
    before = files_in(Path("one"))
    kept.fails_at = 0
    said = command("--output", "one", "--overwrite")
    assert "The logger kept cannot start: ConnectionError: no route to host. Leave it" in said
    assert files_in(Path("one")) == before
    folds = CliRunner().invoke(app, ["cv", "--config", "run.yaml", "--folds", "2"])
    assert "folds are not sent to trackers: leave out logger" in folds.output


def test_a_tracker_that_is_not_installed_is_an_error(
    fit: Callable[..., History], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "mlflow", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
        line = rf"^{name} is needed here .*Install it: pip install 'molfun\[{name}\]'"
        with pytest.raises(MissingDependencyError, match=line):
            fit(name)
    assert not Path("run").exists()
    arguments = ["fine-tune", "--demo", "--epochs", "1", "--logger", "wandb"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 1
    assert "pip install 'molfun[wandb]'" in said.output
    assert "Training" not in said.output
