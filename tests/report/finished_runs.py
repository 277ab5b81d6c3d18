"""Folders of finished runs: one written by hand, and one through the command line per family."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pdb_text import pdb_chain
from tiny import PET_TINY, build_atoms
from typer.testing import CliRunner

from molfun.cli.main import app

SCRIPT = "<script>alert(1)</script>"
FORMULA = '=HYPERLINK("http://evil.example")'
MATHS = "$\\frac{1}{0}$ & <b>"


def interval(value: float, width: float = 0.08) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def evaluation() -> dict[str, Any]:
    baseline = {
        "title": f"ridge on one-hot {SCRIPT}",
        "metrics": {"spearman": interval(0.71234567), "rmse": interval(0.8123)},
        "difference": interval(-0.1234567),
    }
    group = {"n": 12, "metrics": {"spearman": interval(0.5)}}
    part = {
        "n": 40,
        "n_labels": 40,
        "metrics": {"spearman": interval(0.5912345), "rmse": interval(0.9), "r2": None},
        "baselines": {"one_hot": baseline},
        "groups": {"assay": {SCRIPT: group}},
    }
    part["metrics"]["r2"] = {"value": None, "low": None, "high": None}
    return {
        "format": 1,
        "verdict": f"Spearman 0.591 [0.511, 0.671] on 40 test rows {SCRIPT}",
        "outcome": "not better",
        "metric": "spearman",
        "higher_is_better": True,
        "part": "test",
        "random_weights": False,
        "parts": {"test": part},
    }


def write_run(folder: Path, *, n: int = 40, shift: float = 0.0) -> Path:
    """A run of a regression on sequences, as the command line leaves it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = rng.normal(size=n)
    predictions = labels + shift + 0.5 * rng.normal(size=n)
    ids = [f"v{i}" for i in range(n)]
    ids[:3] = [SCRIPT, FORMULA, MATHS]
    predictions[:3] = labels[:3] + 5  # the worst ones, so that they are shown
    with (folder / "predictions_test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "sequence", MATHS, "prediction", "note", "identity"])
        for i, name in enumerate(ids):
            sequence = "MKVLAGG" * (2 + i % 5)
            row = [name, sequence, labels[i], predictions[i], SCRIPT, rng.uniform(0.2, 1.0)]
            writer.writerow(row)
    (folder / "splits.csv").write_text("id,split\n" + "".join(f"{i},test\n" for i in range(n)))
    (folder / "history.csv").write_text(
        "epoch,train_loss,val_loss,lr,steps,skipped,val/rmse,val/spearman\n"
        "1,1.5,1.4,0.001,10,0,1.2,0.3\n2,1.123456789,1.01,0.0005,20,0,1.0,0.55\n"
        "3,0.9,1.2,1e-09,30,0,1.1,0.5\n"
    )
    settings = {"data": "a.csv", "split": "random", "output": "run", "seed": 1, "head": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "run.log").write_text(
        f"2026-11-29 12:00:00,000 WARNING molfun.data: {SCRIPT} has 3 blanks\n  line 2\n"
        "2026-11-29 12:00:01,000 INFO molfun.training.engine: epoch=1  train_loss=1.5\n"
        "2026-11-29 12:00:05,000 INFO molfun.training.engine: epoch=2  train_loss=1.1\n"
    )
    meta = {
        "backbone": {"name": "esm2", "weights": None, "fingerprint": "a" * 64, "config": {}},
        "head": {"name": "mlp", "config": {}},
        "task": {"name": "regression", "config": {"level": "sequence"}, "state": {}},
        "data": {"kind": "sequences", "target_column": MATHS},
        "strategy": {"name": "lora", "rank": 8, "monitor": "val/loss"},
        "format": 1, "molfun_version": "0.1.0", "result": {}, "whole_trunk": True,
    }  # fmt: skip
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/meta.json").write_text(json.dumps(meta))
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run written by hand, with names that would be code elsewhere."""
    return write_run(tmp_path_factory.mktemp("written") / "run")


def _sequences(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    lines = ["sequence,active,split"]
    for i in range(40):
        text = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 8 + i % 6))
        lines.append(f"{text},{'yes' if text.count('A') else 'no'},{('train', 'test')[i % 2]}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return ["--backbone", "esm2", "--preset", "esm2_t2_d16_h2", "--data", "data.csv",
            "--target-column", "active", "--task", "binary", "--test-frac", "0.4"]  # fmt: skip


def _residues(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    lines = ["sequence,label"]
    for i in range(14):
        letters = rng.choice(list("ACDEFGHIKL"), 90 + i)
        label = "".join("H" if c in "ACD" else "E" if c in "EFG" else "C" for c in letters)
        lines.append(f"{''.join(letters)},{label}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return ["--backbone", "esm2", "--preset", "esm2_t2_d16_h2", "--data", "data.csv", "--head",
            "conv", "--level", "residue", "--task", "multiclass", "--target-column", "label",
            "--test-frac", "0.3"]  # fmt: skip


def _structures(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    (folder / "pdbs").mkdir()
    lines = ["pdb_id,affinity"]
    for i in range(12):
        residues = list(rng.choice(["ALA", "GLY", "LEU", "LYS", "GLU", "TRP"], 10))
        text = "\n".join([*pdb_chain(residues), "END", ""])
        (folder / f"pdbs/s{i:03d}.pdb").write_text(text)
        lines.append(f"s{i:03d},{6 + rng.normal():.3f}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return ["--data", "data.csv", "--pdbs", "pdbs", "--preset", "tiny", "--test-frac", "0.4"]


def _series(folder: Path) -> list[str]:
    from molfun.data import double_well

    lines = ["id,time,x,y,target"]
    for sample in double_well(n_series=24, n_frames=(12, 20), seed=0):
        for step, frame in enumerate(sample.features["timeseries"].tolist()):
            values = ",".join(f"{v:.4f}" for v in (frame * 2)[:2])
            lines.append(f"{sample.id},{step},{values},{sample.target}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return ["--backbone", "timeseries", "--preset", "linear", "--data", "data.csv", "--task",
            "binary", "--feature-columns", "x,y", "--test-frac", "0.4"]  # fmt: skip


def _atoms(folder: Path) -> list[str]:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for sample in build_atoms(12):
        sample.atoms.calc = SinglePointCalculator(sample.atoms, **sample.target)
        frames.append(sample.atoms)
    write(folder / "data.xyz", frames, format="extxyz")
    (folder / "small.yaml").write_text(yaml.safe_dump({"backbone_config": {"config": PET_TINY}}))
    return ["--backbone", "pet", "--data", "data.xyz", "--config", "small.yaml", "--test-frac",
            "0.3"]  # fmt: skip


FAMILIES: dict[str, Callable[[Path], list[str]]] = {
    "sequences": _sequences,
    "residues": _residues,
    "structures": _structures,
    "series": _series,
    "atoms": _atoms,
}
NEEDED = {"structures": "openfold", "atoms": "metatrain"}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A finished run of each family, with the report that the command wrote."""
    if request.param in NEEDED:
        pytest.importorskip(NEEDED[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = FAMILIES[request.param](folder)
        done = CliRunner().invoke(
            app, ["fine-tune", *arguments, "--epochs", "2", "--device", "cpu", "--output", "run"]
        )
        assert done.exit_code == 0, (done.output, done.exception)
        assert "Report: run/report.html" in done.output
        yield request.param, folder / "run"
