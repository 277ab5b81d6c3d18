"""``molfun score``: two files, two folders, tables, refusals."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from made_structures import SEQUENCE, chain, joined, moved, written


def test_the_command(
    molfun: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reference = joined(chain(SEQUENCE), chain("GSHMKKLLPTAAAGLLLLAAQPAMA", at=(9, 0, 0), seed=3))
    written(reference, Path("ref.pdb"))
    written(moved(reference, 0.5), Path("pred.pdb"))
    result = molfun("score", "pred.pdb", "ref.pdb", "--residues", "r.csv", "--output", "s.csv")
    assert result.exit_code == 0, result.output
    assert "interface A-B: dockq" in result.stdout
    lines = Path("r.csv").read_text().splitlines()
    assert lines[0] == "id,chain,residue,type,lddt_ca,lddt,ca_distance,plddt"
    assert len(lines) == 1 + len(reference)
    assert lines[1].startswith("pred,A,1,M,")
    assert lines[1].endswith(",50.0000")
    result = molfun("score", "pred.pdb", "ref.pdb", "--output", "ref.pdb", "--overwrite")
    assert "ref.pdb would be written and is the file of REFERENCE" in result.stderr
    for folder in ("preds", "refs"):
        Path(folder).mkdir()
    for name in ("a", "b"):
        shutil.copy("pred.pdb", f"preds/{name}.pdb")
        shutil.copy("ref.pdb", f"refs/{name}.pdb")
    shutil.copy("pred.pdb", "preds/c.pdb")
    written(chain("G" * 30), Path("refs/b.pdb"))
    result = molfun("score", "preds", "refs", "--output", "all.csv")
    # what could be scored is written, and the command says that it is not all
    assert result.exit_code == 1
    assert "1 of 2 structures not scored: b." in " ".join(result.stderr.split())
    assert re.search(r"^ *id +lddt_ca +lddt +tm_score", result.stdout, re.MULTILINE)
    assert "No reference for 1 structure: c" in result.stdout
    assert "b is left out: b and b have no chain in common" in result.stderr
    assert [row.split(",")[0] for row in Path("all.csv").read_text().splitlines()] == ["id", "a"]
    assert molfun("score", "preds", "ref.pdb").exit_code == 1
    assert "nothere does not exist." in molfun("score", "nothere", "refs").output


def test_packed_files_and_numbered_folders(
    molfun: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that ``molfun fold`` reads and writes is scored, or said to be left out."""
    monkeypatch.chdir(tmp_path)
    reference = chain(SEQUENCE)
    for folder in ("refs", "folded/00000-of-00002", "folded/00001-of-00002"):
        Path(folder).mkdir(parents=True)
    for name in ("one", "two", "un1", "un2", "un3", "un4"):
        text = written(reference, Path("ref.pdb")).read_text()
        Path(f"refs/{name}.ent.gz").write_bytes(gzip.compress(text.encode()))
    written(moved(reference, 0.5), Path("folded/00000-of-00002/one.pdb"))
    written(moved(reference, 0.5), Path("folded/00001-of-00002/TWO.pdb"))
    result = molfun("score", "folded", "refs", "--output", "all.csv")
    assert result.exit_code == 0, result.output
    assert "No prediction for 4 references: un1, un2, un3\n" in result.stdout
    names = [row.split(",")[0] for row in Path("all.csv").read_text().splitlines()]
    assert names == ["id", "TWO", "one"]
    shutil.copytree("folded/00000-of-00002", "folded/00000-of-00003")
    result = molfun("score", "folded", "refs")
    assert result.exit_code == 1
    assert "one lies both in folded/00000-of-00002 and in folded/00000-of-00003." in " ".join(
        result.stderr.split()
    )
