"""The guide's recipes for new parts, from outside the package, and configurations in YAML."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pl = pytest.importorskip("lightning.pytorch", reason="needs pip install 'molfun[lightning]'")

from molfun import MolfunStructureModel  # noqa: E402
from molfun.errors import ConfigError, DataError  # noqa: E402
from molfun.lightning import (  # noqa: E402
    CONFIG_REGISTRY,
    ENCODER_CONFIG_REGISTRY,
    ENCODER_REGISTRY,
    SSL_REGISTRY,
    TASK_HEAD_REGISTRY,
    FineTuneModule,
    SSLPretrainModule,
    load_config,
)
from molfun.registry import ENCODER_CONFIGS, ENCODERS, HEADS, OBJECTIVES  # noqa: E402

NUMBERS = itertools.count()

MY_ENCODER = """
from dataclasses import dataclass

import torch
from torch import nn

from molfun.lightning import BaseEncoder, EncoderConfig


@dataclass
class MyEncoderConfig(EncoderConfig):
    hidden_size: int = 256


class MyEncoder(BaseEncoder):
    def __init__(self, config: MyEncoderConfig):
        super().__init__(config)
        self.net = nn.Sequential(
            nn.Linear(config.d_input, config.hidden_size),
            nn.Tanh(),
            nn.Linear(config.hidden_size, config.d_model),
        )

    def forward(self, x, mask=None, padding_mask=None):
        return self.net(x)
"""

MY_SSL = """
from dataclasses import dataclass

import torch
from torch import nn

from molfun.lightning import BaseSSLObjective, SSLConfig


@dataclass
class MySSLConfig(SSLConfig):
    name: str = "my_ssl"
    share: float = 0.5


class MySSLObjective(BaseSSLObjective):
    def __init__(self, encoder, config: MySSLConfig):
        super().__init__(encoder, config)
        self.decoder = nn.Linear(encoder.config.d_model, encoder.config.d_input)

    def forward(self, x, mask):
        hidden = mask & (torch.rand(mask.shape) < self.config.share)
        left = mask & ~hidden
        error = (self.decoder(self.encoder(x * left, left)) - x)[hidden]
        loss = error.square().mean()
        return loss, {"loss": loss, "error": error.abs().mean()}
"""

MY_HEAD = """
from torch import nn

from molfun.lightning import BaseTaskHead, TaskHeadConfig


class MyTaskHead(BaseTaskHead):
    def __init__(self, config: TaskHeadConfig):
        super().__init__(config)
        self.net = nn.Sequential(
            nn.Linear(config.input_dim, config.width), nn.ReLU(),
            nn.Linear(config.width, config.output_dim),
        )

    def forward(self, encoder_output):
        logits = self.net(encoder_output)
        return {"logits": logits, "probs": logits.softmax(-1)}
"""

ENCODER = {"name": "linear", "d_input": 3, "d_model": 8}


@pytest.fixture
def outside(tmp_path: Path) -> Any:
    """Import a text as a module of its own: ``outside(text)``."""

    def load(text: str) -> ModuleType:
        name = f"outside_{next(NUMBERS)}"
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True)
def _registries_as_before() -> Iterator[None]:
    """What a test registers is gone behind it."""
    registries: Any = (ENCODERS, ENCODER_CONFIGS, OBJECTIVES, HEADS, CONFIG_REGISTRY)
    before = [dict(registry._entries) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry._entries = entries


# --- a new encoder (S22 to S25) ------------------------------------------------------------------


def test_the_recipe_for_an_encoder(outside: Any, trainer: Any, loader: Any, tmp_path: Path) -> None:
    """S22 to S25: a class, its settings and two lines; then by name, from a file of its group."""
    mine = outside(MY_ENCODER)
    ENCODER_REGISTRY["my_encoder"] = mine.MyEncoder
    ENCODER_CONFIG_REGISTRY["my_encoder"] = mine.MyEncoderConfig
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "my_encoder.yaml").write_text("name: my_encoder\nhidden_size: 32\n")
    (tmp_path / "pretrain.yaml").write_text("encoder:\n  name: gru_d\nssl:\n  name: mae\n")
    overrides = ["encoder=my_encoder", "encoder.d_model=16"]
    config = load_config(tmp_path / "pretrain.yaml", overrides)
    assert config["encoder"] == {"name": "my_encoder", "hidden_size": 32, "d_model": 16}
    module = SSLPretrainModule(config)
    trainer(1).fit(module, loader(), loader(8))
    assert type(module.get_encoder()) is mine.MyEncoder
    assert module.get_encoder().config.hidden_size == 32
    module.save_encoder(tmp_path / "encoder.pt")
    tuned = FineTuneModule({"task": {"task_type": "binary"}}, tmp_path / "encoder.pt")
    stock = trainer(1)
    stock.fit(tuned, loader(), loader(8))
    assert type(tuned.get_encoder()) is mine.MyEncoder
    assert "val/accuracy" in stock.callback_metrics
    with pytest.raises(ConfigError, match=r"'hiden_size'.*Did you mean 'hidden_size'\?"):
        SSLPretrainModule({"encoder": {"name": "my_encoder", "hiden_size": 3}, "ssl": "mae"})


def test_one_line_suffices_where_an_encoder_names_its_settings(outside: Any) -> None:
    """S23: ``config_class`` instead of the second registry."""
    mine = outside(MY_ENCODER + "\n\nMyEncoder.config_class = MyEncoderConfig\n")
    ENCODER_REGISTRY["my_encoder"] = mine.MyEncoder
    settings = {"name": "my_encoder", "d_input": 3, "hidden_size": 5}
    module = SSLPretrainModule({"encoder": settings, "ssl": "mae"})
    assert module.get_encoder().net[0].out_features == 5


# --- a new objective (S26 to S29) ----------------------------------------------------------------


def test_the_recipe_for_an_objective(
    outside: Any, trainer: Any, loader: Any, tmp_path: Path
) -> None:
    """S26 to S29: its metrics are logged, and what it learned is left behind."""
    mine = outside(MY_SSL)
    SSL_REGISTRY["my_ssl"] = mine.MySSLObjective
    CONFIG_REGISTRY["my_ssl"] = mine.MySSLConfig
    (tmp_path / "ssl").mkdir()
    (tmp_path / "ssl" / "my_ssl.yaml").write_text("name: my_ssl\nshare: 0.3\n")
    (tmp_path / "pretrain.yaml").write_text("encoder: linear\nssl: mae\n")
    config = load_config(tmp_path / "pretrain.yaml", ["ssl=my_ssl"])
    assert config["ssl"] == {"name": "my_ssl", "share": 0.3}
    torch.manual_seed(0)
    module = SSLPretrainModule({**config, "optimizer": {"lr": 0.05}})
    stock = trainer(3)
    stock.fit(module, loader(), loader(8))
    logged = {name for name in stock.callback_metrics if not name.startswith("train/loss_")}
    assert logged == {"train/loss", "val/loss", "train/error", "val/error"}
    inner = module.objective.inner  # type: ignore[union-attr]
    assert type(inner) is mine.MySSLObjective
    assert inner.config.share == 0.3
    assert inner.encoder is module.get_encoder()
    names = [name for name, _ in module.named_parameters()]
    assert sum("projection.weight" in name for name in names) == 1
    assert SSL_REGISTRY["my_ssl"] is mine.MySSLObjective
    stock.save_checkpoint(tmp_path / "last.ckpt")
    again = SSLPretrainModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(again.objective.inner.decoder.weight, inner.decoder.weight)
    with pytest.raises(ConfigError, match=r"ssl: .*'shar'.*Did you mean 'share'\?"):
        SSLPretrainModule({"ssl": {"name": "my_ssl", "shar": 0.1}})


def test_an_objective_of_ones_own_learns_and_repeats_in_validation(
    outside: Any, trainer: Any, loader: Any
) -> None:
    """S26, S9: its masks come from torch's chance, which begins anew with each batch."""
    mine = outside(MY_SSL)
    SSL_REGISTRY.register("my_ssl")(mine.MySSLObjective)
    mine.MySSLObjective.config_class = mine.MySSLConfig
    torch.manual_seed(0)
    module = SSLPretrainModule(
        {"encoder": ENCODER, "ssl": "my_ssl", "optimizer": {"name": "adam", "lr": 0.02}}
    )
    losses = []
    for epochs in (0, 30):
        if epochs:
            trainer(epochs).fit(module, loader())
        for _ in range(2):
            found = trainer(1).validate(module, loader(24), verbose=False)[0]
            losses.append(found["val/loss"])
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert losses[2] < losses[0]


def test_an_objective_that_knows_no_padding_is_not_given_any(outside: Any) -> None:
    """S26: one that asks for ``padding_mask`` gets it."""
    mine = outside(MY_SSL)
    SSL_REGISTRY["my_ssl"] = mine.MySSLObjective
    CONFIG_REGISTRY["my_ssl"] = mine.MySSLConfig
    batch = {
        "timeseries": torch.zeros(2, 4, 3),
        "padding_mask": torch.tensor([[True] * 4, [True, True, False, False]]),
    }
    module = SSLPretrainModule({"encoder": ENCODER, "ssl": "my_ssl"})
    with pytest.raises(DataError, match=r"MySSLObjective\.forward would take padding for data"):
        module.training_step(batch, 0)
    seen = []

    class Padded(mine.MySSLObjective):  # type: ignore[misc,name-defined]
        def forward(self, x: Any, mask: Any, padding_mask: Any) -> Any:
            seen.append(padding_mask)
            return super().forward(x, mask)

    SSL_REGISTRY["padded"] = Padded
    CONFIG_REGISTRY["padded"] = mine.MySSLConfig
    SSLPretrainModule({"encoder": ENCODER, "ssl": "padded"}).training_step(batch, 0)
    assert torch.equal(seen[0], batch["padding_mask"])


def test_a_teacher_in_an_objective_of_ones_own_is_told_of_steps(
    outside: Any, trainer: Any, loader: Any
) -> None:
    """S26: ``after_step``, once an optimizer step."""
    mine = outside(MY_SSL)
    told: list[float] = []
    mine.MySSLObjective.after_step = lambda self, progress: told.append(progress)
    SSL_REGISTRY["my_ssl"] = mine.MySSLObjective
    CONFIG_REGISTRY["my_ssl"] = mine.MySSLConfig
    module = SSLPretrainModule({"encoder": ENCODER, "ssl": "my_ssl"})
    trainer(1).fit(module, loader(16))
    assert told == [0.5, 1.0]


# --- a new head (S30 to S32) ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "width"), [("binary", 2), ("multiclass", 3), ("multilabel", 3), ("regression", 1)]
)
def test_the_recipe_for_a_head(
    outside: Any, trainer: Any, loader: Any, task: str, width: int
) -> None:
    """S30 to S32: one line, then by name, with keys of its own."""
    mine = outside(MY_HEAD)
    TASK_HEAD_REGISTRY["my_head"] = mine.MyTaskHead
    section = {"task_type": task, "head_type": "my_head", "width": 5}
    if width == 3:
        section["n_classes"] = 3
    module = FineTuneModule({"encoder": ENCODER, "task": section})
    stock = trainer(1)
    stock.fit(module, loader(task=task), loader(8, task=task))
    head = module.get_task_head()
    assert type(head) is mine.MyTaskHead
    assert [layer.out_features for layer in head.net[::2]] == [5, width]
    assert head.config.task_type == task
    assert ("val/r2" if task == "regression" else "val/f1") in stock.callback_metrics
    stock.test(module, loader(8, task=task), verbose=False)
    assert TASK_HEAD_REGISTRY["my_head"] is mine.MyTaskHead


def test_a_key_that_a_head_does_not_read_is_unknown(outside: Any) -> None:
    """S32: with the nearest name, be it the task's or the head's."""
    TASK_HEAD_REGISTRY["my_head"] = outside(MY_HEAD).MyTaskHead
    for typo, meant in (("widht", "width"), ("hiden_dims", "hidden_dims")):
        section = {"task_type": "binary", "head_type": "my_head", "width": 5, typo: 3}
        with pytest.raises(ConfigError, match=rf"key in task '{typo}'.*Did you mean '{meant}'\?"):
            FineTuneModule({"encoder": ENCODER, "task": section})


def test_a_head_may_declare_its_settings(outside: Any) -> None:
    """S32: in a dataclass, with defaults."""
    text = MY_HEAD + (
        "\n\nfrom dataclasses import dataclass\n\n@dataclass\nclass Wide(TaskHeadConfig):\n"
        "    width: int = 7\n\nMyTaskHead.config_class = Wide\n"
    )
    TASK_HEAD_REGISTRY["my_head"] = outside(text).MyTaskHead
    section = {"task_type": "binary", "head_type": "my_head"}
    module = FineTuneModule({"encoder": ENCODER, "task": section})
    assert module.get_task_head().net[0].out_features == 7
    with pytest.raises(ConfigError, match=r"setting of Wide 'widht'.*Did you mean 'width'\?"):
        FineTuneModule({"encoder": ENCODER, "task": {**section, "widht": 3}})


def test_a_head_gets_what_its_pooling_says(outside: Any) -> None:
    """S30: a vector for each time step where it asks for that."""
    text = MY_HEAD.replace(
        "logits = self.net(encoder_output)", "logits = self.net(encoder_output[:, -1])"
    )
    TASK_HEAD_REGISTRY["last"] = outside(text).MyTaskHead
    section = {"task_type": "binary", "head_type": "last", "width": 5, "pooling": "none"}
    module = FineTuneModule({"encoder": ENCODER, "task": section}).eval()
    values = torch.randn(2, 4, 3)
    changed = values.clone()
    changed[:, :-1] += 1
    assert torch.equal(module(values)["probs"], module(changed)["probs"])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ('{"probs": logits}', r"must give 'logits' \(batch, 2\); it gave keys 'probs'"),
        ('{"logits": logits[:, :1]}', "it gave 1 logits"),
    ],
)
def test_a_head_without_fitting_logits_is_refused(outside: Any, given: str, text: str) -> None:
    """S30."""
    source = MY_HEAD.replace('{"logits": logits, "probs": logits.softmax(-1)}', given)
    TASK_HEAD_REGISTRY["odd"] = outside(source).MyTaskHead
    section = {"task_type": "binary", "head_type": "odd", "width": 5}
    with pytest.raises(ConfigError, match=text):
        FineTuneModule({"encoder": ENCODER, "task": section})(torch.zeros(2, 4, 3))


def test_a_head_of_the_guide_is_a_head_of_molfun(outside: Any) -> None:
    """S31: there is one list of names, so the facade takes it, too."""
    text = MY_HEAD.replace("config.width", "4")
    TASK_HEAD_REGISTRY["my_head"] = outside(text).MyTaskHead
    model = MolfunStructureModel(
        "timeseries", config="linear", backbone_config={"d_input": 3}, head="my_head",
        task="binary", device="cpu",
    )  # fmt: skip
    assert "my_head" in HEADS
    assert model.head is not None
    assert model.head.n_outputs == 2


def test_only_parts_of_the_right_kind_are_registered() -> None:
    """S27, S31."""
    with pytest.raises(ConfigError, match="int cannot be registered as 'x': derive it from BaseTa"):
        TASK_HEAD_REGISTRY["x"] = int
    with pytest.raises(ConfigError, match="derive it from BaseSSLObjective"):
        SSL_REGISTRY["x"] = int
    assert "x" not in TASK_HEAD_REGISTRY
    assert {"mae", "jepa", "contrastive"} <= set(SSL_REGISTRY)


# --- configurations (S11, S24, S25, S28, S29) ----------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "finetune.yaml"
    path.write_text(
        "encoder:\n  name: linear\n  d_model: 8\n"
        "task:\n  task_name: mortality_24h\n  task_type: binary\n  hidden_dims: [64]\n"
        "training:\n  freeze_encoder: true\n  unfreeze_epoch: null\n  max_epochs: 50\n"
        "optimizer:\n  name: adamw\n  lr: 1e-4\n"
        "scheduler: null\n"
    )
    return path


def test_yaml_becomes_plain_sections(file: Path) -> None:
    """S11: 1e-4 is a number, and what is null is left out."""
    config = load_config(file)
    assert config["optimizer"] == {"name": "adamw", "lr": 1e-4}
    assert "scheduler" not in config
    module = FineTuneModule({**config, "encoder": {**config["encoder"], "d_input": 3}})
    assert module.trainer_options == {"max_epochs": 50}
    assert module.configure_optimizers().param_groups[0]["lr"] == 1e-4


def test_overrides_have_dots_and_yaml_values(file: Path) -> None:
    """S25: numbers, lists, null and sections that are not there yet."""
    config = load_config(
        file,
        [
            "encoder.d_model=64", "task.hidden_dims=[32, 16]", "optimizer.lr=5e-4",
            "training.max_epochs=null", "scheduler.name=cosine", "scheduler.T_max=5",
        ],
    )  # fmt: skip
    assert config["encoder"] == {"name": "linear", "d_model": 64}
    assert config["task"]["hidden_dims"] == [32, 16]
    assert config["optimizer"]["lr"] == 5e-4
    assert config["training"]["max_epochs"] is None
    assert config["scheduler"] == {"name": "cosine", "T_max": 5}


def test_a_name_stands_for_a_part_with_its_defaults(file: Path) -> None:
    """S25, S29: where there is no file of that name."""
    assert load_config(file, ["encoder=gru_d"])["encoder"] == {"name": "gru_d"}
    assert load_config({"ssl": "jepa"}) == {"ssl": {"name": "jepa"}}


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["encoder.d_modle=3"], r"'d_modle'.*Did you mean 'd_model'\?"),
        (["enocder.d_model=3"], r"enocder: unknown section. Did you mean 'encoder'\?"),
        (["encoder=transfomer"], r"'transfomer'.*Did you mean 'transformer'\?"),
        (["encoder.d_model"], "Override 'encoder.d_model' must look like section.key=value"),
        (["=3"], "Override '=3' must look like"),
        (["encoder.d_model=[3"], "is no valid YAML"),
        (["encoder.name.x=3"], "Override encoder.name.x: encoder.name is no section"),
        (
            ["task=mortality"],
            r"task must hold .* got 'mortality', and there is no .*mortality\.yam",
        ),
        (["training=5"], "training must hold `name: value` lines, got 5"),
        (["task.task_type=binray"], r"'binray'.*Did you mean 'binary'\?"),
    ],
)
def test_what_is_wrong_in_overrides_is_named(file: Path, overrides: list[str], text: str) -> None:
    """S25."""
    with pytest.raises(ConfigError, match=text):
        load_config(file, overrides)


def test_a_configuration_of_neither_kind_is_refused(tmp_path: Path) -> None:
    """S11."""
    with pytest.raises(ConfigError, match=r"taks: unknown section. Did you mean 'task'\?"):
        load_config({"taks": {"task_type": "binary"}})
    with pytest.raises(ConfigError, match="no section ssl"):
        load_config({"encoder": "gru_d"})
    with pytest.raises(ConfigError, match=r"Cannot read .*none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_groups_of_every_section_may_be_files(tmp_path: Path) -> None:
    """S24, S28: also of sections that no single name stands for."""
    for section, text in {
        "task": "task_type: regression\nhead_type: linear\n",
        "training": "freeze_encoder: false\n",
        "optimizer": "name: sgd\nlr: 0.1\nmomentum: 0.5\n",
    }.items():
        (tmp_path / section).mkdir()
        (tmp_path / section / "mine.yaml").write_text(text)
    (tmp_path / "finetune.yaml").write_text("task: mine\ntraining: mine\noptimizer: mine\n")
    config = load_config(tmp_path / "finetune.yaml")
    assert config == {
        "task": {"task_type": "regression", "head_type": "linear"},
        "training": {"freeze_encoder": False},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5},
    }
