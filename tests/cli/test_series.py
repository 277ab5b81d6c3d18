"""Time series from the command line: pre-train, fine-tune, evaluate, predict."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from molfun.cli.from_series_config import flat_fine_tune, flat_pretrain, read_settings
from molfun.cli.settings import FineTuneSettings
from molfun.data import double_well
from molfun.errors import ConfigError

Command = Callable[..., Any]

GUIDE_PRETRAIN = """
encoder:
  name: transformer
  d_model: 16
  n_heads: 2
ssl:
  name: mae
  mask_ratio: 0.15
optimizer:
  name: adamw
  lr: 1.0e-3
  weight_decay: 0.01
scheduler:
  name: warmup_cosine
  warmup_epochs: 1
  max_epochs: 3
  eta_min: 1.0e-6
training:
  max_epochs: 3
  batch_size: 8
"""
GUIDE_FINETUNE = """
encoder:
  name: transformer
  d_model: 16
  n_heads: 2
task:
  task_name: well
  task_type: binary
  head_type: mlp
  hidden_dims: [8]
  dropout: 0.1
training:
  freeze_encoder: true
  unfreeze_epoch: null
  max_epochs: 3
  batch_size: 8
optimizer:
  name: adamw
  lr: 1.0e-3
  weight_decay: 0.01
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Series of a double well as a long table, and the guide's two files."""
    data = double_well(n_series=24, n_frames=(12, 20), seed=0)
    with (tmp_path / "series.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "time", *data.feature_names, "target"])
        for sample in data:
            values, mask = sample.features["timeseries"], sample.features["mask"]
            for step in range(len(values)):
                cells = [
                    "" if not m else f"{v:.4f}"
                    for v, m in zip(values[step], mask[step], strict=True)
                ]
                writer.writerow([sample.id, step, *cells, sample.target])
    (tmp_path / "pretrain.yaml").write_text(GUIDE_PRETRAIN)
    (tmp_path / "finetune.yaml").write_text(GUIDE_FINETUNE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pretrain_fine_tune_evaluate_predict(molfun: Command, folder: Path) -> None:
    result = molfun(
        "pretrain", "--config", "pretrain.yaml", "--data", "series.csv", "--target-column",
        "target", "--val-frac", "0.2", "--output", "runs/pre", "ssl.mask_ratio=0.3",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    stored = yaml.safe_load((folder / "runs/pre/config.yaml").read_text())
    assert stored["objective_config"] == {"mask_ratio": 0.3}
    assert stored["warmup_ratio"] == pytest.approx(1 / 3)
    result = molfun(
        "fine-tune", "--config", "finetune.yaml", "--data", "series.csv", "--weights",
        "runs/pre/weights.safetensors", "--output", "runs/ft", "training.unfreeze_epoch=1",
        "--val-frac", "0.25", "--test-frac", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Strategy: GradualFinetune" in result.stdout
    assert "Classes:" in result.stdout
    result = molfun("evaluate", "runs/ft/checkpoint", "--data", "series.csv")
    assert result.exit_code == 0, result.stderr
    assert "accuracy=" in result.stdout
    result = molfun("predict", "runs/ft/checkpoint", "--data", "series.csv", "--output", "out.csv")
    assert result.exit_code == 0, result.stderr
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert {row["prediction"] for row in rows} <= {row["target"] for row in rows}


def test_windows_keep_a_series_on_one_side(molfun: Command, folder: Path) -> None:
    result = molfun(
        "fine-tune", "--backbone", "timeseries", "--preset", "linear", "--data", "series.csv",
        "--task", "binary", "--strategy", "full", "--lr", "1e-3", "--epochs", "1", "--window", "6",
        "--stride", "3", "--output", "runs/w",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    with (folder / "runs/w/splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts: dict[str, set[str]] = {}
    for row in rows:
        name = row["id"].rsplit("@", 1)[0]
        parts.setdefault(name, set()).add(row["split"])
    assert len(rows) > 24
    assert all(len(part) == 1 for part in parts.values())
    result = molfun("evaluate", "runs/w/checkpoint", "--data", "series.csv")
    assert f"{len(rows)} samples" in result.stdout, result.stderr


def test_an_encoder_of_ones_own(molfun: Command, folder: Path) -> None:
    (folder / "my_encoders.py").write_text(
        """
from dataclasses import dataclass
from torch import nn
from molfun.backbones.timeseries.encoders import BaseEncoder, ENCODER_REGISTRY, EncoderConfig

@dataclass
class PlainConfig(EncoderConfig):
    name: str = "plain"
    hidden_size: int = 8

class PlainEncoder(BaseEncoder):
    config_class = PlainConfig

    def __init__(self, config):
        super().__init__(config)
        self.net = nn.Sequential(
            nn.Linear(config.d_input, config.hidden_size), nn.ReLU(),
            nn.Linear(config.hidden_size, config.d_model),
        )

    def forward(self, x, mask=None, padding_mask=None):
        return self.net(x)

ENCODER_REGISTRY["plain"] = PlainEncoder
"""
    )
    common = ("--data", "series.csv", "--target-column", "target", "--plugin", "my_encoders")
    result = molfun(
        "pretrain", *common, "--output", "runs/own", "encoder=plain", "encoder.hidden_size=5",
        "ssl=mae", "training.max_epochs=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    stored = yaml.safe_load((folder / "runs/own/config.yaml").read_text())
    assert stored["backbone_config"] == {"config": {"name": "plain", "hidden_size": 5}}
    assert stored["plugin"] == "my_encoders"
    result = molfun(
        "fine-tune", "--backbone", "timeseries", "--weights", "runs/own/weights.safetensors",
        "--data", "series.csv", "--task", "binary", "--strategy", "head_only", "--epochs", "1",
        "--output", "runs/own_ft", "--plugin", "my_encoders",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    result = molfun(
        "evaluate", "runs/own_ft/checkpoint", "--data", "series.csv", "--plugin", "my_encoders"
    )
    assert result.exit_code == 0, result.stderr


def test_long_series_are_not_cropped_in_pretraining(molfun: Command, folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "long.npy", rng.normal(size=(4, 1500, 2)).astype(np.float32))
    result = molfun(
        "pretrain", "--data", "long.npy", "encoder=linear", "ssl=mae", "training.max_epochs=1",
        "--val-frac", "0", "--window", "100", "--output", "runs/long",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "60 train (6,000 time steps)" in result.stdout


def test_the_commands_of_the_readme(molfun: Command, folder: Path) -> None:
    """The label is in the table, and is no input."""
    result = molfun(
        "pretrain", "--data", "series.csv", "ssl=mae", "encoder=transformer", "--output",
        "runs/series", "training.max_epochs=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    result = molfun(
        "fine-tune", "--backbone", "timeseries", "--weights", "runs/series/weights.safetensors",
        "--data", "series.csv", "--task", "binary", "--strategy", "full", "--unfreeze-epoch", "5",
        "--epochs", "6",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"overfit_batches": 1.0}, "overfit_batches is for a Lightning Trainer"),
        ({"early_stopping_mode": "max"}, "the direction is that of the metric here"),
    ],
)
def test_what_only_a_trainer_knows_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flat_fine_tune({"task": {"task_type": "binary"}, "training": section})


def test_flat_settings_may_be_overridden_too(folder: Path) -> None:
    overrides = ["task=binary", "head_config.dropout=0.5"]
    assert read_settings(None, overrides, pretrain=False) == {
        "task": "binary", "head_config": {"dropout": 0.5},
    }  # fmt: skip


def test_no_monitor_never_stops() -> None:
    training = {"early_stopping_patience": 2, "early_stopping_monitor": None}
    flat = flat_fine_tune({"task": {"task_type": "binary"}, "training": training})
    assert flat["patience"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encoder.d_modell=4",), "Did you mean 'd_model'?"),
        (("ssl.name=mea",), "Did you mean 'mae'?"),
        (("optimiser.lr=1",), "optimiser: unknown section. Did you mean 'optimizer'?"),
        (("encoder.d_model",), "must look like section.key=value"),
        (("--plugin", "no_such_module"), "--plugin no_such_module cannot be imported"),
        (("--backbone", "esm2_tiny"), "give --sequences FILE, which esm2_tiny is trained on"),
    ],
)
def test_what_is_wrong_gets_one_line(
    molfun: Command, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = molfun("pretrain", "--config", "pretrain.yaml", "--data", "series.csv", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_data_is_asked_for(molfun: Command, folder: Path) -> None:
    result = molfun("pretrain", "--config", "pretrain.yaml")
    assert result.exit_code == 1
    assert "give --data FILE of time series, which timeseries is trained on" in result.stderr


def test_sections_become_settings() -> None:
    flat = flat_fine_tune(
        {
            "task": {"task_type": "multiclass", "n_classes": 3, "head_type": "linear"},
            "training": {"freeze_encoder": False, "gradient_clip_val": 0.5},
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.8},
            "scheduler": {"name": "plateau", "mode": "min", "factor": 0.5, "patience": 3},
        }
    )
    settings = FineTuneSettings.build({**flat, "data": "x.ts"})
    options = settings.strategy_options(settings.strategy, n_blocks=2)
    assert options["name"] == "full"
    expected = {
        "lr": 0.01, "lr_head": 0.01, "lr_embedder": 0.01, "layer_lr_decay": 1.0,
        "optimizer": "sgd", "momentum": 0.8, "grad_clip": 0.5, "ema_decay": 0.0,
        "scheduler": "plateau", "plateau_mode": "min", "plateau_factor": 0.5,
        "plateau_patience": 3, "warmup_steps": 0,
    }  # fmt: skip
    assert {key: options[key] for key in expected} == expected
    assert settings.n_classes == 3


def test_a_schedule_of_another_length_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    flat = flat_pretrain(
        {
            "ssl": {"name": "jepa"},
            "scheduler": {"name": "cosine", "T_max": 100, "eta_min": 1e-5},
            "training": {"max_epochs": 20},
        }
    )
    assert flat["min_lr"] == 1e-5
    assert flat["epochs"] == 20
    assert "made for 100 epochs, and the run has 20" in capsys.readouterr().out


def test_the_number_of_classes_has_to_be_that_of_the_labels(molfun: Command, folder: Path) -> None:
    result = molfun(
        "fine-tune", "--config", "finetune.yaml", "--data", "series.csv",
        "task.task_type=multiclass", "task.n_classes=4",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "n_classes=4, but the labels name 2" in result.stderr


def test_numbers_are_numbers(folder: Path) -> None:
    """What the table was written from is what it is read as."""
    from molfun.data import TimeSeriesDataset

    data = double_well(n_series=24, n_frames=(12, 20), seed=0)
    read = TimeSeriesDataset.from_csv("series.csv", labels="class")
    for one, other in zip(data, read, strict=True):
        assert np.array_equal(one.features["mask"], other.features["mask"])
        assert np.allclose(one.features["timeseries"], other.features["timeseries"], atol=1e-4)


def test_what_a_new_user_forgets_is_named(molfun: Command, tmp_path: Path) -> None:
    """Found in trials: each got an answer that did not help."""
    series = tmp_path / "x.ts"
    series.write_text("@data\n")
    for arguments, text in (
        (("fine-tune", "--data", series), "add --backbone timeseries"),
        (("fine-tune", "--data", tmp_path / "x.xyz"), "add --backbone pet"),
        (("pretrain", "--data", series), "for series add --backbone timeseries"),
        (
            ("pretrain", "--data", series, "--backbone", "timeseries", "--stride", "4"),
            "give --window as well",
        ),
        (("evaluate", tmp_path, "--data", series, "--batch-size", "0"), "batch-size"),
    ):
        result = molfun(*arguments)
        assert result.exit_code in (1, 2), result.stderr
        assert text in result.stderr


def test_series_are_pretrained_by_masking_unless_told_otherwise() -> None:
    from molfun.cli.pretrain_settings import PretrainSettings

    assert PretrainSettings(backbone="timeseries", data="x.ts").objective == "mae"
    assert PretrainSettings(sequences="x.fasta").objective == "masked_lm"


def test_series_train_at_their_own_rate() -> None:
    series = FineTuneSettings.build({"data": "x.ts", "backbone": "timeseries"})
    assert series.strategy_options("full", 2)["lr"] == 1e-3
    assert "lr" not in FineTuneSettings.build({"demo": True}).strategy_options("full", 2)


def table(path: Path, frame: pd.DataFrame) -> str:
    frame.to_csv(path, index=False)
    return str(path)


def test_features_are_named_and_remembered(molfun: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times, series = np.tile(np.arange(4), 20), np.repeat(np.arange(20), 4)
    frame = pd.DataFrame(
        {"id": series, "time": times, "hr": rng.normal(size=80), "bp": rng.normal(size=80),
         "fold": rng.integers(0, 5, 80), "target": series % 2}
    )  # fmt: skip
    data = table(tmp_path / "a.csv", frame)
    run = ["--task", "binary", "--epochs", "1", "--output", str(tmp_path / "run")]
    result = molfun("fine-tune", "--backbone", "timeseries", "--data", data, *run)
    assert result.exit_code == 1
    assert "'fold' is named like a split" in result.stderr
    assert "--feature-columns hr,bp" in result.stderr
    result = molfun("fine-tune", "--backbone", "timeseries", "--data", data, *run,
                    "--feature-columns", "hr,bp", "--val", data, "--overwrite")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Features (2): hr, bp\n" in result.stdout
    assert "Features (2): hr, bp" in (tmp_path / "run" / "run.log").read_text()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["feature_columns"] == [
        "hr", "bp"
    ]  # fmt: skip
    checkpoint = str(tmp_path / "run" / "checkpoint")
    turned = table(tmp_path / "b.csv", frame[["bp", "fold", "time", "hr", "id", "target"]])
    found = []
    for file in (data, turned):
        output = tmp_path / "out.csv"
        result = molfun("predict", checkpoint, "--data", file, "--output", output)
        assert result.exit_code == 0, result.stderr
        found.append(pd.read_csv(output).prob_1.tolist())
        output.unlink()
    assert found[0] == pytest.approx(found[1])
    less = table(tmp_path / "c.csv", frame.drop(columns="bp"))
    result = molfun("predict", checkpoint, "--data", less, "--output", tmp_path / "x.csv")
    assert result.exit_code == 1
    assert "has no column 'bp'" in result.stderr
    result = molfun("pretrain", "--backbone", "timeseries", "--data", data, "--output",
                    tmp_path / "pre", "--epochs", "1", "--feature-columns", "bp")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Features (1): bp" in result.stdout
    result = molfun("fine-tune", "--data", data, "--feature-columns", "hr", "--pdbs", "x", *run,
                    "--overwrite")  # fmt: skip
    assert "feature_columns: for time series (models such as timeseries)" in result.stderr
    result = molfun("fine-tune", "--backbone", "timeseries", "--data", "x.ts", *run,
                    "--feature-columns", "hr", "--overwrite")  # fmt: skip
    assert "feature_columns is for tables of time series." in result.stderr
    for flag, said in (("hr,target", "the column of the label"), ("hr,hr", "'hr' more than once")):
        result = molfun("fine-tune", "--backbone", "timeseries", "--data", data, *run,
                        "--feature-columns", flag, "--overwrite")  # fmt: skip
        assert result.exit_code
        assert said in result.stderr
    (tmp_path / "a.yaml").write_text("feature_columns: []\n")
    result = molfun("fine-tune", "--config", tmp_path / "a.yaml", "--backbone", "timeseries",
                    "--data", data, *run, "--overwrite")  # fmt: skip
    assert result.exit_code
    assert "feature_columns is empty (--feature-columns)" in result.stderr


def test_groups_are_kept_whole(molfun: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    series = np.repeat(np.arange(20), 4)
    frame = pd.DataFrame(
        {"id": series, "time": np.tile(np.arange(4), 20), "hr": rng.normal(size=80),
         "target": series % 2, "patient": [f"p{i // 2}" for i in series]}
    )  # fmt: skip
    data = table(tmp_path / "a.csv", frame)
    start = ["fine-tune", "--backbone", "timeseries", "--data", data, "--task", "binary",
             "--epochs", "1", "--group-column", "patient", "--val-frac", "0.3"]  # fmt: skip
    for number, split in enumerate((["--split", "group"], [], ["--split-column", "patient",
                                                               "--split", "group"])):  # fmt: skip
        output = tmp_path / f"run{number}"
        result = molfun(*start, *split, "--output", output)
        assert result.exit_code == 0, result.stderr
        parts = pd.read_csv(output / "splits.csv", index_col="id").split
        assert set(parts) == {"train", "val", "test"}
        patients = {i: f"p{i // 2}" for i in range(20)}
        assert parts.groupby(parts.index.map(patients)).nunique().max() == 1
    result = molfun(*start, "--split", "group", "--split-column", "x", "--output", tmp_path / "z")
    assert result.exit_code == 1
    assert "--group-column patient and --split-column x name two columns" in result.stderr


def test_pretraining_validates_on_a_tenth(molfun: Command, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"id": np.repeat(np.arange(40), 3), "time": np.tile(np.arange(3), 40),
         "hr": np.random.default_rng(0).normal(size=120)}
    )  # fmt: skip
    data = table(tmp_path / "a.csv", frame)
    start = ["pretrain", "--backbone", "timeseries", "--data", data, "--epochs", "1"]
    for options, n_val in (([], 16), (["--val-frac", "0.05"], 2), (["--val-frac", "0"], 0)):
        result = molfun(*start, *options, "--output", tmp_path / f"run{n_val}")
        assert result.exit_code == 0, result.stderr
        assert f"{40 - n_val} train ({(40 - n_val) * 3} time steps) / {n_val} val" in result.stdout


def test_classes_of_an_archive_file_are_not_ranked_in_silence(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = "@problemName x\n@timeStamps false\n@univariate true\n@classLabel true 1 2 3\n@data\n"
    Path("x.ts").write_text(head + "".join(f"{i},1,2,{i}:{1 + i % 3}\n" for i in range(24)))
    arguments = ("--backbone", "timeseries", "--data", "x.ts", "--epochs", 1, "--no-report")
    ranked = molfun("fine-tune", *arguments, "--output", "a")
    assert ranked.exit_code == 0, ranked.output
    assert "x.ts names the classes of its labels (@classLabel)" in ranked.stderr
    assert "Add --task multiclass" in ranked.stderr
    classes = molfun("fine-tune", *arguments, "--task", "multiclass", "--output", "b")
    assert classes.exit_code == 0, classes.output
    assert "names the classes" not in classes.stderr
