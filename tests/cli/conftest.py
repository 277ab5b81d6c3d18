"""A small project of a user, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from Bio.Data import PDBData
from click.testing import Result
from pdb_text import pdb_chain
from typer.testing import CliRunner

from molfun.cli.main import app

RESIDUES = list(PDBData.protein_letters_1to3.values())
N_SAMPLES = 10


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``data.csv`` with ten rows and ``pdbs/`` with their structures, in the current folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "pdbs").mkdir()
    rows = ["pdb_id,affinity,year"]
    for i in range(N_SAMPLES):
        chain = pdb_chain([name.upper() for name in rng.choice(RESIDUES, 6 + i % 4)])
        (tmp_path / "pdbs" / f"s{i:03d}.pdb").write_text("\n".join([*chain, "END", ""]))
        rows.append(f"s{i:03d},{6 + rng.normal():.3f},{2010 + i}")
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def molfun() -> Callable[..., Result]:
    """Run a command: ``molfun("fine-tune", "--demo")``."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def train(molfun: Callable[..., Result], project: Path) -> Callable[..., Result]:
    """Fine-tune the tiny trunk on the project: ``train("--strategy", "lora")``.

    No report is drawn: tests of reports call ``molfun`` or pass ``--report``.
    """

    def run(*arguments: object) -> Result:
        return molfun(
            "fine-tune", "--data", "data.csv", "--pdbs", "pdbs", "--preset", "tiny", "--device",
            "cpu", "--epochs", 2, "--accum", 2, "--output", "run", "--no-report", *arguments,
        )  # fmt: skip

    return run
