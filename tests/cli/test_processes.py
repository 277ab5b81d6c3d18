"""`molfun fine-tune --devices 2`: the command starts its own processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result

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


def test_two_processes_write_the_run_of_one(table: Path, molfun: Callable[..., Result]) -> None:
    flags = (
        "fine-tune", "--backbone", "esm2_tiny", "--data", str(table), "--strategy", "lora",
        "--epochs", "2", "--batch-size", "2", "--device", "cpu", "--no-report",
    )  # fmt: skip
    one = molfun(*flags, "--output", table.parent / "one", "--accum", "2")
    assert one.exit_code == 0, one.output
    # test_slurm.py has copies (ddp)
    together = ("--output", str(table.parent / "two"), "--devices", "2", "--parallel", "fsdp2")
    two = subprocess.run(
        [sys.executable, "-m", "molfun", *flags, *together],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
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


@pytest.mark.parametrize("verb", ["fine-tune", "predict"])
@pytest.mark.parametrize("given", ["0", "two", "-1", "1.5"])
def test_a_wrong_number_of_processes_is_refused(
    molfun: Callable[..., Result], verb: str, given: str
) -> None:
    told = molfun(verb, *(["--demo"] if verb == "fine-tune" else ["run"]), "--devices", given)
    assert told.exit_code == 1
    assert f"should be a whole number of at least 1, or auto (got '{given}')" in told.stderr


def refused(*flags: str, **environment: str) -> str:
    """Return what a command said that two processes ended with an error."""
    command = [sys.executable, "-m", "molfun", *flags, "--devices", "2", "--device", "cpu"]
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    return ended.stderr


@pytest.mark.parametrize(
    "flags",
    [("fine-tune", "--data"), ("pretrain", "--sequences")],
    ids=["fine-tune", "pretrain"],
)
def test_a_refusal_ends_both(tmp_path: Path, flags: tuple[str, str]) -> None:
    missing, output = str(tmp_path / "nothere.csv"), ("--output", str(tmp_path / "run"))
    said = refused(*flags, missing, "--backbone", "esm2_tiny", *output)
    assert f"Error: {missing} does not exist." in said
    assert f"Error in process 1: {missing} does not exist." in said


def test_a_process_that_ends_before_it_joins_ends_the_others(table: Path) -> None:
    site = table.parent / "site"
    site.mkdir()
    text = 'import os\nif os.environ.get("LOCAL_RANK") == "1":\n    os._exit(3)\n'
    (site / "sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    said = refused(
        "fine-tune", "--backbone", "esm2_tiny", "--data", str(table),
        "--output", str(table.parent / "run"), PYTHONPATH=path,
    )  # fmt: skip
    assert "Process 1 ended with code 3 before it had joined; the others too." in said
