"""The report of predicted structures: table, 3D views by pLDDT, predicted aligned errors."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_structures import SEQUENCE, chain, joined
from typer.testing import CliRunner

from molfun.cli.main import app
from molfun.errors import RunError
from molfun.report import folds
from molfun.report.folds import MOST_ROWS, is_folds, write_fold_report
from molfun.structures.files import SUMMARY, read_row, write_structure, write_summary
from molfun.structures.folded import ALONE, FoldedStructure, Maker
from molfun.structures.ranking import ranked


def folded(name: str, level: float, **changes: Any) -> FoldedStructure:
    protein = joined(chain(SEQUENCE[:12]), chain(SEQUENCE[:8], at=(15, 0, 0)))
    n = len(protein)
    given: dict[str, Any] = {
        "id": name,
        "protein": protein,
        "plddt": np.linspace(level - 10, level + 10, n).astype(np.float32),
        "pae": np.full((n, n), 5.0, np.float32),
        "max_pae": 31.75,
        "ptm": 0.6,
        "iptm": 0.4,
        "recycles": 3,
        "notes": (ALONE,),
        "maker": Maker(
            model="OpenFold model_1_ptm", software={"openfold": "0.0.1"}, weights="w.pt"
        ),
    }
    return FoldedStructure(**{**given, **changes})


def write(folder: Path, *structures: FoldedStructure, **absent: Any) -> Path:
    rows = []
    for one in structures:
        write_structure(one, folder, plots=False)
        rows.append(read_row(folder, one.id))
    write_summary([*rows, *([absent] if absent else [])], folder / SUMMARY)
    return folder


def models(text: str) -> list[str]:
    """Return the coordinates in a page, one PDB file per view."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return [json.loads(one) for one in found]


def test_a_folder_of_folds(tmp_path: Path) -> None:
    single = folded("<b>one</b>", 80, iptm=None, pae=None, ptm=None, max_pae=None)
    absent = {"id": "giant", "length": 3000, "chains": 1, "notes": ["not folded: too large"]}
    folder = write(tmp_path / "out", folded("pair", 60), single, **absent)
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    text = (folder / "report.html").read_text()
    assert "out: 3 predicted structures" in text
    assert "<b>one" not in text
    assert "Note on 2 of 3: made from a single sequence" in text
    assert "Note on 1 of 3: not folded: too large." in text
    assert "OpenFold model_1_ptm, weights w.pt." in text
    assert text.index(">&lt;b&gt;one&lt;/b&gt;<") < text.index(">pair<") < text.index(">giant<")
    # the B-factor, which is the colour, is the pLDDT of the residue
    views = models(text)
    assert text.count('data-mode="plddt"') == len(views) == 2
    factors = {float(line[60:66]) for line in views[0].splitlines() if line.startswith("ATOM")}
    assert sorted(factors) == pytest.approx(single.plddt.tolist(), abs=6e-3)
    # two figures with an aligned error, one without; nothing is loaded
    assert text.count("<svg") == 3
    assert "pTM 0.6, ipTM 0.4" in text
    outside = [a for a in re.findall(r'(?:src|href)="([^"]*)"', text) if a[0] != "#"]
    assert all(address.startswith("data:image/png;base64,") for address in outside)


def test_structures_of_an_ensemble_and_in_shards(tmp_path: Path) -> None:
    one = folded("pair", 60)
    protein = dataclasses.replace(
        one.protein, atom_positions=one.protein.atom_positions * np.float32(1.1)
    )
    both = ranked({1: one, 2: dataclasses.replace(one, protein=protein, iptm=0.7)}, of=2)
    write(tmp_path / "00000-of-00001", both)
    write_summary([read_row(tmp_path / "00000-of-00001", "pair")], tmp_path / SUMMARY)
    text = write_fold_report(tmp_path).read_text()
    assert "member 2 of 2" in text
    assert "spread (Å)" in text
    assert "its distance from the other models" in text
    assert len(models(text)) == 1


def test_many_structures_and_damaged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "SHOWN", 2)
    folder = write(tmp_path, *(folded(f"s{i}", 50 + i, iptm=None) for i in range(4)))
    (folder / "s3_confidence.json").write_text("{")
    rows = (folder / SUMMARY).read_text().splitlines()
    more = [rows[-1].replace("s0,", f"x{i},", 1) for i in range(MOST_ROWS)]
    (folder / SUMMARY).write_text("\n".join([*rows, *more]) + "\n")
    text = write_fold_report(folder).read_text()
    assert len(models(text)) == 2
    assert text.index("s2: pLDDT") < text.index("s1: pLDDT")
    assert "s3: pLDDT" not in text
    assert "and 4 more in summary.csv" in text


def test_other_folders_are_none(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text("id,score\na,1\n")
    assert not is_folds(tmp_path)
    with pytest.raises(RunError, match=r"holds no summary\.csv of predicted structures"):
        write_fold_report(tmp_path)
