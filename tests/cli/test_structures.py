"""Fine-tune on coordinates: a folder without a table, filters, crops, two tasks from one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pdb_text import pdb_chain

from molfun.config import read_yaml
from molfun.data import read_structure
from molfun.report.finished import FinishedRun
from molfun.report.sections.predicted_structures import section


def said(result: Any) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def learn(molfun, project):
    """Fine-tune the tiny trunk on the structures of the project."""

    def run(*arguments: object) -> Any:
        return molfun(
            "fine-tune", "--task", "structure", "--pdbs", "pdbs", "--preset", "tiny", "--device",
            "cpu", "--epochs", 1, "--strategy", "full", "--output", "run", "--no-report",
            *arguments,
        )  # fmt: skip

    return run


def test_a_folder_is_learned_predicted_and_evaluated(learn, molfun, project):
    result = learn("--max-length", 5, "--resolution", 2.0)
    assert result.exit_code == 0, result.output
    assert "Data: 8 train / 1 val / 1 test (random split of pdbs)" in result.output
    assert "lddt_ca=" in result.output
    # of atoms that its residues do not have
    assert "not finite" not in result.output
    settings = read_yaml(project / "run" / "config.yaml")
    assert (settings["data"], settings["pdbs"], settings["resolution"]) == ("pdbs", "pdbs", 2.0)
    log = (project / "run" / "run.log").read_text()
    assert "8 of 8 structures: longer than 5 residues, so another part (auto) is drawn" in log
    meta = json.loads((project / "run" / "checkpoint" / "meta.json").read_text())
    assert meta["data"]["labels"] == "structure"
    assert (meta["data"]["max_length"], meta["data"]["draw"]) == (5, "auto")
    with (project / "run" / "predictions_test.csv").open() as file:
        (row,) = csv.DictReader(file)
    # coordinates are no column
    assert {"pdb_id", "prediction", "resolution", "released", "method"} <= set(row)
    assert "structure" not in row

    with (project / "run" / "predictions_test_scores.csv").open() as file:
        (scores,) = csv.DictReader(file)
    assert scores["id"] == row["pdb_id"]
    assert 0 <= float(scores["lddt_ca"]) <= 1
    written_file = project / "run" / "predictions_test_structures" / f"{row['pdb_id']}.cif"
    written = read_structure(written_file)
    assert len(written) == int(scores["residues"]) == 5
    text = written_file.read_text()
    assert "fine-tuned (full)" in " ".join(text.split())
    assert "weights random at first, then trained" in " ".join(text.split())
    assert written.b_factors.max() == pytest.approx(float(row["prediction"]), abs=3)
    shown = section(FinishedRun(project / "run"))
    assert [type(block).__name__ for block in shown.blocks] == [
        "Text", "Table", "Structures", "Figure",
    ]  # fmt: skip
    # the known structure in grey next to the prediction
    (model,) = shown.blocks[2].models
    assert "-99.00" in model.text

    for more in ((), ("--overwrite",)):
        result = molfun("predict", "run/checkpoint", "--pdbs", "pdbs", "--output", "out.csv", *more)
        assert result.exit_code == 0, result.output
        assert "10 predictions written to out.csv" in result.output
        assert "Predicted structures and their scores written to out_structures" in result.output
    assert len(list(Path("out_structures").iterdir())) == 10
    Path("out_structures/mine.txt").write_text("kept")
    result = molfun(
        "predict", "run/checkpoint", "--pdbs", "pdbs", "--output", "out.csv", "--overwrite"
    )
    assert "out_structures would be written and is a folder with other files" in said(result)
    assert Path("out_structures/mine.txt").read_text() == "kept"
    result = molfun("check", "--task", "structure", "--pdbs", "pdbs", "--preset", "tiny")
    assert " 0 FAILED" in result.output
    result = molfun("fine-tune", "--task", "structur", "--pdbs", "pdbs", "--preset", "tiny")
    assert "'structur'" in said(result)
    assert "Did you mean 'structure'?" in said(result)
    result = molfun("check", "--task", "structure", "--pdbs", "gone", "--preset", "tiny")
    assert "gone does not exist. Give a folder of structures, or a table of their ids or" in said(
        result
    )
    result = molfun("evaluate", "run/checkpoint", "--data", "pdbs")
    assert result.exit_code == 0, result.output
    assert "10 samples: loss=" in result.output
    assert "fape=" in result.output
    result = molfun("evaluate", "run/checkpoint", "--pdbs", "pdbs", "--max-resolution", 1.5)
    assert result.exit_code == 1
    assert "No structure of pdbs is left after the filters." in said(result)
    result = molfun("predict", "run/checkpoint")
    assert result.exit_code == 1
    assert "Give the samples: --data TABLE, or --pdbs FOLDER of structures." in said(result)


def test_a_table_chooses_structures_that_are_split_by_their_release(learn, project):
    rows = [line.rpartition(",")[0] for line in (project / "data.csv").read_text().splitlines()]
    (project / "some.csv").write_text("\n".join(rows[:9]) + "\n")
    for i, path in enumerate(sorted((project / "pdbs").iterdir())):
        path.write_text(f"REVDAT   1   01-JAN-{i + 10} 1ABC    0\n{path.read_text()}")
    result = learn(
        "--data", "some.csv", "--split", "temporal", "--released-after", "2012-01-01", "--crop",
        "fixed", "--max-length", 5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Data: 4 train / 1 val / 1 test (temporal split of some.csv)" in result.output
    assert "released_after=2012-01-01 leaves out 2 of 8 structures." in said(result)
    with (project / "run" / "splits.csv").open() as file:
        parts = {row["pdb_id"]: row["split"] for row in csv.DictReader(file)}
    assert (parts["s006"], parts["s007"]) == ("val", "test")
    assert "s001" not in parts
    assert "is drawn" not in (project / "run" / "run.log").read_text()


def test_two_tasks_from_one_table(molfun, project):
    (project / "run.yaml").write_text(
        "data: data.csv\npdbs: pdbs\npreset: tiny\ndevice: cpu\nepochs: 1\nstrategy: full\n"
        "max_length: 5\ncrop: contiguous\nresolution: 2.0\noutput: run\nreport: false\n"
        "heads:\n  affinity: {head: affinity}\n  structure: {task: structure, weight: 0.3}\n"
    )
    result = molfun("fine-tune", "--config", "run.yaml")
    assert result.exit_code == 0, result.output
    assert "affinity/rmse=" in result.output
    assert "structure/lddt_ca=" in result.output
    assert "another part (contiguous) is drawn" in (project / "run" / "run.log").read_text()
    args = ("run/checkpoint", "--data", "data.csv", "--pdbs", "pdbs")
    result = molfun("predict", *args, "--output", "out.csv")
    assert result.exit_code == 0, result.output
    assert "and another sequence" not in result.output
    with (project / "out.csv").open() as file:
        row = next(csv.DictReader(file))
    assert {"affinity", "affinity_prediction", "structure_prediction"} <= set(row)
    result = molfun("evaluate", *args, "--no-baselines")
    assert result.exit_code == 0, result.output
    assert "structure/fape=" in result.output
    # inputs alone are in a folder; labels of affinity are not
    assert molfun("predict", "run/checkpoint", "--pdbs", "pdbs", "--overwrite").exit_code == 0
    result = molfun("evaluate", "run/checkpoint", "--pdbs", "pdbs")
    assert result.exit_code == 1
    assert "pdbs is a folder, not a table" in said(result)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--crop", "spatial"), "crop='spatial' needs max_length"),
        (("--features", "features"), "features hold no coordinates to learn from"),
        (("--data", "."), "data='.' is a folder of structures: leave out pdbs."),
        (("--released-before", "May"), "'May' is no date; write it as 2018-05-01."),
        (("--max-resolution", "0"), "greater than 0"),
        (("--pdbs", "none"), "none does not exist"),
    ],
)
def test_settings_that_do_not_go_together(learn, arguments, text):
    result = learn(*arguments)
    assert result.exit_code == 1
    assert text in said(result)


def test_a_demo_has_no_coordinates(molfun, project):
    result = molfun("fine-tune", "--demo", "--task", "structure", "--preset", "tiny")
    assert result.exit_code == 1
    assert "the demo makes proteins without coordinates to learn from: give --pdbs." in (
        said(result)
    )


def test_what_is_for_structures_alone(train, molfun, project):
    result = train("--resolution", 2.0)
    assert result.exit_code == 1
    assert "resolution is for the task 'structure': leave it out" in said(result)
    result = molfun("fine-tune", "--task", "structure", "--output", "run")
    assert "give --pdbs FOLDER of structures to learn from" in said(result)


def test_unusable_structures_are_told_at_once(learn, molfun, project: Path):
    (project / "pdbs" / "one.pdb").write_text("\n".join([*pdb_chain("ALA"), "END", ""]))
    (project / "pdbs" / "empty.cif").write_text("data_1ABC\n_entry.id 1ABC\n")
    result = learn()
    assert result.exit_code == 1
    assert "2 of 12 samples cannot be used:" in result.output
    assert "pdbs/one.pdb has 1 residue, and a structure to learn from" in said(result)
    assert "pdbs/empty.cif holds no atoms" in said(result)
    assert not (project / "run" / "config.yaml").exists()
    result = molfun("check", "--task", "structure", "--pdbs", "pdbs", "--preset", "tiny",
                    "--strategy", "full")  # fmt: skip
    assert result.exit_code == 1
    assert "FAILED pdbs: holds no atoms (no _atom_site table)" in said(result)
    assert "FAILED pdbs: has N residue, and a structure to learn from needs" in said(result)


@pytest.mark.slow
def test_folds_of_a_folder(molfun, project):
    result = molfun(
        "cv", "--task", "structure", "--pdbs", "pdbs", "--preset", "tiny", "--device", "cpu",
        "--epochs", 1, "--strategy", "full", "--folds", 2, "--max-length", 5, "--output", "cv",
        "--no-report",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "lddt_ca" in result.output
