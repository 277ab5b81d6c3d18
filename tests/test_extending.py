"""A package made of the code in docs/extending.md keeps the contracts and works everywhere."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import warm
from toy_package import PAGE, write_toy_package

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and a table of counts."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_package(folder)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACDEFGHIKL"), 5 + i % 4)) for i in range(12)]
    rows = [f"{text},{text.count('A') + 2 * i}" for i, text in enumerate(texts)]
    peptides = [f"{text} {1 + i}.5" for i, text in enumerate(texts)]
    (folder / "ic50.pep").write_text("\n".join(peptides) + "\n")
    (folder / "counts.csv").write_text("\n".join(["sequence,target", *rows, ""]))
    return folder


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = warm.run("-m", *command, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_parts_keep_their_contracts(package: Path) -> None:
    # a warm process has imported plug-ins of pytest before pytest could rewrite them
    quiet = ("-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    said = run(package, "pytest", "-q", "-p", "no:cacheprovider", *quiet, "tests")
    assert re.search(r"\d+ passed", said)


def test_they_work_on_the_command_line(package: Path) -> None:
    for line in re.findall(r"^molfun (.+)$", PAGE, re.MULTILINE):
        run(package, "molfun.cli", *line.split())
    assert (package / "runs/toy/checkpoint/meta.json").is_file()
    assert (package / "runs/peptides/checkpoint/meta.json").is_file()
    found = json.loads((package / "runs/toy/evaluation.json").read_text())
    (part,) = [part for part in found["parts"].values() if "letter" in part["baselines"]][:1]
    assert part["baselines"]["letter"]["title"] == "ridge on the number of A"


def test_they_work_in_python(package: Path) -> None:
    run(package, "use")
    assert (package / "runs/python/checkpoint").is_dir()
