"""``molfun compare``: common samples, paired intervals, one table and one page."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import MATHS, SCRIPT, write_run
from typer.testing import CliRunner

from molfun.cli.main import app
from molfun.errors import ConfigError, DataError
from molfun.report import compare_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs on the same samples: the second is worse, the third equals the first."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / name, shift=shift) for name, shift in (("a", 0), ("b", 4), ("same", 0))
    ]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws than users get, whose intervals nobody reads here."""
    monkeypatch.setattr("molfun.report.paired.DRAWS", 60)
    monkeypatch.setattr("molfun.report.paired.FEW_DRAWS", 20)


def _edit(run: Path, change: dict[str, str], *, keep: int | None = None) -> None:
    path = run / "predictions_test.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))[:keep]
    rows[-1].update(change)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_differences_are_paired(runs: list[Path]) -> None:
    (found,) = compare_runs(runs)
    assert (found.names, found.n, found.left_out) == (["a", "b", "same"], 40, 0)
    assert (found.main, found.higher_is_better) == ("spearman", True)
    # unpaired, two equal models would differ by chance
    assert vars(found.better[2]) == {"value": 0, "low": 0, "high": 0}
    # a shift of all predictions keeps their order but for the three that were set
    rmse = [one.value for one in found.metrics["rmse"]]
    assert rmse[1] > rmse[0] + 1
    assert found.metrics["rmse"][0].low < rmse[0] < found.metrics["rmse"][0].high


def test_only_common_samples_count(runs: list[Path], tmp_path: Path) -> None:
    fewer = write_run(tmp_path / "fewer")
    _edit(fewer, {}, keep=25)
    (found,) = compare_runs([runs[0], fewer])
    assert (found.n, found.left_out) == (25, 15)


def test_other_labels_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    _edit(other, {MATHS: "9.5"})
    with pytest.raises(DataError, match="different labels for 1 of their common"):
        compare_runs([runs[0], other])


def test_runs_without_a_common_sample_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", n=4)
    _edit(other, {"id": "new"}, keep=1)
    with pytest.raises(DataError, match="share no sample of the test part"):
        compare_runs([runs[0], other])


def test_other_tasks_and_a_single_run_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two runs"):
        compare_runs(runs[:1])
    other = write_run(tmp_path / "other")
    meta = other / "checkpoint/meta.json"
    meta.write_text(meta.read_text().replace('"regression"', '"binary"'))
    with pytest.raises(ConfigError, match="no task in common"):
        compare_runs([runs[0], other])


def test_the_command_prints_a_table_and_writes_a_page(runs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out.html"
    arguments = ["compare", *map(str, runs[:2]), "--output", str(output)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].endswith("(regression), 40 common samples of the test part:")
    assert re.match(r"run +Spearman +better than a by +RMSE", lines[1])
    assert re.match(r"b +-?0\.\d+ \[\S+, \S+\] +-?\S+ \[\S+, \S+\] ", lines[3])
    text = output.read_text(encoding="utf-8")
    assert "Settings that differ" not in text
    assert SCRIPT not in text
    assert "default-src &#39;none&#39;" in text
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "Replace with --overwrite" in again.output


def test_classes_of_residues_and_samples(family: tuple[str, Path]) -> None:
    name, run = family
    found = compare_runs([run, run])
    mains = {"sequences": "auroc", "residues": "accuracy", "series": "auroc"}
    assert found[0].main == mains.get(name, "spearman")
    assert found[0].better[1].value == 0
    if name == "atoms":
        forces = found[1]
        assert (forces.main, forces.higher_is_better) == ("forces_mae", False)
        assert forces.head.target == "forces of energy"
        assert vars(forces.better[1]) == {"value": 0, "low": 0, "high": 0}
        part = json.loads((run / "evaluation.json").read_text())["parts"][found[0].part]
        expected = part["metrics"]["forces_mae"]["value"]
        assert forces.metrics["forces_mae"][0].value == pytest.approx(expected, rel=1e-3)


def _other_run(folder: Path, task: dict[str, Any], rows: list[list[str]], header: str) -> Path:
    write_run(folder)
    path = folder / "checkpoint/meta.json"
    meta = json.loads(path.read_text())
    meta |= {"task": task, "data": {"kind": "sequences", "target_column": "label"}}
    path.write_text(json.dumps(meta))
    text = "\n".join([header, *(",".join(row) for row in rows)])
    (folder / "predictions_test.csv").write_text(text + "\n")
    return folder


def test_labels_with_several_classes(tmp_path: Path) -> None:
    task = {"name": "multilabel", "config": {}, "state": {"classes": ["x", "y"]}}
    labels = ["x", "y", "x;y", "y", "", "x"]
    truth = [("1", "0"), ("0", "1"), ("1", "1"), ("0", "1"), ("0.5", "0.5"), ("1", "0")]
    header = "id,label,prediction,prob_x,prob_y"
    good = [[f"s{i}", a, "", *p] for i, (a, p) in enumerate(zip(labels, truth, strict=True))]
    bad = [[*row[:3], row[4], row[3]] for row in good]
    runs = [_other_run(tmp_path / n, task, r, header) for n, r in (("a", good), ("b", bad))]
    (found,) = compare_runs(runs)
    assert (found.main, found.higher_is_better, found.n) == ("f1", True, 6)
    assert [one.value for one in found.metrics["f1"]] == pytest.approx([1, 1 / 3], abs=0.1)
    assert found.better[1].value < -0.5


def test_contacts_count_pairs_that_are_apart(tmp_path: Path) -> None:
    task = {"name": "contact", "config": {"min_separation": 2, "level": "pair"}, "state": {}}
    label, right = np.zeros((4, 4)), np.full((4, 4), 0.1)
    label[0, 3] = label[3, 0] = label[0, 1] = label[1, 0] = 1
    right[0, 3] = right[3, 0] = 0.9  # the near pair is wrong, and does not count
    wrong = 1 - right

    def rows(predicted: np.ndarray) -> list[list[str]]:
        cells = [" ".join(map(str, a.reshape(-1).tolist())) for a in (label, predicted)]
        return [[f"s{i}", *cells] for i in range(5)]

    runs = [
        _other_run(tmp_path / n, task, rows(p), "id,label,prediction")
        for n, p in (("a", right), ("b", wrong))
    ]
    (found,) = compare_runs(runs)
    assert found.main == "precision_at_n"
    assert [one.value for one in found.metrics["precision_at_n"]] == [1.0, 0.0]
    assert [one.value for one in found.metrics["auroc"]] == [1.0, 0.0]
