"""Small files for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pdb_text import pdb_chain


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write text, lines or bytes to a file and give its path."""

    def write_file(name: str, content: str | bytes | list[str]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "\n".join(content) + "\n"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def complexes(tmp_path: Path) -> Path:
    """Four structures and their table: ``data.csv`` and ``pdbs/``."""
    (tmp_path / "pdbs").mkdir()
    chains = {
        "1aaa": "ALA GLY SER THR VAL LEU",
        "2bbb": "TRP TRP PHE PHE TYR TYR",
        "3CCC": "LYS ARG GLU ASP LYS ARG",
        "4ddd": "PRO PRO GLY GLY PRO GLY",
    }
    for name, residues in chains.items():
        text = "\n".join([*pdb_chain(residues), "END", ""])
        (tmp_path / "pdbs" / f"{name}.pdb").write_text(text)
    rows = ["pdb_id,affinity,year,resolution,family"]
    rows += ["1aaa,6.5,2012,1.9,kinase", "2bbb,7.5,2015,2.4,protease"]
    rows += ["3ccc,4.5,2018,3.1,kinase", "4ddd,9.0,2020,,lectin"]
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    return tmp_path
