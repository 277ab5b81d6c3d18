"""The command line answers at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fine-tune", "--help"]])
def test_help_is_there_in_under_a_second(arguments: list[str]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", "molfun.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        times.append(time.perf_counter() - start)
        assert result.returncode == 0, result.stderr
    assert min(times) < 1


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from molfun.cli.main import app\n"
        "heavy = {'torch', 'openfold', 'peft', 'transformers', 'pandas', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_help_names_the_defaults() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "molfun.cli", "fine-tune", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    for text in (
        "partial, full, gradual or auto [lora]",
        "Epochs [20]",
        "cuda:N [auto]",
        "dropout [42]",
    ):
        assert text in result.stdout
