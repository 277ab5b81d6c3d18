"""Tables of mutations from the command line: read, split by position, predicted, divided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

Command = Callable[..., Result]
WILD_TYPE = "MKTAYIAKQR"
TINY = ("--backbone", "esm2_tiny", "--head", "regression", "--epochs", 1, "--no-report")
SOURCE = ("--data", "variants.csv", "--mutant-column", "mutation", "--wild-type", "wt.fasta")


@pytest.fixture
def variants(project: Path) -> pd.DataFrame:
    (project / "wt.fasta").write_text(f">mine\n{WILD_TYPE}\n")
    rng = np.random.default_rng(0)
    names = [f"{a}{i + 1}{b}" for i, a in enumerate(WILD_TYPE) for b in "DGW" if a != b]
    table = pd.DataFrame({"mutation": names, "target": rng.normal(size=len(names)).round(3)})
    table.to_csv(project / "variants.csv", index=False)
    return table


def places(file: str) -> set[str]:
    return {name[1:-1] for name in pd.read_csv(file)["mutation"]}


def test_a_table_of_mutations_is_split_by_position(variants: pd.DataFrame, molfun: Command) -> None:
    split = ("--split", "position", "--test-frac", 0.2)
    result = molfun("fine-tune", *SOURCE, *split, *TINY, "--output", "run")
    assert result.exit_code == 0, result.output
    assert "(position split of variants.csv)" in result.stdout
    result = molfun("predict", "run/checkpoint", "--data", "variants.csv", "--output", "p.csv")
    assert result.exit_code == 0, result.output
    table = pd.read_csv("p.csv")
    assert table["mutation"].tolist() == variants["mutation"].tolist()
    assert table["sequence"][0] == "DKTAYIAKQR"
    # a table of sequences does for the same model
    table[["sequence"]].to_csv("sequences.csv", index=False)
    result = molfun("predict", "run/checkpoint", "--data", "sequences.csv", "--output", "q.csv")
    assert result.exit_code == 0, result.output
    assert np.allclose(pd.read_csv("q.csv")["prediction"], table["prediction"], atol=1e-6)


@pytest.mark.usefixtures("variants")
@pytest.mark.parametrize("split", ["contiguous", "modulo"])
def test_other_splits_by_position(molfun: Command, split: str) -> None:
    result = molfun("fine-tune", *SOURCE, "--split", split, *TINY, "--output", "run")
    assert result.exit_code == 0, result.output
    assert f"({split} split of variants.csv)" in result.stdout


@pytest.mark.usefixtures("variants")
def test_splits_by_label_and_number(molfun: Command) -> None:
    how = ("--split", "low_to_high", "--label-threshold", 0.5)
    result = molfun("fine-tune", *SOURCE, *how, *TINY, "--output", "run")
    assert result.exit_code == 0, result.output
    result = molfun("fine-tune", *SOURCE, "--split", "n_mutations", *TINY, "--output", "other")
    assert result.exit_code == 1
    assert "with at most 1 mutation (1 at most): nothing is left to test." in result.stderr


@pytest.mark.usefixtures("variants")
def test_folds_of_positions(molfun: Command) -> None:
    result = molfun("cv", *SOURCE, "--split", "position", "--folds", 3, *TINY, "--output", "cv")
    assert result.exit_code == 0, result.output
    out = pd.read_csv("cv/out_of_fold.csv")
    folds = [{name[1:-1] for name in part["id"]} for _, part in out.groupby("fold")]
    assert len(folds) == 3
    assert not folds[0] & folds[1]
    result = molfun("cv", *SOURCE, "--split", "n_mutations", *TINY, "--output", "cv2")
    assert "split=n_mutations has one test part: it is for fine-tune" in result.stderr


@pytest.mark.usefixtures("variants")
def test_the_zero_shot_score_as_a_baseline(molfun: Command) -> None:
    """By the base weights, whatever trains; in a cross-validation and a resumed run as well."""
    found = []
    for strategy, resume in (("head_only", ()), ("full", ()), ("full", ("--resume",))):
        how = (*SOURCE, "--strategy", strategy, "--test-frac", 0.4, *TINY, "--output", strategy)
        result = molfun("fine-tune", *how, *resume)
        assert result.exit_code == 0, result.output
        part = json.loads(Path(strategy, "evaluation.json").read_text())["parts"]["test"]
        found.append(part["baselines"]["zero_shot"])
        assert "one_hot_zero_shot" in part["baselines"]
        # the base weights are gone after training all of them
        assert ("embedding_zero_shot" in part["baselines"]) is (strategy != "full")
    for other in found[1:]:
        assert other["metrics"] == found[0]["metrics"]
    result = molfun("cv", *SOURCE, "--split", "position", "--folds", 3, *TINY, "--output", "cv")
    assert result.exit_code == 0, result.output
    part = json.loads(Path("cv/evaluation.json").read_text())["parts"]["out_of_fold"]
    expected = {"one_hot", "zero_shot", "one_hot_zero_shot", "embedding_zero_shot"}
    assert expected <= set(part["baselines"])


@pytest.mark.usefixtures("variants")
def test_mutations_of_nothing(molfun: Command) -> None:
    source = ("--data", "variants.csv", "--mutant-column", "mutation")
    result = molfun("fine-tune", *source, *TINY, "--output", "run")
    assert result.exit_code != 0
    assert "needs the protein that is mutated: wild_type (--wild-type)." in result.stderr
    assert not Path("run").exists()


@pytest.mark.usefixtures("variants")
def test_the_zero_shot_score_beside_the_head(molfun: Command) -> None:
    result = molfun("fine-tune", *SOURCE, "--augment", "zero_shot", *TINY, "--output", "run")
    assert result.exit_code == 0, result.output
    result = molfun("predict", "run/checkpoint", "--data", "variants.csv", "--output", "p.csv")
    assert result.exit_code == 0, result.output
    scan = ("scan", "run/checkpoint", "--sequence", "wt.fasta", "--output", "scan.csv")
    result = molfun(*scan, "--variants", "M1D,K2G", "--figure", "none")
    assert result.exit_code == 0, result.output
    known = pd.read_csv("p.csv").set_index("mutation")["prediction"]
    assert np.allclose(pd.read_csv("scan.csv")["prediction"], known[["M1D", "K2G"]], atol=1e-6)


@pytest.mark.usefixtures("variants")
def test_settings_without_a_zero_shot_score(molfun: Command) -> None:
    augment = ("--augment", "zero_shot")
    plain = ("--data", "variants.csv", "--sequence-column", "mutation")
    result = molfun("fine-tune", *plain, *augment, *TINY, "--output", "run")
    words = "is a score of variants: give the column of their mutations (--mutant-column) and"
    assert result.exit_code != 0
    assert words in " ".join(result.stderr.split())
    result = molfun("fine-tune", *SOURCE, *augment, "--layer", 1, *TINY, "--output", "run")
    assert "by all blocks of the language model: leave out layer." in result.stderr
    level = ("--level", "residue")
    result = molfun("fine-tune", *SOURCE, *augment, *level, *TINY, "--output", "run")
    assert "and these are labels of residues: leave it out." in result.stderr
    assert not Path("run").exists()
