"""Reports of runs on variants: splits side by side, baselines by the zero-shot score, heat maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from molfun.cli.main import app
from molfun.evaluation.baselines import Labelled
from molfun.evaluation.split_claims import split_results
from molfun.nn.substitutions import SubstitutionTable
from molfun.report.finished import FinishedRun
from molfun.report.numbers import DASH
from molfun.report.page import write_report
from molfun.report.sections import variant_splits, variants
from molfun.sample import Sample
from molfun.tasks import BinaryTask, RegressionTask

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQ"
SENSITIVE = np.random.default_rng(1).gamma(1.0, 1.0, len(WILD_TYPE))


def exchanges() -> dict[str, float]:
    """Labels that hang on the position, and a little on the residue."""
    noise = np.random.default_rng(2)
    found = {"WT": 1.0}
    for i, old in enumerate(WILD_TYPE):
        for new in "ADGKLPSW":
            if new != old:
                cost = SENSITIVE[i] * (2 if new == "P" else 1)
                found[f"{old}{i + 24}{new}"] = 1 - cost + noise.normal(0, 0.05)
    return found


def labelled(table: SubstitutionTable | None = None) -> Labelled:
    samples, labels = [], []
    for name, label in exchanges().items():
        text = list(WILD_TYPE)
        if name != "WT":
            text[int(name[1:-1]) - 24] = name[-1]
        samples.append(Sample(id=name, sequence="".join(text)))
        labels.append(np.array(label))
    return Labelled(samples, labels).scored(table)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through the command line, with a head that reads the score."""
    folder = tmp_path_factory.mktemp("variants")
    rows = "".join(f"{name},{label:.4f}\n" for name, label in exchanges().items())
    (folder / "mutants.csv").write_text(f"mutant,fitness\n{rows}")
    command = [
        "fine-tune", "--data", str(folder / "mutants.csv"), "--mutant-column", "mutant",
        "--target-column", "fitness", "--wild-type", WILD_TYPE, "--offset", "23",
        "--backbone", "esm2_tiny", "--head", "linear", "--strategy", "head_only",
        "--augment", "zero_shot", "--epochs", "1", "--test-frac", "0.3",
        "--output", str(folder / "run"),
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_what_a_random_split_flatters() -> None:
    """One-hot fills in known positions, and knows nothing of new ones."""
    found = split_results(labelled(), WILD_TYPE, RegressionTask(), "spearman", draws=20)
    assert (
        set(found["random"].scores) == set(found["position"].scores) == {"one_hot", "composition"}
    )
    assert found["random"].scores["one_hot"].value.value > 0.8
    assert np.isnan(found["position"].scores["one_hot"].value.value)
    assert np.isfinite(found["position"].scores["composition"].value.value)
    rows = labelled()
    turned = Labelled(rows.samples[::-1], rows.labels[::-1])
    again = split_results(turned, WILD_TYPE, RegressionTask(), "spearman", draws=20)
    assert again["random"].scores["one_hot"].value.value == pytest.approx(
        found["random"].scores["one_hot"].value.value, abs=1e-3
    )
    assert found["random"].n_train + found["random"].n_test == len(exchanges())


def test_a_score_that_knows_positions_predicts_new_ones() -> None:
    values = np.repeat(-SENSITIVE[:, None], 20, 1)
    table = SubstitutionTable(WILD_TYPE, values)
    found = split_results(labelled(table), WILD_TYPE, RegressionTask(), "spearman", draws=20)
    for split in found.values():
        assert split.scores["zero_shot"].value.value > 0.7
        assert split.scores["zero_shot"].title == "zero-shot score"
    assert found["position"].scores["one_hot_zero_shot"].value.value > 0.7


def test_splits_of_classes_and_of_mutations_everywhere() -> None:
    part = labelled()
    task = BinaryTask(classes=["dead", "alive"])
    classes = Labelled(part.samples, [np.array(float(y > 0)) for y in part.labels])
    found = split_results(classes, WILD_TYPE, task, "auroc", draws=20)
    assert found["random"].scores["one_hot"].value.value > 0.8
    pairs = [a + b for a in "ACDEFH" for b in "IKLMNP"]
    problems = []
    for texts in (pairs, [a + b for a, b in zip(pairs, pairs[::-1], strict=True)], ["GA"] * 9):
        whole = Labelled([Sample(id=t, sequence=t) for t in texts], [np.array(1.0)] * len(texts))
        wild_type = "G" * len(texts[0])
        found = split_results(whole, wild_type, RegressionTask(), "spearman", draws=20)
        problems.append([found[name].problem for name in ("random", "position")])
    assert problems == [
        ["", "there are too few positions to keep one for testing"],
        ["", "All variants would test or validate: no position is left for training"],
        [
            "Cannot split 1 groups of distinct samples into train, test: at least 2 are needed. "
            "Add samples, or leave a part out with val_frac=0 or test_frac=0",
            "1 mutated position for 2 parts: too few",
        ],
    ]


def test_the_splits_stand_side_by_side(run: Path) -> None:
    section = variant_splits.section(FinishedRun(run))
    assert section is not None
    table, *words = section.blocks
    n = len(exchanges())
    assert [name.partition(" (")[0] for name in table.header] == [
        "",
        "random split",
        "position split",
    ]
    assert table.header[1].endswith(f"of {n} test)")
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == [
        "this model, test part of this run", "ridge on one-hot", "ridge on composition and length",
        "zero-shot score", "ridge on one-hot and zero-shot score",
    ]  # fmt: skip
    assert rows["ridge on one-hot"][1] == "all equal"
    assert rows["this model, test part of this run"][1] == DASH
    texts = [block.text for block in words]
    assert texts[0].startswith("A good score under a random split says that values between")
    assert texts[1].startswith("A good score under a position split says that sites that were")
    assert "so its score allows that claim alone. Repeat it with --split position" in texts[2]


def test_the_zero_shot_score_is_a_baseline_of_the_report(run: Path) -> None:
    part = json.loads((run / "evaluation.json").read_text())["parts"]["test"]
    assert part["baselines"]["zero_shot"]["title"] == "zero-shot score"
    page = write_report(run).read_text()
    assert "ridge on one-hot and zero-shot score" in page
    assert "What the split allows to claim" in page


def test_heat_maps_of_what_was_measured_and_predicted(run: Path) -> None:
    found = FinishedRun(run)
    section = variants.section(found)
    assert section is not None
    measured, predicted, note = section.blocks
    n = len(exchanges()) - 1
    assert f"Measured: fitness, all parts, {n} single exchanges." in measured.caption
    assert "Blue is above the wild type's 1, red below." in measured.caption
    assert "never trained on (test and validation)" in predicted.caption
    assert ">24<" in measured.svg  # numbers of residues are those of the table
    assert "molfun scan" in note.text
    # cells hold the difference from the wild type
    labels = {name: label - 1 for name, label in exchanges().items()}
    values = {s.sequence or "": float(y) for s, y in zip(*_rows(), strict=True)}
    matrix = variants._matrix(WILD_TYPE, values, 1.0)
    assert matrix[1, "ACDEFGHIKLMNPQRSTVWY".index("P")] == pytest.approx(labels["K25P"])


def test_heat_maps_leave_out_positions_without_a_value(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = variants._judged

    def some(found: FinishedRun, head: Any) -> Any:
        measured, predicted, parts = whole(found, head)
        kept = [{t: v for t, v in one.items() if t[4:12] == WILD_TYPE[4:12]}
                for one in (measured, predicted)]  # fmt: skip
        return *kept, parts

    monkeypatch.setattr(variants, "_judged", some)
    monkeypatch.setattr(variants, "_of_training", lambda *_: {})
    section = variants.section(FinishedRun(run))
    assert section is not None
    assert "8 of 22 positions have no value and are left out; lines mark where." in (
        section.blocks[-1].text
    )
    assert ">36<" in section.blocks[0].svg  # the first after them


def _rows() -> tuple[list[Sample], list[np.ndarray]]:
    part = labelled()
    return list(part.samples), list(part.labels)


def test_without_the_table_what_was_judged_is_shown(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    config = tmp_path / "moved/config.yaml"
    config.write_text(config.read_text().replace("mutants.csv", "gone.csv"))
    section = variants.section(FinishedRun(tmp_path / "moved"))
    assert section is not None
    judged = {line.split(",")[0] for line in (run / "splits.csv").read_text().splitlines()[1:]
              if not line.endswith(",train")}  # fmt: skip
    n = len(judged - {"WT"})
    assert f", {n} single exchanges." in section.blocks[0].caption


def test_runs_without_variants_have_neither(tmp_path: Path) -> None:
    from finished_runs import write_run

    found = FinishedRun(write_run(tmp_path / "run"))
    assert variants.section(found) is None
    assert variant_splits.section(found) is None
