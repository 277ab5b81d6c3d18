"""Versions and places of Molfun and Python."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from molfun import __version__
from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding

OLDEST = (3, 11)
"""Oldest version that pyproject.toml allows."""


def check(context: Context) -> Iterator[Finding]:  # noqa: ARG001
    """Name version and folder of Molfun, and of Python and the system."""
    here = Path(__file__).parents[2]
    facts = {"version": __version__, "folder": str(here)}
    yield Finding(status="OK", topic="Molfun", text=f"{__version__} in {here}", facts=facts)
    version = platform.python_version()
    in_venv = sys.prefix != sys.base_prefix
    facts = {"version": version, "executable": sys.executable, "platform": platform.platform()}
    where = f"{sys.executable}{'' if in_venv else ' (no virtual environment)'}"
    old = sys.version_info[:2] < OLDEST
    yield Finding(
        status="FAILED" if old else "OK",
        topic="Python",
        text=f"{version}, {where}, {platform.platform()}",
        remedy=f"Use Python {OLDEST[0]}.{OLDEST[1]} or newer." if old else "",
        facts=facts,
    )
