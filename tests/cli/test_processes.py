"""`molfun fine-tune --devices 2`: the command starts its own processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from molfun import MolfunStructureModel
from molfun.errors import ConfigError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch has no distributed package"
    ),
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    rows = ["name,sequence,target"]
    for i in range(18):
        text = "".join(draw.choice(list("ACDEFGHIKLMNPQRSTVWY"), 8 + i))
        rows.append(f"p{i},{text},{text.count('A') / len(text):.4f}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(rows))
    return path


def fine_tune(table: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "molfun", "fine-tune", "--backbone", "esm2_tiny", "--data",
            table, "--strategy", "lora", "--epochs", "2", "--batch-size", "2", "--device", "cpu",
            "--output", table.parent / name, *flags,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes_write_the_run_of_one(table: Path, way: str) -> None:
    one = fine_tune(table, "one", "--accum", "2")
    two = fine_tune(table, "two", "--devices", "2", "--parallel", way)
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert two.stdout.count("Everything is in") == 1
    single, double = (pd.read_csv(table.parent / name / "history.csv") for name in ("one", "two"))
    # other draws of LoRA's dropout than one process has
    assert double["steps"].tolist() == single["steps"].tolist()
    model = MolfunStructureModel.from_checkpoint(table.parent / "two" / "checkpoint", device="cpu")
    written = pd.read_csv(table.parent / "two" / "predictions_test.csv")
    frame = pd.read_csv(table)
    places = [int(name.split("_")[1]) - 1 for name in written["id"]]
    found = model.predict(frame["sequence"].iloc[places].tolist())
    assert np.allclose(found["prediction"], written["prediction"], atol=1e-5)


def test_python_starts_no_processes() -> None:
    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    with pytest.raises(ConfigError, match="devices=2 on 1 machines are 2 processes, and 1 was"):
        model.fit([("MKV", 1.0), ("ACD", 2.0)], devices=2)
    with pytest.raises(ConfigError, match="Unknown parallel 'fsdp'; known: auto, ddp, fsdp2"):
        model.fit([("MKV", 1.0), ("ACD", 2.0)], parallel="fsdp")  # type: ignore[arg-type]  # misspelt
