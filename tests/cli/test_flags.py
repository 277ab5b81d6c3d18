"""Flags are made of the settings; a kind of data from outside brings its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from click.testing import Result

from molfun.cli.checks import unread
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import Settings, option
from molfun.data.kinds.base import DataKind, Labels, _joined, kind_of, with_kinds
from molfun.errors import ConfigError, ContractError
from molfun.models.pretraining import DEFAULT
from molfun.registry import BACKBONES, HEADS, STRATEGIES, TASKS

ROOT = Path(__file__).parents[2]
Command = Callable[..., Result]


def shown(molfun: Command, *arguments: str) -> str:
    return molfun("fine-tune", *arguments).output


def test_the_help_fits_on_two_screens(molfun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    usual, everything = shown(molfun, "--help"), shown(molfun, "--help-all")
    assert len(usual.splitlines()) <= 80
    monkeypatch.setenv("COLUMNS", "80")
    assert len(shown(molfun, "--help").splitlines()) < 100
    assert "--gamma" not in usual
    settings = with_kinds(FineTuneSettings)
    flags = [name for name in settings.model_fields if not settings.flag(name).yaml_only]
    assert not [n for n in flags if f"--{n.replace('_', '-')}" not in everything]


def test_flags_of_one_backbone(molfun: Command) -> None:
    of_pet = shown(molfun, "--backbone", "pet", "--help-all")
    for flag in ("--alignments", "--preset", "--layout", "--demo-samples", "--mask-column"):
        assert flag not in of_pet
        assert flag in shown(molfun, "--help-all")
    assert "--energy-key" in of_pet
    assert "--energy-key" not in shown(molfun, "--help", "--backbone=esm2_t6_8M_UR50D")


def test_every_setting_has_a_description() -> None:
    for settings in (with_kinds(FineTuneSettings), PretrainSettings):
        assert not [name for name in settings.model_fields if not settings.describe(name)]


def test_defaults_that_strategies_have_are_those_of_the_settings() -> None:
    from molfun.registry import STRATEGIES

    assert PretrainSettings.model_fields["lr"].default == DEFAULT.lr
    told = FineTuneSettings.flag("lr").shown
    assert told == "1e-5; head_only 1e-3, lora 1e-4"
    for name, rate in (("head_only", 1e-3), ("lora", 1e-4), ("partial", 1e-5), ("full", 1e-5)):
        assert STRATEGIES[name]().main_lr == rate
    assert FineTuneSettings.flag("lora_rank").shown == str(STRATEGIES["lora"]().rank)


def test_the_schema_is_that_of_the_settings(molfun: Command, tmp_path: Path) -> None:
    printed = json.loads(molfun("schema").output)
    settings = with_kinds(FineTuneSettings)
    assert printed["properties"].keys() == settings.model_fields.keys()
    assert printed["properties"]["loss"]["enum"][:3] == ["mse", "mae", "huber"]
    assert printed["properties"]["strategy"]["enum"] == [*STRATEGIES, "auto"]
    assert printed["properties"]["head"]["anyOf"][0]["enum"] == [*HEADS, *TASKS]
    assert molfun("schema", "pretrain", "--output", tmp_path / "s.json").exit_code == 0
    assert "objective" in json.loads((tmp_path / "s.json").read_text())["properties"]
    assert "Did you mean 'pretrain'?" in molfun("schema", "pretrian").stderr


def test_what_a_new_user_mixes_up_is_told(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gb1.csv").write_text("sequence,target\nMKV,1\nMKA,2\n")
    assert "--preset tiny" in molfun("fine-tune", "--config", "tiny", "--demo").stderr
    for command in ("fine-tune", "pretrain"):
        said = molfun(command, "--resume").stderr
        assert said == "Error: --resume needs the folder of the run: add --output FOLDER.\n"
    said = molfun("fine-tune", "--data", "gb1.csv").stderr
    assert "has a column 'sequence' and no 'pdb_id'" in said
    assert "--backbone esm2_t6_8M_UR50D" in said
    twice = ("--target-column", "kd", "--target-column=tm")
    refused = molfun("fine-tune", "--data", "gb1.csv", *twice)
    said = " ".join(refused.stderr.replace("│", " ").split())
    assert refused.exit_code == 2
    assert "--target-column: given more than once; give several columns as one value" in said
    assert "--target-column A,B" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--strategy", "head_only", "--lora-rank", 4),
            "lora_rank is for lora; the strategy is head_only. Leave it out, or choose --strategy "
            "lora.",
        ),
        (
            ("--strategy", "full", "--unfreeze-blocks", 1, "--momentum", 0.9),
            "momentum is for sgd; the optimizer is adamw. Leave it out, or choose --optimizer sgd. "
            "unfreeze_blocks is for lora or partial; the strategy is full. Leave it out, or choose "
            "--strategy lora or partial.",
        ),
        (
            ("--gamma", 0.5, "--step-size", 2),
            "step_size, gamma are for step; the scheduler is cosine. Leave them out, or choose "
            "--scheduler step.",
        ),
        (
            ("--config", "own.yaml", "--scheduler", "step"),
            "plateau_factor is for plateau; the scheduler is step. Leave it out, or choose "
            "--scheduler plateau.",
        ),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(
    molfun: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("plateau_factor: 0.5\n")
    result = molfun("fine-tune", "--demo", *arguments)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {message}\n"


def test_what_a_run_wrote_out_is_not_given() -> None:
    stored = {"demo": True, "strategy": "head_only", "lora_rank": 8, "started_in": "../.."}
    assert unread(FineTuneSettings.build(stored), []) == []
    settings = FineTuneSettings.build({**stored, "started_in": None})
    assert unread(settings, [], resumed=True) == []
    assert unread(settings, ["lora_rank"], resumed=True) == unread(settings, [])
    # without a strategy, LoRA is chosen
    assert unread(FineTuneSettings.build({"demo": True, "lora_rank": 4}), ["lora_rank"]) == []


def test_what_is_wrong_is_told_of_the_file_or_the_command_line(
    molfun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora.yaml").write_text("epochs: many\n")
    command = ("fine-tune", "--demo", "--config", "lora.yaml", "epochs=1", "lora_rnk=3")
    assert molfun(*command).stderr == (
        "Error: command line:\n  lora_rnk: unknown setting. Did you mean 'lora_rank'?\n"
    )
    command = ("fine-tune", "--demo", "--config", "lora.yaml", "lora_rank=0")
    said = molfun(*command).stderr
    assert "lora.yaml:\n  epochs: Input should be a valid integer" in said
    assert "command line:\n  lora_rank: Input should be greater than or equal to 1" in said


def test_settings_of_one_name_must_be_the_same() -> None:
    class Mine(Settings):
        epochs: int = option(3, "Mine.")

    with pytest.raises(ConfigError, match="The setting 'epochs' of Mine differs from that of"):
        _joined(FineTuneSettings, (Mine,))


def test_a_kind_says_what_it_is() -> None:
    """A class that is still abstract may leave attributes open."""

    class Base(DataKind):
        name = "mine"

    with pytest.raises(ContractError, match=r"data kind Mine must set .* title: The samples"):

        class Mine(Base):
            def open(self, settings: Any, labels: Labels, *, like: Any = None) -> Any: ...

            def reopen(self, trained: Any, given: Any, *, labels: bool) -> Any: ...


def test_the_ending_of_a_file_chooses_among_the_kinds_of_a_backbone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKBONES._about, "esm2", {"inputs": ("structures", "sequences", "atoms")})
    monkeypatch.setitem(BACKBONES._entries, "esm2", "nowhere:ESM2")
    chosen = {
        "t.csv": "sequences",  # the first that no setting has to choose
        "t.fasta.gz": "sequences",
        "t.xyz": "atoms",
    }
    assert {name: kind_of("esm2", {"data": name}).name for name in chosen} == chosen
    assert kind_of("esm2", {"data": "t.fasta", "pdbs": "folder"}).name == "structures"


def test_settings_of_a_part_are_not_replaced_by_its_name(molfun: Command, project: Path) -> None:
    done = molfun("fine-tune", "--data", "data.csv", "--pdbs", "pdbs", "--output", "run",
                  "--strategy", "lora", "strategy.rank=4")  # fmt: skip
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "--strategy lora would replace strategy.rank=... ." in said
    assert "strategy_config.rank=VALUE" in said
    (project / "base.yaml").write_text("strategy: lora\n")
    assert molfun("fine-tune", "--config", "base.yaml", "strategy.rank=2").stderr == (
        "Error: Override strategy.rank: strategy is no section. Settings of a strategy are written "
        "strategy_config.rank=VALUE.\n"
    )


TOY = """
from molfun.config import option
from molfun.data.kinds.base import DataKind, TableSettings
from molfun.registry import BACKBONES


class Settings(TableSettings):
    letters_column: str = option("letters", "Column of letters.", panel="Toy", again=True)


class Letters(DataKind):
    name, title, backbone = "letters", "letters", "esm2_letters"
    settings = Settings
    columns = {"target_column": "label"}
    suffixes = (".letters",)
    default_batch_size = 4

    def open(self, settings, labels, *, like=None):
        return self._read(settings.data, settings.letters_column, True)

    def reopen(self, trained, given, *, labels):
        column = given.get("letters_column", trained["sequence_column"])
        return self._read(given["data"], column, labels)

    def open_unlabelled(self, path, settings, *, like=None):
        from molfun.data import SequenceDataset

        return SequenceDataset.from_list(open(path).read().split())

    def _read(self, path, column, labels):
        from molfun.data import SequenceDataset

        class LettersDataset(SequenceDataset):
            kind = "letters"
        return LettersDataset.from_csv(
            path, sequence_column=column, target_column="label", require_target=labels
        )
"""
BACKBONE = """
from molfun.backbones.esm2 import ESM2Backbone


class LettersBackbone(ESM2Backbone):
    name = "esm2_letters"
    inputs = ("letters",)
"""


def test_a_kind_of_data_from_another_package(tmp_path: Path) -> None:
    (tmp_path / "toy_kind.py").write_text(TOY)
    (tmp_path / "toy_backbone.py").write_text(BACKBONE)
    info = tmp_path / "toy_kind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: toy-kind\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[molfun.datasets]\nletters = toy_kind:Letters\n"
        "[molfun.backbones]\nesm2_letters = toy_backbone:LettersBackbone\n"
    )
    rows = [
        f"MK{a}V{b},{i % 5}"
        for i, (a, b) in enumerate(zip("ACDEFGHIKL", "LKIHGFEDCA", strict=True))
    ]
    (tmp_path / "t.letters").write_text("MKVL ACDEF GGSA")
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows, ""]))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def run(*arguments: str) -> str:
        done = warm.run("-m", "molfun.cli", *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "--letters-column" in run("fine-tune", "--help")
    run("fine-tune", "--backbone", "esm2_letters", "--preset", "esm2_tiny", "--data", "t.csv",
        "--letters-column", "text", "--strategy", "head_only", "--epochs", "1", "--device", "cpu",
        "--output", "run")  # fmt: skip
    assert "batch_size: 4" in (tmp_path / "run/config.yaml").read_text()
    run("embed", "--checkpoint", "run/checkpoint", "--sequences", "t.letters")
    assert "10 predictions" in run("predict", "run/checkpoint", "--data", "t.csv")
    assert "10 samples" in run("evaluate", "run/checkpoint", "--data", "t.csv",
                               "--letters-column", "text")  # fmt: skip


def test_a_kind_of_data_from_a_plugin(tmp_path: Path) -> None:
    """One process for all commands; not this one, whose registries must stay as they are."""
    toy = TOY.replace(
        "default_batch_size = 4", 'default_batch_size = 4\n    objective = "masked_lm"'
    )
    toy = toy.replace("from_list(open(path)", "from_list([settings.letters_column] and open(path)")
    (tmp_path / "toy_plugin.py").write_text(
        f"{toy}\nfrom molfun.registry import DATASETS\n"
        "DATASETS.register('letters', Letters)\n"
        "BACKBONES.register('esm2_letters', 'toy_backbone:LettersBackbone')\n"
    )
    (tmp_path / "toy_backbone.py").write_text(BACKBONE)
    rows = [f"MK{a}V,{i % 5}" for i, a in enumerate("ACDEFGHIKL")]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows, ""]))
    (tmp_path / "t.letters").write_text("MKVL ACDEF GGSA MKAA")
    model = "--backbone esm2_letters --preset esm2_tiny --device cpu --epochs 1"
    commands = [
        f"fine-tune {model} --data t.csv --letters-column text --strategy head_only --output run",
        "predict run/checkpoint --data t.csv --letters-column text",
        "evaluate run/checkpoint --data t.csv",
        f"pretrain {model} --data t.letters --output pre",
    ]
    code = (
        "import sys; from typer.testing import CliRunner; from molfun.cli.app import app\n"
        "for line in sys.argv[1:]:\n"
        "    done = CliRunner().invoke(app, [*line.split(), '--plugin', 'toy_plugin'])\n"
        "    assert done.exit_code == 0, (line, done.output)\n"
        "    print(done.output)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = warm.run("-c", code, *commands, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 predictions written" in done.stdout
    assert "10 samples: " in done.stdout
    assert (tmp_path / "pre/weights.safetensors").is_file()
