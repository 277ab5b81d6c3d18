"""``molfun cv`` as a user meets it."""

from __future__ import annotations

import csv
import html
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

Command = Callable[..., Result]
SEQUENCES = [f"MK{a}{b}LAW" for a in "ACDEF" for b in "LKIV"]
FAMILIES = ["abcd"[i // 5] for i in range(20)]


@pytest.fixture
def cv(molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Cross-validate a tiny ESM-2 on a table: ``cv("--folds", 2)``."""
    monkeypatch.chdir(tmp_path)
    pairs = enumerate(zip(SEQUENCES, FAMILIES, strict=True))
    rows = [f"{s},{i % 7},{f},{i / 7}" for i, (s, f) in pairs]
    Path("data.csv").write_text("\n".join(["sequence,target,family,x", *rows, ""]))
    return lambda *arguments: molfun(
        "cv", "--backbone", "esm2_tiny", "--data", "data.csv", "--device", "cpu", "--epochs", 2,
        "--strategy", "head_only", "--output", "cv", *arguments,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _few_draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No intervals of the 20 samples, which most tests here do not look at."""
    if "intervals" not in request.fixturenames:
        monkeypatch.setattr("molfun.evaluation.verdict.FEWEST", len(SEQUENCES) + 1)


@pytest.fixture
def intervals() -> None:
    """Verdicts have intervals in this test."""


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_folds_are_trained_tested_and_resumed(cv: Command, molfun: Command) -> None:
    done = cv("--folds", 2, "--repeats", 2)
    assert done.exit_code == 0, done.output
    assert "Data: 20 samples, 2 folds by random, 2 times" in done.output
    assert "repeat_1_fold_1: 9 train / 1 val / 10 test" in done.output
    lines = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if line.strip()}
    assert lines["fold"][:3] == ["test", "epoch", "rmse"]
    folds = rows_of("cv/folds.csv")
    assert [row["fold"] for row in folds][1:3] == ["repeat_1_fold_2", "repeat_2_fold_1"]
    found = json.loads(Path("cv/cv.json").read_text())
    assert (found["format"], found["n"], found["n_folds"], found["repeats"]) == (1, 20, 2, 2)
    mean = sum(float(row["rmse"]) for row in folds) / 4
    rmse = found["metrics"]["rmse"]
    assert rmse["value"] == pytest.approx(mean)
    assert rmse["low"] < mean < rmse["high"]
    assert lines["mean"][0] == f"{mean:.3g}"
    assert lines["all"][0] == "20"
    predictions = rows_of("cv/out_of_fold.csv")
    assert [row["sequence"] for row in predictions] == SEQUENCES
    assert all(float(row["prediction"]) for row in predictions)
    assert all(row["fold"].count(";") == 1 for row in predictions)
    config = yaml.safe_load(Path("cv/repeat_1_fold_1/config.yaml").read_text())
    assert (config["folds"], config["strategy"]) == (2, "head_only")
    assert Path("cv/repeat_2_fold_2/checkpoint/manifest.json").is_file()

    refused = cv("--folds", 2, "--repeats", 2)
    assert refused.exit_code == 1
    assert "cv already holds a cross-validation. Continue it with resume=True" in refused.output
    names = ("out_of_fold.csv", "folds.csv", "evaluation.json")
    texts = [Path(f"cv/{name}").read_text() for name in names]
    resumed = molfun("cv", "--resume", "--output", "cv")
    assert resumed.exit_code == 0, resumed.output
    assert "train /" not in resumed.output
    assert [Path(f"cv/{name}").read_text() for name in names] == texts
    other = molfun("cv", "--resume", "--output", "cv", "--epochs", 3)
    assert "holds a cross-validation with other settings or data:\n  options" in other.output
    again = cv("--folds", 2, "--overwrite")
    assert again.exit_code == 0, again.output
    assert not Path("cv/repeat_1_fold_1").exists()


def test_the_folds_have_one_verdict_against_baselines_of_each(
    cv: Command, molfun: Command, reports: None, intervals: None
) -> None:
    done = cv("--folds", 2, "--metrics-by", "family")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("Verdict: ")]
    found = json.loads(Path("cv/evaluation.json").read_text())
    assert found["verdict"] == line.removeprefix("Verdict: ")
    assert " on 20 out-of-fold rows of 2 folds (random backbone weights); " in line
    assert (found["part"], found["random_weights"]) == ("out_of_fold", True)
    part = found["parts"]["out_of_fold"]
    assert {name: group["n"] for name, group in part["groups"]["family"].items()} == dict.fromkeys(
        "abcd", 5
    )
    assert part["metrics"]["rmse"]["low"] < part["metrics"]["rmse"]["high"]
    assert {"mean", "composition", "one_hot", "neighbour"} <= part["baselines"].keys()
    # the baseline predicts each row by the mean of the rows that trained its fold
    label = dict(zip(SEQUENCES, [i % 7 for i in range(20)], strict=True))
    squares = []
    for fold in ("fold_1", "fold_2"):
        splits = rows_of(f"cv/{fold}/splits.csv")
        known = {row["id"]: row["sequence"] for row in rows_of("cv/out_of_fold.csv")}
        parts = {row["id"]: row["split"] for row in splits}
        train = [label[known[i]] for i in parts if parts[i] == "train"]
        mean = sum(train) / len(train)
        squares += [(label[known[i]] - mean) ** 2 for i in parts if parts[i] == "test"]
    rmse = part["baselines"]["mean"]["metrics"]["rmse"]["value"]
    assert rmse == pytest.approx((sum(squares) / 20) ** 0.5)

    report = Path("cv/report.html").read_text()
    titles = ("Results", "Baselines", "Folds", "Predictions against labels", "Settings", "Origin")
    assert all(f">{title}</h2>" in report for title in titles)
    assert html.escape(found["verdict"], quote=False) in report
    assert "molfun cv --config cv/config.yaml --output cv-again" in report
    assert len(report) < 2 * 2**20
    Path("cv/report.html").unlink()
    assert molfun("report", "cv").exit_code == 0
    assert Path("cv/report.html").read_text() == report


def test_intervals_draw_whole_groups_of_the_split(cv: Command) -> None:
    done = cv("--split", "group", "--group-column", "family", "--folds", 2, "--no-report")
    assert "nothing can be concluded from 4 independent groups." in done.output
    assert not Path("cv/report.html").exists()


def test_all_folds_predict_together(cv: Command, molfun: Command) -> None:
    assert cv("--folds", 2).exit_code == 0
    command = ("predict", "cv/ensemble", "--data", "data.csv", "--output", "new.csv")
    done = molfun(*command, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "Ensemble of 2 models" in done.output
    assert "of 20 samples were in the training set of the model" in done.output
    assert all(float(row["std"]) >= 0 for row in rows_of("new.csv"))
    done = molfun(*command, "--device", "cpu", "--overwrite", "--coverage", 0.8)
    assert done.exit_code == 0, done.output
    errors = sorted(
        abs(float(row["prediction"]) - float(row["target"]))
        for row in rows_of("cv/out_of_fold.csv")
    )
    for row in rows_of("new.csv"):
        half = float(row["upper"]) - float(row["prediction"])
        assert half == pytest.approx(float(row["prediction"]) - float(row["lower"]))
        # 80 % of 21 places: the 17th error of 20, or one more by rounding
        assert any(half == pytest.approx(error) for error in errors[16:18])
    few = molfun(*command, "--device", "cpu", "--overwrite", "--coverage", 0.99)
    assert "20 out-of-fold predictions are too few for intervals of 99%" in few.output
    single = molfun(
        "predict", "cv/fold_1/checkpoint", "--data", "data.csv", "--output", "s.csv",
        "--coverage", 0.9,
    )  # fmt: skip
    assert "cv/fold_1/checkpoint is a single model. Run molfun cv" in single.output
    done = molfun("evaluate", "cv/ensemble", "--data", "data.csv", "--output", "scores.json")
    assert done.exit_code == 0, done.output
    scores = json.loads(Path("scores.json").read_text())
    squares = [(float(row["prediction"]) - float(row["target"])) ** 2 for row in rows_of("new.csv")]
    assert scores["rmse"] == pytest.approx((sum(squares) / 20) ** 0.5)
    assert "  member_2: rmse=" in done.output
    assert scores["member_2/rmse"] > 0
    # a row may have chosen the epoch of one fold and been tested by the other
    assert "Verdict: " in done.output
    assert scores["verdict"].endswith(
        "18 of 20 rows trained the model, so this is no test of new ones and no baseline is fitted."
    )
    refused = molfun("export", "cv/ensemble", "x.pt")
    assert "is an ensemble, which molfun predict and evaluate take. Here give" in refused.output


def test_classes_have_sets_and_a_reliability_diagram(molfun: Command, cv: Command) -> None:
    rows = [f"{s},{'yes' if i % 3 else 'no'}" for i, s in enumerate(SEQUENCES)]
    Path("data.csv").write_text("\n".join(["sequence,target", *rows, ""]))
    done = cv("--folds", 2, "--task", "binary")
    assert "Data: 20 samples, 2 stratified folds by random" in done.output
    tested = [(row["fold"], row["target"]) for row in rows_of("cv/out_of_fold.csv")]
    assert sorted(Counter(tested).values()) == [3, 4, 6, 7]
    (found,) = json.loads(Path("cv/cv.json").read_text())["reliability"].values()
    assert 0 <= found["ece"] <= 1
    assert sum(found["n"]) == 20
    done = molfun(
        "predict", "cv/ensemble", "--data", "data.csv", "--output", "new.csv", "--device", "cpu",
        "--coverage", 0.5,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    new = rows_of("new.csv")
    assert {row["prediction_set"] for row in new} <= {"", "no", "yes", "no;yes"}
    assert all(float(row["std_yes"]) >= 0 for row in new)


@pytest.mark.parametrize(
    ("flags", "n_folds"),
    [
        (("--split", "group", "--group-column", "family", "--folds", 2), 2),
        (("--split", "column", "--split-column", "family"), 4),
        (("--split", "identity", "--threshold", 0.99, "--folds", 2), 2),
    ],
)
def test_what_stays_together(cv: Command, flags: tuple[object, ...], n_folds: int) -> None:
    done = cv(*flags)
    assert done.exit_code == 0, done.output
    assert len(rows_of("cv/folds.csv")) == n_folds
    if "family" in flags:
        found = {(row["family"], row["fold"]) for row in rows_of("cv/out_of_fold.csv")}
        assert len(found) == 4


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--val", "data.csv"), "folds are parts of data: leave out val and test"),
        (("--test-frac", 0.2), "each fold tests its own part: give folds in place of test_frac"),
        (("--split", "temporal"), "folds have no order in time"),
        (
            ("--split", "column", "--repeats", 2),
            "the folds of a column are as they are, once: leave out repeats",
        ),
        (("--split", "column", "--stratify"), "the folds of a column are as they are"),
        (
            ("--split", "column", "--split-column", "family", "--folds", 3),
            "--folds 3 does not go with --split column: the column 'family' names 4 folds.",
        ),
        (("--stratify", "--folds", 2, "--target-column", "x"), "labels are not one class per"),
        (("--folds", 1), "folds: Input should be greater than or equal to 2"),
        (("--folds", 30), "Cannot divide 20 groups of distinct samples into 30 folds"),
    ],
)
def test_settings_that_make_no_folds(cv: Command, flags: tuple[object, ...], text: str) -> None:
    done = cv(*flags)
    assert done.exit_code == 1
    assert text in " ".join(done.output.split())
    assert not Path("cv/plan.json").exists()


def test_two_folds_have_no_interval(cv: Command, reports: None) -> None:
    result = cv("--folds", 2)
    assert result.exit_code == 0, result.output
    assert "95 %" not in result.stdout
    assert "No interval of the mean: 2 folds say nothing of their spread." in result.stdout
    found = json.loads(Path("cv/cv.json").read_text())["metrics"]["rmse"]
    assert (found["low"], found["high"]) == (None, None)
    assert found["value"] > 0
    report = Path("cv/report.html").read_text()
    assert "Two folds give no interval of a mean." in report
    assert "mean [95 %]" not in report
