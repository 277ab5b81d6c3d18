"""The command line answers at once."""

from __future__ import annotations

import functools
import os
import resource
import subprocess
import sys

import pytest


@functools.cache
def processor_seconds(*arguments: str) -> float:
    """What a Python process takes of the processor, whatever else the machine does; best of 3."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fine-tune", "--help"]])
def test_help_takes_little_more_than_its_libraries(arguments: list[str]) -> None:
    libraries = processor_seconds("-c", "import pydantic, typer, typer.rich_utils")
    assert processor_seconds("-m", "molfun.cli", *arguments) < 4 * libraries


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
        [sys.executable, "-m", "molfun.cli", "fine-tune", "--help-all"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    for text in (
        "partial, full, gradual or auto, by sample count [auto]",
        "Epochs [20]",
        "cuda:N [auto]",
        "dropout [42]",
    ):
        assert text in result.stdout
