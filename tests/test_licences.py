"""The page of licences names everything that Molfun asks for, and the GPL where there is any."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
LINES = [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in extra)]
NAMES = sorted(
    {
        re.sub(r"[-_.]+", "-", match[0]).lower()
        for line in LINES
        if (match := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)) is not None
    }
)


@pytest.mark.parametrize("name", ["openfold", *NAMES])
def test_every_direct_dependency_is_listed(name: str) -> None:
    """`scripts/licences.py` writes the page."""
    row = re.search(rf"^\| {re.escape(name)} \| (.+) \| .+ \|$", PAGE, re.MULTILINE)
    assert row is not None
    assert row[1].strip()


@pytest.mark.parametrize("name", ["python-hostlist", "ase", "mdanalysis"])
def test_licences_that_ask_for_something_are_named_on_top(name: str) -> None:
    assert re.search(rf"^- \*\*{name}\*\*: .*GPL.*Comes with the extra `", PAGE, re.MULTILINE)


def test_torch_is_newer_than_its_known_faults_of_loading() -> None:
    """CVE-2026-24747: older versions can be made to run code by weights_only files."""
    (line,) = [line for line in PROJECT["dependencies"] if line.startswith("torch>=")]
    assert tuple(map(int, line.removeprefix("torch>=").split("."))) >= (2, 10)
