"""Pairs of chains from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

Command = Callable[..., Result]
FAST = ("--backbone", "esm2_tiny", "--epochs", 1, "--no-report", "--output", "run")


@pytest.fixture
def table(project: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    proteins = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 30)) for _ in range(12)]
    drawn = rng.integers(0, 12, (40, 2))
    rows = {
        "name": [f"p{i}" for i in range(40)],
        "heavy": [proteins[a] for a, _ in drawn],
        "light": [proteins[b] for _, b in drawn],
        "kd": rng.normal(8, 1, 40).round(3),
        "lab": ["north"] * 40,
    }
    found = pd.DataFrame(rows)
    found.to_csv(project / "pairs.csv", index=False)
    return found


def test_pairs_are_tuned_judged_and_predicted(table: pd.DataFrame, molfun: Command) -> None:
    columns = ("--sequence-column", "heavy,light", "--id-column", "name", "--target-column", "kd")
    head = ("--head", "pair_mlp", "--strategy", "lora", "--split", "c2")
    result = molfun("fine-tune", "--data", "pairs.csv", *columns, *head, *FAST)
    assert result.exit_code == 0, result.output
    assert "(c2 split of pairs.csv)" in result.stdout
    test = pd.read_csv("run/predictions_test.csv")
    assert {"heavy", "light", "kd", "prediction", "lab"} <= set(test.columns)
    known = table.set_index("name")
    assert (known.loc[test["name"], "heavy"].to_numpy() == test["heavy"]).all()

    some = table.drop(columns=["kd"])
    some.to_csv("new.csv", index=False)
    result = molfun("predict", "run/checkpoint", "--data", "new.csv", "--output", "out.csv")
    assert result.exit_code == 0, result.output
    out = pd.read_csv("out.csv").set_index("name")
    assert len(out) == 40
    both = test.set_index("name")["prediction"]
    np.testing.assert_allclose(out.loc[both.index, "prediction"], both, atol=1e-5)
    result = molfun(
        "predict", "run/checkpoint", "--data", "new.csv", "--output", "turned.csv",
        "--sequence-column", "light,heavy",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    turned = pd.read_csv("turned.csv").set_index("name")
    np.testing.assert_allclose(turned["prediction"], out["prediction"], atol=1e-5)


@pytest.mark.usefixtures("table", "reports")
def test_one_column_of_chains_and_a_report(molfun: Command, project: Path) -> None:
    rows = pd.read_csv("pairs.csv")
    rows["sequence"] = rows["heavy"] + ":" + rows["light"]
    rows[["sequence", "kd"]].to_csv("one.csv", index=False)
    result = molfun(
        "fine-tune", "--data", "one.csv", "--target-column", "kd", "--head", "cross_attention",
        *(a for a in FAST if a != "--no-report"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (project / "run/report.html").is_file(), result.output
    assert ":" in pd.read_csv("run/predictions_test.csv")["sequence"][0]


@pytest.mark.usefixtures("table")
def test_what_does_not_go_together_is_said_in_a_line(molfun: Command) -> None:
    columns = ("--sequence-column", "heavy,light", "--target-column", "kd")
    result = molfun("fine-tune", "--data", "pairs.csv", *columns, "--head", "mlp", *FAST)
    assert result.exit_code == 1
    assert "has 2 chains, and what reads it takes one" in result.stderr
    single = ("--sequence-column", "heavy", "--target-column", "kd", "--head", "pair_mlp")
    result = molfun("fine-tune", "--data", "pairs.csv", *single, *FAST)
    assert result.exit_code == 1
    assert "has 1 chain, and the head reads 2. Write the chains as A:B" in result.stderr
    result = molfun("fine-tune", "--data", "pairs.csv", *single[:4], "--split", "c3", *FAST)
    assert "samples of several chains, and these have one each" in result.stderr
    wrong = ("--sequence-column", "heavy,lihgt", "--target-column", "kd", "--head", "pair_mlp")
    result = molfun("fine-tune", "--data", "pairs.csv", *wrong, *FAST)
    assert "'lihgt'" in result.stderr


def test_training_samples_have_weights(table: pd.DataFrame, molfun: Command) -> None:
    table.assign(n=np.arange(40) % 3).to_csv("weighted.csv", index=False)
    columns = ("--sequence-column", "heavy", "--id-column", "name", "--target-column", "kd")
    losses = []
    for weights in (("--weight-column", "n"), ()):
        result = molfun(
            "fine-tune", "--data", "weighted.csv", *columns, *weights, *FAST, "--overwrite"
        )
        assert result.exit_code == 0, result.output
        losses.append(pd.read_csv("run/history.csv")["train_loss"].iloc[-1])
    assert losses[0] != losses[1]
    result = molfun(
        "fine-tune", "--data", "pairs.csv", *columns, "--weight-column", "n", *FAST, "--overwrite"
    )
    assert result.exit_code == 1
    assert "has no column 'n' of weights; its other columns are: light, lab." in result.stderr


def test_several_target_columns_have_a_head_each(table: pd.DataFrame, molfun: Command) -> None:
    rng = np.random.default_rng(1)
    kon = np.where(np.arange(40) % 5 == 0, np.nan, rng.normal(5, 1, 40).round(3))
    table.assign(kon=kon).to_csv("two.csv", index=False)
    result = molfun(
        "fine-tune", "--data", "two.csv", "--sequence-column", "heavy,light", "--id-column", "name",
        "--target-column", "kd,kon", "--head", "pair_mlp", *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    history = pd.read_csv("run/history.csv")
    assert {"val/kd/spearman", "val/kon/spearman"} <= set(history.columns)
    out = pd.read_csv("run/predictions_val.csv")
    assert {"kd", "kon", "kd_prediction", "kon_prediction"} <= set(out.columns)
    assert out["kon"].isna().sum() == np.isnan(kon[[int(n[1:]) for n in out["name"]]]).sum()


@pytest.mark.usefixtures("table")
def test_folds_of_pairs(molfun: Command) -> None:
    columns = ("--sequence-column", "heavy,light", "--id-column", "name", "--folds", 3)
    cv = ("cv", "--data", "pairs.csv", *columns, "--head", "pair_mlp", *FAST, "--overwrite")
    rows = pd.read_csv("pairs.csv")
    rows.assign(kon=rows["kd"] * 2).to_csv("pairs.csv", index=False)
    result = molfun(*cv, "--target-column", "kd,kon")
    assert result.exit_code == 0, result.output
    assert {"kd_prediction", "kon_prediction"} <= set(pd.read_csv("run/out_of_fold.csv").columns)


@pytest.mark.usefixtures("table")
def test_names_of_columns_may_have_commas(molfun: Command, project: Path) -> None:
    rows = pd.read_csv("pairs.csv").rename(columns={"kd": "kd, nM", "name": "id"})
    rows.to_csv("comma.csv", index=False)
    run = ("fine-tune", "--data", "comma.csv", "--sequence-column", "heavy", *FAST, "--overwrite")
    result = molfun(*run, "--target-column", "kd, nM")
    assert result.exit_code == 0, result.output
    assert "kd, nM" in pd.read_csv("run/predictions_val.csv").columns
    for names in ("kd,kd", "kd,"):
        result = molfun(*run, "--target-column", names)
        assert result.exit_code == 1
        assert f"target_column must name different columns, got '{names}'" in result.stderr
    (project / "list.yaml").write_text("target_column: [lab, id]\n")
    result = molfun(*run, "--config", "list.yaml")
    assert "column lab: 'north' is not a number" in result.stderr


@pytest.mark.usefixtures("table")
def test_several_targets_for_one_head_are_for_sequences(molfun: Command) -> None:
    result = molfun(
        "fine-tune", "--data", "data.csv", "--pdbs", "pdbs", "--backbone", "esm2_tiny",
        "--target-column", "affinity,year", "--task", "multitarget", "--output", "run",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "multitarget reads several columns of a table of sequences" in result.stderr


@pytest.mark.usefixtures("table", "reports")
def test_folds_of_new_proteins(molfun: Command, project: Path) -> None:
    columns = ("--sequence-column", "heavy,light", "--id-column", "name", "--folds", 3)
    fast = [a for a in FAST if a != "--no-report"]
    cv = ("cv", "--data", "pairs.csv", *columns, "--head", "pair_mlp", *fast, "--overwrite")
    rows = pd.read_csv("pairs.csv")
    for split in ("c1", "c2", "c3"):
        result = molfun(*cv, "--target-column", "kd", "--split", split)
        assert result.exit_code == 0, result.output
        assert f"40 samples, 3 folds by {split}" in result.stdout
        out = pd.read_csv("run/out_of_fold.csv").set_index("name")
        found = json.loads((project / "run/cv.json").read_text())
        assert found["n"] == len(out) == sum(row["n_test"] for row in found["folds"])
        assert found["n_untested"] == 40 - len(out)
        if split != "c1":
            said = f"{40 - len(out)} of 40 samples are tested in no fold of {split.upper()}: "
            assert said in " ".join(result.output.split())
            said = f"Tested in no fold, and of training parts alone: {40 - len(out)} samples."
            assert said in (project / "run/report.html").read_text()
        # rows are in their places: chains and labels are those of the table
        known = rows.set_index("name").loc[out.index]
        assert out["heavy"].tolist() == known["heavy"].tolist()
        assert out["kd"].tolist() == known["kd"].tolist()
        assert set(out["fold"]) == {1, 2, 3}
    for wrong, text in (
        (("--repeats", 2), "pairs are divided by their proteins, once: leave out repeats"),
        (("--stratify",), "pairs are divided by their proteins: leave out stratify"),
    ):
        result = molfun(*cv, "--target-column", "kd", "--split", "c3", *wrong)
        assert result.exit_code == 1
        assert text in " ".join(result.stderr.split())
