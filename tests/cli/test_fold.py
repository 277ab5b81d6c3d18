"""``molfun fold``: files of every structure, resumed after a kill, refusals in one line."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
import warm
from click.testing import Result

from molfun.models import Ensemble, folding
from molfun.structures import write_structure

Command = Callable[..., Result]


@pytest.fixture
def fold(molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    records = {"one first": "MKTAYIAKQR", "sp|P1|two": "GSHMKX", "pair": "MKTAY:ACDEF"}
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in records.items())
    Path("x.fasta").write_text(text + ">hetero\nMKTA\n>hetero\nGSH\n")

    def run(*arguments: object) -> Result:
        sourced = {"--data", "--sequences", "--pdbs"} & set(arguments)
        source = () if sourced else ("--sequences", "x.fasta")
        options = ("--preset", "tiny", "--device", "cpu", "--no-plots")
        return molfun("fold", *source, *options, *arguments)

    return run


def table(path: str) -> dict[str, dict[str, str]]:
    with Path(path).open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_a_fasta_file(fold: Command) -> None:
    result = fold("--output", "out", "--recycles", 1)
    assert result.exit_code == 0, result.output
    rows = table("out/summary.csv")
    assert set(rows) == {"one", "sp|P1|two", "pair", "hetero"}
    assert [rows[name]["chains"] for name in ("one", "pair", "hetero")] == ["1", "2", "2"]
    assert float(rows["pair"]["iptm"]) > 0
    assert rows["one"]["iptm"] == ""
    confidences = [float(row["confidence"]) for row in rows.values()]
    assert confidences == sorted(confidences, reverse=True)
    for stem, n in (("one", 10), ("sp_P1_two", 6), ("pair", 10), ("hetero", 7)):
        for ending in (".cif", ".pdb"):
            model = gemmi.read_structure(f"out/{stem}{ending}")[0]
            # a PDB file has no residues without atoms
            unknown = stem == "sp_P1_two"
            assert sum(len(chain) for chain in model) == n - unknown
        with np.load(f"out/{stem}_pae.npz") as errors:
            assert errors["pae"].shape == (n, n)
    assert "Note on all: made from a single sequence" in result.stdout
    assert "4 structures in out: mmCIF, PDB, confidence; summary.csv" in result.stdout


def test_a_table_and_structures(fold: Command, project: Path) -> None:
    rows = (project / "data.csv").read_text().splitlines()[:3]
    # numbers of the file that do not begin at 1
    moved = [
        f"{line[:22]}{int(line[22:26]) + 100:4}{line[26:]}" if line.startswith("ATOM") else line
        for line in Path("pdbs/s000.pdb").read_text().splitlines()
    ]
    Path("pdbs/s000.pdb").write_text("\n".join(moved) + "\n")
    Path("few.csv").write_text("\n".join(rows) + "\n")
    result = fold("--data", "few.csv", "--pdbs", "pdbs", "--output", "out", "--recycles", 0)
    assert result.exit_code == 0, result.output
    given = gemmi.read_structure("pdbs/s000.pdb")[0][0]
    found = gemmi.read_structure("out/s000.cif")[0][0]
    assert [str(r.seqid) for r in found] == [str(r.seqid) for r in given]
    assert [r.name for r in found] == [r.name for r in given]
    Path("seq.csv").write_text("name,sequence\na,MKT\nb,MK:GS\n")
    result = fold("--data", "seq.csv", "--id-column", "name", "--output", "two", "--recycles", 0)
    assert result.exit_code == 0, result.output
    assert table("two/summary.csv")["b"]["chains"] == "2"


@pytest.mark.usefixtures("project")
def test_a_folder_of_structures_needs_no_table(fold: Command) -> None:
    others = sorted(Path("pdbs").iterdir())[2:]
    for path in others:
        path.unlink()
    result = fold("--pdbs", "pdbs", "--output", "out", "--recycles", 0)
    assert result.exit_code == 0, result.output
    assert sorted(table("out/summary.csv")) == ["s000", "s001"]


def test_what_is_there_is_not_computed_again(fold: Command) -> None:
    fold("--output", "out", "--recycles", 0)
    written = Path("out/one.cif").stat().st_mtime_ns
    Path("out/pair.cif").unlink()
    content = Path("x.fasta").read_text().replace("GSHMKX", "GSHMKA")
    Path("x.fasta").write_text(content)
    result = fold("--output", "out", "--recycles", 0)
    assert "2 of 4 structures are there" in result.stdout
    assert Path("out/one.cif").stat().st_mtime_ns == written
    assert Path("out/pair.cif").exists()
    assert json.loads(Path("out/sp_P1_two_confidence.json").read_text())["residues"][-1] == "6"
    changed = gemmi.read_structure("out/sp_P1_two.cif")[0][0]
    assert changed[-1].name == "ALA"


def test_a_stop_in_the_middle_leaves_no_structure_of_a_former_input(
    fold: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold("--output", "out", "--recycles", 0)
    Path("x.fasta").write_text(Path("x.fasta").read_text().replace("MKTAYIAKQR", "GGGGGGGG"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("molfun.structures.files.write_structure", full)
        result = fold("--output", "out", "--recycles", 0)
        assert result.exit_code == 1
    result = fold("--output", "out", "--recycles", 0)
    assert "3 of 4 structures are there" in result.stdout
    assert table("out/summary.csv")["one"]["length"] == "8"
    assert len(gemmi.read_structure("out/one.cif")[0][0]) == 8


def test_structures_that_are_no_numbers_are_not_written(
    fold: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folding.structure_of

    def broken(sample: Any, *arguments: Any) -> Any:
        found = made(sample, *arguments)
        if sample.id == "pair":
            found.plddt[0] = np.nan
        return found

    monkeypatch.setattr(folding, "structure_of", broken)
    result = fold("--output", "out", "--recycles", 0)
    assert result.exit_code == 1
    line = "pair: the predicted coordinates or their confidence are not finite."
    assert f"Not folded: {line} Look at the weights, and fold in float32." in result.stdout
    assert line in table("out/summary.csv")["pair"]["notes"]
    assert not list(Path("out").glob("pair*"))
    assert Path("out/one.cif").exists()


def test_shards(fold: Command) -> None:
    result = fold("--output", "out", "--recycles", 0, "--shard-size", 3)
    assert result.exit_code == 0, result.output
    assert Path("out/00000-of-00002/one.cif").exists()
    assert Path("out/00001-of-00002/hetero.cif").exists()
    assert len(table("out/summary.csv")) == 4


def test_one_chain_of_two(fold: Command) -> None:
    fold("--output", "out", "--recycles", 0, "--unify-chains")
    assert [chain.name for chain in gemmi.read_structure("out/pair.cif")[0]] == ["A"]


def test_other_folders_and_settings_are_refused(fold: Command) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep\n")
    result = fold("--output", "mine")
    assert result.exit_code == 1
    assert "mine holds notes.txt and is no folder of molfun fold" in result.stderr
    fold("--output", "out", "--recycles", 0)
    result = fold("--output", "out", "--recycles", 1)
    assert result.exit_code == 1
    assert "out holds structures made with another recycles." in result.stderr
    Path("out/own.txt").write_text("keep\n")
    content = Path("x.fasta").read_text()
    Path("x.fasta").write_text(content.split(">pair")[0])
    result = fold("--output", "out", "--recycles", 1, "--overwrite")
    assert result.exit_code == 0, result.output
    # nothing of the former run is left, nothing else is touched
    assert not list(Path("out").glob("pair*"))
    assert Path("out/own.txt").read_text() == "keep\n"


def test_a_precision_of_its_own(fold: Command) -> None:
    """Folds in bfloat16 are near those in float32, and a folder holds those of one precision."""
    for name in ("fp32", "bf16"):
        result = fold("--output", name, "--recycles", 0, "--precision", name)
        assert result.exit_code == 0, result.output
        assert json.loads(Path(name, "fold.json").read_text())["precision"] == name
    one, other = (table(f"{name}/summary.csv") for name in ("fp32", "bf16"))
    for key, row in one.items():
        plddt = [float(found["plddt"]) for found in (row, other[key])]
        assert plddt[0] == pytest.approx(plddt[1], abs=1)
    assert Path("fp32/one.cif").read_text() != Path("bf16/one.cif").read_text()
    result = fold("--output", "fp32", "--recycles", 0, "--precision", "bf16")
    assert "fp32 holds structures made with another precision." in result.stderr
    result = fold("--output", "bf16", "--recycles", 0)
    assert "bf16 holds structures made with another precision." in result.stderr
    result = fold("--output", "new", "--precision", "half")
    assert result.exit_code == 1
    assert "precision" in result.stderr
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (">a\nMK1\n", "a (x.fasta) holds '1', which stands for no amino acid"),
        (">a/b\nMK\n>a_b\nMKK\n", "'a/b' and 'a_b' would both be a_b.cif"),
        (">a\nMK:\n", "a (x.fasta) has an empty chain"),
        (">a\nM\n", "a has 1 residues; openfold takes 2 or more"),
    ],
)
def test_bad_sequences(fold: Command, text: str, message: str) -> None:
    Path("x.fasta").write_text(text)
    result = fold("--output", "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_refused_folds_leave_no_folder_and_unknown_residues_are_told(fold: Command) -> None:
    Path("unknown.fasta").write_text(">good\nMKTAYIAKQR\n>x\nXXXX\n>half\nMKTA:XX\n")
    result = fold("--sequences", "unknown.fasta", "--output", "out")
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "x (unknown.fasta): chain A of unknown residues (X) alone, for which no atoms" in said
    assert "half (unknown.fasta): chain B of unknown residues (X) alone" in said
    result = fold("--output", "out", "--shard-size", 0)
    assert result.exit_code == 1
    assert "--shard-size must be at least 1, got 0." in result.output
    assert not Path("out").exists()


def test_a_report_of_a_fold_that_has_not_ended(fold: Command, molfun: Command) -> None:
    assert fold("--output", "out", "--recycles", 0).exit_code == 0
    Path("out/summary.csv").unlink()
    result = molfun("report", "out")
    assert result.exit_code == 1
    assert "out holds structures of a fold that has not ended. Repeat its command" in " ".join(
        result.output.split()
    )


def test_bad_tables_and_flags(fold: Command) -> None:
    Path("seq.csv").write_text("name,sequence\na,MKT\na,MK\n,MK\nd,\n")
    result = fold("--data", "seq.csv", "--id-column", "name", "--output", "out")
    assert "seq.csv cannot be folded" in result.stderr
    assert "column sequence: is blank" in result.stderr
    result = fold("--data", "seq.csv", "--sequence-column", "seqence", "--output", "out")
    assert result.exit_code == 1
    result = fold("--sequences", "x.fasta", "--data", "seq.csv", "--output", "out")
    assert "Give either --sequences FASTA, --data TABLE or --pdbs FOLDER." in result.stderr
    result = fold("--backbone", "esm2_tiny", "--output", "out")
    assert result.exit_code == 1


def test_structures_of_predictions(train: Command, molfun: Command) -> None:
    train("--strategy", "head_only")
    arguments = ("predict", "run/checkpoint", "--data", "data.csv", "--pdbs", "pdbs")
    result = molfun(*arguments, "--structures", "pdbs")
    assert result.exit_code == 1
    assert "pdbs holds other files. Choose a new folder for --structures" in result.stderr
    result = molfun(*arguments, "--structures", "folded")
    assert result.exit_code == 0, result.output
    assert "10 predicted structures in folded" in result.stdout
    assert len(table("folded/summary.csv")) == 10
    given = gemmi.read_structure("pdbs/s003.pdb")[0][0]
    found = gemmi.read_structure("folded/s003.cif")[0][0]
    assert [(str(r.seqid), r.name) for r in found] == [(str(r.seqid), r.name) for r in given]
    again = molfun(*arguments, "--structures", "folded", "--overwrite")
    assert again.exit_code == 0, again.output


def test_structures_of_a_prediction_that_was_killed(
    train: Command, molfun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("--strategy", "head_only")
    arguments = (
        "predict", "run/checkpoint", "--data", "data.csv", "--pdbs", "pdbs", "--structures", "out",
    )  # fmt: skip
    written = 0

    def killed(*given: Any) -> Any:
        nonlocal written
        written += 1
        if written > 2:
            raise KeyboardInterrupt
        return write_structure(*given)

    with monkeypatch.context() as patch:
        patch.setattr("molfun.structures.files.write_structure", killed)
        assert molfun(*arguments).exit_code != 0
    assert len(list(Path("out").glob("*.cif"))) == 2
    result = molfun("report", "out")
    assert "out holds structures of a prediction that has not ended." in " ".join(
        result.output.split()
    )
    Path("out/mine.pdb").write_text("kept")
    assert "out holds other files" in molfun(*arguments).stderr
    # of other samples: what the killed run left does not stay among them
    lines = Path("data.csv").read_text().splitlines()
    Path("data.csv").write_text("\n".join([lines[0], *lines[-2:]]) + "\n")
    result = molfun(*arguments, "--overwrite")
    assert result.exit_code == 0, result.output
    names = {line.split(",")[0] for line in lines[-2:]}
    assert (
        {path.stem for path in Path("out").glob("*.cif")} == names == set(table("out/summary.csv"))
    )
    assert Path("out/mine.pdb").read_text() == "kept"
    # structures of molfun fold have another note
    Path("out/predict.json").rename("out/fold.json")
    assert "out holds other files" in molfun(*arguments, "--overwrite").stderr


def test_names_of_predicted_structures_that_clash(
    train: Command, molfun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told before the model is opened."""
    train("--strategy", "head_only")
    rows = Path("data.csv").read_text()
    name = rows.splitlines()[1].split(",")[0]
    Path(f"pdbs/{name.upper()}.pdb").write_bytes(Path(f"pdbs/{name}.pdb").read_bytes())
    Path("data.csv").write_text(rows + rows.splitlines()[1].replace(name, name.upper()) + "\n")
    monkeypatch.setattr("molfun.cli.predict._opened", lambda _: pytest.fail("opened a model"))
    result = molfun(
        "predict", "run/checkpoint", "--data", "data.csv", "--pdbs", "pdbs", "--structures", "out"
    )
    assert result.exit_code == 1
    assert f"{name!r} and {name.upper()!r} would both be {name.upper()}.cif" in result.stderr
    assert not Path("out").exists()


def test_what_does_not_fit_is_told_and_the_rest_is_folded(
    fold: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("x.fasta").open("a") as file:
        file.write(f">giant\n{'MKTAYIAKQR' * 300}\n")
    monkeypatch.setattr("molfun.models.fold_memory.free_bytes", lambda _: 500 * 2**20)
    result = fold("--output", "out", "--recycles", 0)
    assert result.exit_code == 1
    told = "giant (3,000 residues) takes about"
    assert f"Not folded: {told}" in result.stdout
    assert "500 MB are free: up to" in result.stdout
    assert (
        "1 of 5 samples not folded: giant; the lines above and summary.csv say why."
        in result.stderr
    )
    rows = table("out/summary.csv")
    assert list(rows)[-1] == "giant"
    assert rows["giant"]["length"] == "3000"
    assert rows["giant"]["confidence"] == ""
    assert rows["giant"]["notes"].startswith(f"not folded: {told}")
    assert len(list(Path("out").glob("*.cif"))) == 4
    # with memory, the same command folds what is missing
    content = Path("x.fasta").read_text()
    Path("x.fasta").write_text(content.split(">giant")[0] + ">giant\nMKTAY\n")
    result = fold("--output", "out", "--recycles", 0)
    assert result.exit_code == 0, result.output
    assert "4 of 5 structures are there" in result.stdout


def test_one_bad_record_among_good_ones(fold: Command) -> None:
    """As for ``molfun embed``: all that cannot be used is told before anything is computed."""
    with Path("x.fasta").open("a") as file:
        file.write(">single\nM\n>lone\nK\n")
    result = fold("--output", "out")
    assert result.exit_code == 1
    assert "2 samples cannot be used with OpenFold:" in result.stderr
    for name in ("single", "lone"):
        assert f"{name} has 1 residues; openfold takes 2 or more." in result.stderr
    assert not Path("out").exists()


def test_an_ensemble(fold: Command, molfun: Command, tiny_model: Callable[..., Any]) -> None:
    models = [tiny_model(seed=seed) for seed in (0, 1)]
    Ensemble(models).save("both")
    options = ("fold", "both", "--sequences", "x.fasta", "--device", "cpu", "--no-plots")
    result = molfun(*options, "--output", "out", "--recycles", 0)
    assert result.exit_code == 0, result.output
    assert "Ensemble of 2 models" in result.stdout
    assert re.search(r"pair +10 +\S+ +\S+ +\S+ +[12] +\S+ A", result.stdout)
    assert "Note on all: the most confident of 2 models of an ensemble" in result.stdout
    rows = table("out/summary.csv")
    alone = [model.fold("MKTAY:ACDEF", recycles=0)[0].confidence for model in models]
    assert rows["pair"]["member"] == str(int(np.argmax(alone)) + 1)
    assert float(rows["pair"]["confidence"]) == pytest.approx(max(alone), abs=1e-4)
    assert float(rows["pair"]["spread"]) > 0
    best = Path("out/pair.pdb").read_text().splitlines()
    own = Path(f"out/member_{rows['pair']['member']}/pair.pdb").read_text().splitlines()
    atoms = [[line for line in lines if line.startswith("ATOM")] for lines in (best, own)]
    assert atoms[0] == atoms[1]
    # resumed, with the same files
    written = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    Path("out/pair.cif").unlink()
    result = molfun(*options, "--output", "out", "--recycles", 0)
    assert "3 of 4 structures are there" in result.stdout
    assert written == {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    # one model of it is another one, and nothing of the ensemble stays
    refused = molfun(*options, "--output", "out", "--recycles", 1)
    assert "out holds structures made with another recycles." in refused.stderr
    single = ("fold", "both/member_1", *options[2:], "--output", "out", "--recycles", 0)
    assert "made with another model" in molfun(*single).stderr
    assert molfun(*single, "--overwrite").exit_code == 0
    assert not list(Path("out").glob("member_*"))
    assert "member" not in table("out/summary.csv")["pair"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(fold: Command) -> None:
    letters = "ACDEFGHIKLMNPQRSTVWY"
    rng = np.random.default_rng(0)
    records = [f">s{i}\n{''.join(rng.choice(list(letters), 40))}\n" for i in range(12)]
    Path("x.fasta").write_text("".join(records))
    fold("--output", "whole", "--recycles", 2)
    with warm.Process(
        "-m", "molfun", "fold", "--sequences", "x.fasta", "--preset", "tiny", "--device", "cpu",
        "--no-plots", "--output", "killed", "--recycles", "2",
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 300
        while not list(Path("killed").glob("*.cif")):
            assert process.poll() is None, process.stderr()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert len(list(Path("killed").glob("*.cif"))) < 12
    result = fold("--output", "killed", "--recycles", 2)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in Path("whole").iterdir() if path.name != ".lock")
    assert names == sorted(path.name for path in Path("killed").iterdir() if path.name != ".lock")
    for name in names:
        assert (Path("whole") / name).read_bytes() == (Path("killed") / name).read_bytes()
