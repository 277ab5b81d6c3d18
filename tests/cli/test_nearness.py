"""How far new samples are from those that a model was trained on, by flag or checkpoint alone."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from molfun.cli.training_rows import rows_of
from molfun.registry import DATASETS

Command = Callable[..., Result]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def table(path: str, rows: list[str]) -> None:
    lines = [f"p{i},{text},{i % 7}" for i, text in enumerate(rows)]
    Path(path).write_text("\n".join(["id,sequence,target", *lines, ""]))


@pytest.fixture
def parents(molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training sequences of the run in ``run/``."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    family = "".join(rng.choices(LETTERS, k=50))
    rows = [family[:i] + LETTERS[i % 20] + family[i + 1 :] for i in range(0, 40, 2)]
    table("data.csv", rows)
    done = molfun(
        "fine-tune", "--backbone", "esm2_tiny", "--data", "data.csv", "--id-column", "id",
        "--strategy", "head_only", "--epochs", 1, "--device", "cpu", "--output", "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with Path("run/splits.csv").open() as file:
        part = {row["id"]: row["split"] for row in csv.DictReader(file)}
    return [text for i, text in enumerate(rows) if part[f"p{i}"] == "train"]


@pytest.mark.parametrize("source", ["run", "data.csv"])
def test_the_nearest_training_sequence_is_a_column(
    molfun: Command, parents: list[str], source: str
) -> None:
    close = "W" + parents[3][1:]
    table("new.csv", [parents[0], close, "W" * 50])
    done = molfun(
        "predict", "run/checkpoint", "--data", "new.csv", "--device", "cpu", "--training-data",
        source,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Of 3 samples, 1 have a sequence of the training set, and 1 more are at" in done.output
    # one sample is like no validation sample; a table alone does not tell which these are
    below = "1 sample of 3 less similar to the training set than any validation sample"
    assert (below in done.output) == (source == "run")
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["identity"]) for row in rows] == [1.0, 0.98, 0.0]
    assert rows[2]["nearest_id"] == ""
    texts = {}
    with Path("data.csv").open() as file:
        texts = {row["id"]: row["sequence"] for row in csv.DictReader(file)}
    assert texts[rows[0]["nearest_id"]] == parents[0]


def test_evaluate_counts_rows_of_the_training_set(molfun: Command, parents: list[str]) -> None:
    done = molfun(
        "evaluate", "run/checkpoint", "--data", "data.csv", "--device", "cpu", "--training-data",
        "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"Of 20 samples, {len(parents)} have a sequence of the training set, and" in done.output


def test_evaluate_compares_with_baselines_where_the_training_rows_are_known(
    molfun: Command, parents: list[str]
) -> None:
    with Path("run/splits.csv").open() as file:
        n_train = sum(row["split"] == "train" for row in csv.DictReader(file))
    table("new.csv", ["W" + parent[1:] for parent in parents[:6]])
    command = ("evaluate", "run/checkpoint", "--data", "new.csv", "--device", "cpu")
    done = molfun(*command, "--output", "e.json")
    assert done.exit_code == 0, done.output
    assert "nothing can be concluded from 6 samples" in done.output
    scores = json.loads(Path("e.json").read_text())
    labels = [i % 7 for i in range(20)]
    with Path("data.csv").open() as file:
        known = {row["sequence"]: float(row["target"]) for row in csv.DictReader(file)}
    mean = sum(known[parent] for parent in parents) / n_train
    expected = (sum((label - mean) ** 2 for label in labels[:6]) / 6) ** 0.5
    assert scores["baseline/mean/rmse"] == pytest.approx(expected)
    assert scores["verdict"] in done.output

    without = molfun(*command, "--no-baselines")
    assert "erdict" not in without.output
    assert "baselines" not in without.output
    shutil.copytree("run/checkpoint", "elsewhere/x")
    command = ("evaluate", "elsewhere/x", "--data", "new.csv", "--device", "cpu")
    lost = molfun(*command)
    assert lost.exit_code == 0, lost.output
    assert "Not compared with baselines: elsewhere/x is not in the folder of" in lost.output
    named = molfun(*command, "--training-data", "data.csv")
    assert "Verdict: " in named.output
    Path("data.csv").unlink()
    moved = molfun("evaluate", "run/checkpoint", "--data", "new.csv", "--device", "cpu")
    assert moved.exit_code == 0, moved.output
    assert "Not compared with baselines: data.csv does not exist." in moved.output


def test_files_of_their_own_may_repeat_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without ids are numbered in each file: those of the test file are other samples."""
    monkeypatch.chdir(tmp_path)
    texts = {"data": ["MKVA", "MKVC", "MKVD"], "val": ["MKWA"], "test": ["MKYA", "MKYC"]}
    for name, rows in texts.items():
        (tmp_path / f"{name}.csv").write_text(
            "\n".join(["sequence,target", *(f"{t},1" for t in rows)])
        )
    (tmp_path / "config.yaml").write_text("data: data.csv\nval: val.csv\ntest: test.csv\n")
    parts = {"train": 3, "val": 1, "test": 2}
    lines = [f"seq_{i + 1},{part}" for part, n in parts.items() for i in range(n)]
    (tmp_path / "splits.csv").write_text("\n".join(["id,split", *lines, ""]))
    found = rows_of(tmp_path, DATASETS["sequences"](), {}, {}, labels=True)
    assert [s.sequence for s in found.train] == texts["data"]
    assert found.validation is not None
    assert [s.sequence for s in found.validation] == texts["val"]
    (tmp_path / "val.csv").unlink()
    found = rows_of(tmp_path, DATASETS["sequences"](), {}, {}, labels=True)
    assert len(found.train) == 3
    assert found.validation is None


def test_what_is_no_training_set_is_refused(molfun: Command, parents: list[str]) -> None:
    done = molfun(
        "predict", "run/checkpoint", "--data", "data.csv", "--training-data", "run/checkpoint"
    )
    assert "run/checkpoint is not the folder of a run: config.yaml is missing" in done.output


def test_a_checkpoint_alone_tells_how_far_rows_are(
    molfun: Command, parents: list[str], tmp_path: Path
) -> None:
    Path("run/checkpoint").rename("alone")
    shutil.rmtree("run")
    rng = random.Random(1)
    table("new.csv", [parents[0], "W" + parents[3][1:], "".join(rng.choices(LETTERS, k=50))])
    done = molfun(
        "predict", "alone", "--data", "new.csv", "--id-column", "id", "--device", "cpu"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for text in (
        "Of 3 samples, 1 have a sequence of the training set, and 1 more are at least 95% "
        "identical to one (identities estimated from the checkpoint).",
        "1 sample of 3 less similar to the training set than any validation sample (identity bel",
        "2 samples of 3 with the id of a training sample and another sequence: check that these",
        "1 sample of 3 farther from the training set in the model's representation than any valid",
    ):
        assert text in done.output
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["nearest_id"] for row in rows] == ["row 1", "row 4", ""]
    identities = [float(row["identity"]) for row in rows]
    assert identities == [1.0, pytest.approx(0.98, abs=0.02), 0.0]
    distances = [float(row["distance"]) for row in rows]
    assert distances[0] < distances[1] < distances[2]
    done = molfun("evaluate", "alone", "--data", "new.csv", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "1 more are at least 95%" in done.output
    assert "farther from the training" in done.output
