"""The package that docs/extending.md builds, as files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text()
FILES = re.compile(r"```(?:python|toml|yaml)\n# (\S+\.\w+)(?: \(continued\))?\n(.*?)```", re.DOTALL)


def write_toy_package(folder: Path) -> dict[str, dict[str, str]]:
    """Write the files of the page, installed as pip would: with entry points; and give these."""
    for name, code in FILES.findall(PAGE):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((path.read_text() if path.is_file() else "") + code)
    (folder / "toy_molfun/__init__.py").touch()
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"toy_molfun-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return project["entry-points"]
