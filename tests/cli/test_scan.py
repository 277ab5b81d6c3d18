"""Variants of a protein from the command line: names, tables, figures, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from PIL import Image

from molfun import MolfunStructureModel

Command = Callable[..., Result]
WILD_TYPE = "MKTAYIAKQR"
TINY = ("--backbone", "esm2_tiny")


@pytest.fixture
def wild_type(project: Path) -> Path:
    (project / "wt.fasta").write_text(f">mine first\n{WILD_TYPE}\n")
    return project


def test_all_substitutions(wild_type: Path, molfun: Command) -> None:
    result = molfun("scan", "--sequence", "wt.fasta", *TINY)
    assert result.exit_code == 0, result.output
    assert "190 variants of mine written to scan.csv\nHeat map: scan.svg\n" in result.stdout
    table = pd.read_csv(wild_type / "scan.csv", dtype={"position": int})
    assert list(table.columns) == ["variant", "position", "wild_type", "mutant", "score"]
    model = MolfunStructureModel("esm2_tiny", device="cpu")
    assert np.allclose(table["score"], model.score_variants(WILD_TYPE).scores, atol=1e-4)
    figure = (wild_type / "scan.svg").read_text()
    assert figure.startswith("<?xml")
    assert "score (masked_marginal)" in figure


def test_scores_in_bfloat16(wild_type: Path, molfun: Command) -> None:
    source = ("--sequence", "wt.fasta", *TINY, "--figure", "none")
    for precision in ("fp32", "bf16"):
        result = molfun("scan", *source, "--precision", precision, "--output", f"{precision}.csv")
        assert result.exit_code == 0, result.output
    exact, found = (pd.read_csv(f"{name}.csv")["score"] for name in ("fp32", "bf16"))
    assert 1e-6 < np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)
    refused = molfun("scan", *source, "--precision", "half")
    assert refused.exit_code != 0
    assert "--precision: Input should be 'auto', 'fp32' or 'bf16' (got 'half')" in refused.stderr
    refused = molfun("scan", "checkpoint", *source, "--precision", "bf16")
    assert refused.exit_code == 1
    assert "--precision is that of scores: a fine-tuned model predicts in" in refused.stderr


def test_named_variants_and_another_first_number(wild_type: Path, molfun: Command) -> None:
    names = "M24A,p.Lys25Glu:T26G"
    source = ("--sequence", WILD_TYPE.lower(), *TINY, "--offset", 23)
    result = molfun("scan", *source, "--variants", names, "--figure", "map.png")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(wild_type / "scan.csv", dtype=str, keep_default_na=False)
    assert table["variant"].tolist() == ["M24A", "K25E:T26G"]
    assert table["position"].tolist() == ["24", ""]
    with Image.open(wild_type / "map.png") as image:
        assert 700 < image.size[0] < 900  # of one position; 80 take 1950


def test_the_wild_type_is_no_variant_and_empty_positions_are_left_out(
    wild_type: Path, molfun: Command
) -> None:
    source = ("--sequence", "wt.fasta", *TINY)
    result = molfun("scan", *source, "--variants", "WT,M1A,A4G,A4C", "--output", "some.csv")
    assert result.exit_code == 0, result.output
    assert (
        "3 variants of mine and the wild type written to some.csv\n"
        "Heat map: some.svg (8 of 10 positions have no value and are left out)\n"
    ) in result.stdout
    assert pd.read_csv(wild_type / "some.csv")["variant"].tolist() == ["WT", "M1A", "A4G", "A4C"]
    figure = (wild_type / "some.svg").read_text()
    assert "8 of 10 positions have no value and are left out" in figure
    result = molfun("scan", *source, "--variants", "WT", "--output", "alone.csv")
    assert "0 variants of mine and the wild type written to alone.csv\n" in result.stdout
    assert not (wild_type / "alone.svg").exists()


def test_a_table_of_variants(wild_type: Path, molfun: Command) -> None:
    pd.DataFrame({"mutant": ["M1A", "K2E"]}).to_csv("variants.csv", index=False)
    source = ("--sequence", "wt.fasta", "--variants", "variants.csv", *TINY)
    result = molfun("scan", *source, "--figure", "none", "--method", "mutant_marginal")
    assert result.exit_code == 0, result.output
    assert not (wild_type / "scan.svg").exists()
    rows = {"mutant": ["M1A", "C2E", ""], "x": [1, 2, 3]}
    pd.DataFrame(rows).to_csv("variants.csv", index=False)
    result = molfun("scan", *source, "--overwrite")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: 2 of 3 variants cannot be read:\n"
        "  variants.csv, line 3: 'C2E': residue 2 of the wild type is K, not C.\n"
        "  variants.csv, line 4: the variant is blank; write WT for the wild type.\n"
    )


def test_a_fine_tuned_model_predicts_variants(wild_type: Path, molfun: Command) -> None:
    rng = np.random.default_rng(0)
    rows = [("".join(rng.permutation(list(WILD_TYPE))), rng.normal()) for _ in range(12)]
    pd.DataFrame(rows, columns=["sequence", "target"]).to_csv("train.csv", index=False)
    fit = ("--data", "train.csv", *TINY, "--head", "regression", "--epochs", 1, "--no-report")
    assert molfun("fine-tune", *fit, "--output", "run").exit_code == 0
    source = ("run/checkpoint", "--sequence", "wt.fasta", "--zero-shot")
    result = molfun("scan", *source)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(wild_type / "scan.csv")
    assert list(table.columns)[4:] == ["prediction", "zero_shot"]
    model = MolfunStructureModel.from_checkpoint("run/checkpoint", device="cpu")
    expected = model.predict(["AKTAYIAKQR"])["prediction"]
    assert table["prediction"][0] == pytest.approx(float(expected[0]), abs=1e-5)
    result = molfun("scan", *source, "--coverage", 0.9, "--overwrite")
    assert "--coverage needs the errors of a model on rows that it never saw" in result.stderr


def test_a_structure_is_a_wild_type(wild_type: Path, molfun: Command) -> None:
    result = molfun("scan", "--pdb", "pdbs/s000.pdb", *TINY, "--output", "s.csv")
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(wild_type / "s.csv")) == 19 * 6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Give the wild type: --sequence FASTA, or --pdb FILE."),
        (("--sequence", "none.fasta"), "No such file: none.fasta."),
        (("--sequence", "two.fasta"), "two.fasta has 2 records (a, b): give a file with the"),
        (("--sequence", "wt.fasta", "--output", "wt.fasta"), "is the file of --sequence, which"),
        (("--sequence", "wt.fasta", "--figure", "x.jpg"), "--figure: x.jpg must end in .svg,"),
        (("--sequence", "wt.fasta", "--output", "x.svg"), "x.svg is the name of a figure."),
        (("--sequence", "wt.fasta", "--method", "marginal"), "method"),
    ],
)
@pytest.mark.usefixtures("wild_type")
def test_what_is_refused(molfun: Command, arguments: tuple[str, ...], text: str) -> None:
    Path("two.fasta").write_text(">a\nMK\n>b\nMV\n")
    result = molfun("scan", *arguments, *TINY)
    assert result.exit_code != 0
    assert text in result.stderr
    assert not Path("scan.csv").exists()
    assert Path("wt.fasta").read_text() == f">mine first\n{WILD_TYPE}\n"
