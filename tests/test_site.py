"""The site is built strictly, and its notebooks run."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.py"))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """No broken link, no page outside the navigation, no public name without its place."""
    pytest.importorskip("mkdocstrings", reason="make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for package in ("molfun", "molfun.data", "molfun.training", "molfun.backbones"):
        page = (tmp_path / "reference" / package / "index.html").read_text()
        for name in set(importlib.import_module(package).__all__) - {"__version__"}:
            assert f".{name}" in page, (package, name)


@pytest.mark.slow
@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(source: Path, tmp_path: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="pip install 'molfun[notebooks]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'molfun[notebooks]'")
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        client = nbclient.NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not [out for out in outputs if out.get("name") == "stderr" and "Error" in out["text"]]
