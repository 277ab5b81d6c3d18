"""No command writes over what it reads, whatever the name of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from molfun.cli.outputs import check_output, refuse_inputs_of_run
from molfun.errors import ConfigError, MolfunError, RunError
from molfun.registry import DATASETS

Command = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table, a link to it, a hard link, a folder of structures, a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("sequence\nMKV\n")
    (tmp_path / "link.csv").symlink_to("t.csv")
    (tmp_path / "hard.csv").hardlink_to(tmp_path / "t.csv")
    (tmp_path / "sub").mkdir()
    (tmp_path / "gone.csv").symlink_to("absent.csv")
    for name in ("pdbs/a.pdb", "c/meta.json", "q_structures.xyz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "inputs"),
    [
        ("t.csv", {"--data": "t.csv"}),
        ("link.csv", {"--data": "t.csv"}),
        ("t.csv", {"--data": "link.csv"}),
        ("hard.csv", {"--data": "t.csv"}),
        ("sub/../t.csv", {"--data": "./t.csv"}),
        ("gone.csv", {"--data": "absent.csv"}),
        ("t.csv", {"--pdbs": None, "--data": ["absent.csv", "t.csv"]}),
        ("pdbs/a.pdb", {"--pdbs": "pdbs"}),
        ("c/meta.json", {"CHECKPOINT": "c"}),
        ("c/new.csv", {"CHECKPOINT": "c"}),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_an_input_is_refused(
    folder: Path, output: str, inputs: dict[str, Any], overwrite: bool
) -> None:
    flag = next(name for name, value in inputs.items() if value)
    with pytest.raises(ConfigError, match=rf"{flag}[,. ].*Choose another --output"):
        check_output(output, inputs, overwrite=overwrite)
    assert (folder / "t.csv").read_text() == "sequence\nMKV\n"


def test_an_absolute_path_is_the_same_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is the file of --data, which would be lost"):
        check_output(folder / "t.csv", {"--data": "t.csv"}, overwrite=True)


def test_a_new_file_beside_inputs_is_fine(folder: Path) -> None:
    inputs = {"--data": "t.csv", "--pdbs": "pdbs", "CHECKPOINT": "c"}
    assert check_output("pdbs/new.csv", inputs, overwrite=False) == Path("pdbs/new.csv")
    assert check_output("out/new.csv", inputs, overwrite=False) == Path("out/new.csv")


def test_a_working_folder_that_is_an_input_can_be_written_into(folder: Path) -> None:
    (folder / "p.csv").write_text("old")
    inputs = {"--pdbs": ".", "--data": "t.csv"}
    assert check_output("p.csv", inputs, overwrite=True) == Path("p.csv")
    (folder / "b.PDB.gz").write_text("x")
    with pytest.raises(ConfigError, match=r"b\.PDB\.gz would be written and lies in \."):
        check_output("b.PDB.gz", inputs, overwrite=True)


def test_an_older_file_stays_until_asked(folder: Path) -> None:
    (folder / "p.csv").write_text("old")
    with pytest.raises(RunError, match=r"^p.csv exists. Replace with --overwrite, or choose"):
        check_output("p.csv", {"--data": "t.csv"}, overwrite=False)
    check_output("p.csv", {"--data": "t.csv"}, overwrite=True)
    with pytest.raises(RunError, match=r"gone\.csv exists"):  # a link to what is not there
        check_output("gone.csv", {}, overwrite=False)
    with pytest.raises(ConfigError, match="--output must name a file, and pdbs is a folder"):
        check_output("pdbs", {}, overwrite=True)


def test_structures_beside_a_table_are_known_before(folder: Path) -> None:
    beside = DATASETS["atoms"]().files_beside(Path("q.csv"))
    with pytest.raises(ConfigError, match=r"q_structures\.xyz would be written and is the file of"):
        check_output("q.csv", {"--data": "q_structures.xyz"}, overwrite=True, beside=beside)
    with pytest.raises(RunError, match=r"q_structures\.xyz exists"):
        check_output("q.csv", {"--data": "t.csv"}, overwrite=False, beside=beside)
    assert DATASETS["sequences"]().files_beside(Path("q.csv")) == []
    check_output("q.csv", {"--data": "t.csv"}, overwrite=False)


@pytest.mark.parametrize("source", ["run/predictions_val.csv", "run/checkpoint/trunk", "run/x.csv"])
def test_a_run_does_not_take_the_place_of_what_it_reads(folder: Path, source: str) -> None:
    path = folder / source
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    written = ("checkpoint", "predictions_val.csv")
    if source == "run/x.csv":
        refuse_inputs_of_run(Path("run"), written, {"--data": source})
        return
    with pytest.raises(ConfigError, match="is what --weights reads"):
        refuse_inputs_of_run(Path("run"), written, {"--weights": source})


def test_commands_refuse_before_they_compute(molfun: Command, folder: Path) -> None:
    rows = "\n".join(f"MKVA{'ACDEFGHIKL'[i]},{i}" for i in range(10))
    (folder / "t.csv").write_text(f"sequence,target\n{rows}\n")
    (folder / "x.fasta").write_text(">a\nMKV\n>b\nACD\n")
    train = ("fine-tune", "--backbone", "esm2_tiny", "--strategy", "head_only", "--epochs", 1)
    assert molfun(*train, "--data", "t.csv", "--output", "run").exit_code == 0
    predict = ("predict", "run/checkpoint", "--data", "x.fasta", "--output")

    refused = [
        (*predict, "x.fasta"),
        (*predict, "run/checkpoint/p.csv"),
        ("evaluate", "run/checkpoint", "--data", "t.csv", "--output", "t.csv"),
        ("embed", "--backbone", "esm2_tiny", "--sequences", "e.npz", "--output", "e.npz"),
        (*train, "--data", "run/predictions_val.csv", "--output", "run", "--overwrite"),
        (*train, "--data", "t.csv", "--config", "run/config.yaml", "--output", "run",
         "--overwrite"),
    ]  # fmt: skip
    (folder / "e.npz").write_text("sequence\nMKV\n")
    for command in refused:
        result = molfun(*command)
        assert result.exit_code == 1, command
        assert "Choose another --output" in result.output, (command, result.output)
    assert (folder / "x.fasta").read_text().startswith(">a")

    assert molfun(*predict, "p.csv").exit_code == 0
    assert "p.csv exists. Replace with --overwrite" in molfun(*predict, "p.csv").output
    assert molfun(*predict, "p.csv", "--overwrite").exit_code == 0


def test_a_model_is_not_saved_over_its_own_weights(folder: Path) -> None:
    from molfun import MolfunStructureModel

    model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
    model.save("one")
    weights = folder / "one" / "trunk.safetensors"
    again = MolfunStructureModel("esm2_tiny", head="regression", weights=weights, device="cpu")
    with pytest.raises(RunError, match="one would be replaced, and the base weights"):
        again.save("one")
    assert weights.is_file()


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("evil_a", ()),
        ("evil_b", ("--trust",)),
        ("evil_c", ("--plugin", "evil_c")),
        ("evil_d", ("plugin=evil_d",)),
    ],
)
def test_a_plugin_of_a_file_runs_only_if_the_command_line_says_so(
    molfun: Command, folder: Path, name: str, flag: tuple[str, ...]
) -> None:
    (folder / f"{name}.py").write_text("open('CANARY', 'w').close()\n")
    (folder / "c.yaml").write_text(f"data: t.csv\nplugin: {name}\ntrust: true\n")
    result = molfun("fine-tune", "--config", "c.yaml", "--backbone", "nosuch", *flag)
    assert result.exit_code == 1
    assert (folder / "CANARY").exists() == bool(flag)
    if not flag:
        assert f"c.yaml names the plugin '{name}'" in result.output
        assert f"--plugin {name}" in result.output


def test_the_plugin_of_a_resumed_run_is_asked_for_again(molfun: Command, folder: Path) -> None:
    (folder / "evil.py").write_text("open('CANARY', 'w').close()\n")
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text("data: t.csv\nplugin: evil\n")
    result = molfun("fine-tune", "--resume", "--output", "run")
    assert result.exit_code == 1
    assert "config.yaml names the plugin 'evil'" in result.output
    assert not (folder / "CANARY").exists()


def test_a_note_of_another_program_is_not_replaced_by_shards(folder: Path) -> None:
    from molfun.cli.embed import _claim

    (folder / "e.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(MolfunError, match=r"e\.json is no note of this command"):
        _claim(folder / "e.npz", {"model": "m"}, overwrite=True)
    (folder / "f-part-of-speech.npz").write_text("mine")
    _claim(folder / "f.npz", {"model": "m"}, overwrite=True)
    assert (folder / "f-part-of-speech.npz").exists()
