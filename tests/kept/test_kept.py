"""Runs and checkpoints of 2026-11-28 (see `make.py`) go on and predict as they did then."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from molfun.cli.main import app

HERE = Path(__file__).parent
FAMILIES = ("esm2", "openfold", "timeseries", "pet", "pretrain")
LABELED = FAMILIES[:-1]


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one family's folder, as the working directory."""
    if request.param == "openfold":
        pytest.importorskip("openfold")
    if request.param == "pet":
        pytest.importorskip("metatrain")
    folder = tmp_path / request.param
    shutil.copytree(HERE / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return result.output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_rows(found: list[dict[str, str]], expected: list[dict[str, Any]]) -> None:
    """The same texts, and numbers to four digits: processors differ in the last ones.

    Later versions add columns at the end of those that were there.
    """
    n = len(expected[0])
    assert [list(row)[:n] for row in found] == [list(row) for row in expected]
    for row, known in zip(found, expected, strict=True):
        for name, text in known.items():
            try:
                value = float(text)
            except ValueError:
                assert row[name] == text
            else:
                assert float(row[name]) == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("kept", FAMILIES, indirect=True)
def test_a_half_done_run_goes_on_to_the_same_end(kept: Path) -> None:
    expected = json.loads((kept / "end.json").read_text())
    assert len(rows(kept / "half" / "history.csv")) < len(expected["history"])
    verb = "pretrain" if kept.name == "pretrain" else "fine-tune"
    run(verb, "--config", "half/config.yaml", "--output", "half", "--resume")
    assert_rows(rows(kept / "half" / "history.csv"), expected.pop("history"))
    for name, known in expected.items():
        assert_rows(rows(kept / "half" / f"{name}.csv"), known)


@pytest.mark.parametrize("kept", LABELED, indirect=True)
def test_a_checkpoint_predicts_as_before(kept: Path) -> None:
    expected = json.loads((kept / "end.json").read_text())["predictions_test"]
    data = {"openfold": ["table.csv", "--pdbs", "pdbs"], "pet": ["atoms.xyz"],
            "esm2": ["sequences.csv"], "timeseries": ["series.csv"]}[kept.name]  # fmt: skip
    run("predict", "checkpoint", "--data", *data, "--output", "p.csv")
    found = rows(kept / "p.csv")
    key = next(iter(expected[0]))
    chosen = {row[key]: row for row in found}
    assert_rows([chosen[row[key]] for row in expected], expected)


def test_weights_of_a_pretraining_are_read(tmp_path: Path) -> None:
    options = "fine-tune --backbone timeseries --task binary --target-column label --epochs 1"
    folder = HERE / "pretrain"
    run(*options.split(), "--data", str(folder / "series.csv"), "--weights",
        str(folder / "weights.safetensors"), "--output", str(tmp_path / "r"))  # fmt: skip
    assert (tmp_path / "r" / "checkpoint" / "meta.json").exists()
