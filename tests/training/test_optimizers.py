"""Optimizers by name: torch's own, for strategies, for the command line and for other loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import Crash, run_fit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from molfun.cli import fine_tune, pretrain
from molfun.cli.main import app
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import read_yaml
from molfun.errors import ConfigError
from molfun.models.structure import MolfunStructureModel
from molfun.nn.optimizers import OPTIMIZERS, build_optimizer
from molfun.strategies.base import SCHEDULERS
from molfun.training import FinetuneStrategy, FullFinetune, GradualFinetune, HeadOnlyFinetune
from molfun.training.groups import make_optimizer

ModelFactory = Callable[..., MolfunStructureModel]

OWN = {
    "adam": lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.99), fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.99), fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.7),
}


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "lr": 0.1, "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "lr": 0.02, "weight_decay": 0.0},
    ]


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    inputs = torch.linspace(-1, 1, 12, dtype=next(model.parameters()).dtype).reshape(3, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


class Calls(TorchDispatchMode):
    """Names of all kernels that are launched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# --- torch's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_they_step_as_torchs_own_bit_by_bit(name: str) -> None:
    ours, theirs = small_model(), small_model()
    options = {"momentum": 0.7, "betas": [0.8, 0.99]}
    take_steps(ours, build_optimizer(name, groups_of(ours), **options))
    take_steps(theirs, OWN[name](groups_of(theirs)))
    for p, q, start in zip(
        ours.parameters(), theirs.parameters(), small_model().parameters(), strict=True
    ):
        assert torch.equal(p, q)
        assert not torch.equal(p, start)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_fused_step_is_the_step_in_single_operations(name: str) -> None:
    ours, theirs = small_model().double(), small_model().double()
    take_steps(ours, build_optimizer(name, groups_of(ours)), steps=20)
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    take_steps(theirs, plain(groups_of(theirs), fused=False, foreach=False), steps=20)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_parameters_that_can_be_read_once_are_read_once() -> None:
    model = small_model()
    made = build_optimizer("adamw", [{"params": model.parameters(), "lr": 0.1}])
    assert len(made.param_groups[0]["params"]) == 4


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_they_launch_what_torchs_own_launch(name: str) -> None:
    calls = []
    for make in (lambda groups: build_optimizer(name, groups), OWN[name]):
        model = small_model()
        optimizer = make(groups_of(model))
        take_steps(model, optimizer, steps=1)  # makes the moments
        with Calls() as recorded:
            optimizer.step()
        calls.append(recorded.names)
    assert calls[0] == calls[1]
    assert calls[0]


def test_the_defaults_of_the_optimizer_of_before() -> None:
    """AdamW with torch's defaults, all parameters in one step."""
    made = build_optimizer("adamw", groups_of(small_model()))
    before = torch.optim.AdamW(groups_of(small_model()), fused=True)
    for ours, theirs in zip(made.param_groups, before.param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }


@pytest.mark.parametrize(
    ("name", "left"), [("adamw", 1 - 0.1 * 0.5), ("sgd", 1 - 0.1 * 0.5), ("adam", 1 - 0.1)]
)
def test_weight_decay_of_adam_is_a_gradient(name: str, left: float) -> None:
    """Without any other gradient: Adam's step has the size of the rate, whatever the decay."""
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = build_optimizer(name, [weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert weight.flatten().tolist() == pytest.approx([left] * 4, rel=1e-6)


def test_momentum_is_not_nesterovs() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = build_optimizer("sgd", [weight], lr=1.0, momentum=0.5)
    for expected in (-1.0, -2.5, -4.25):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert weight.item() == expected


# --- parameters and groups -----------------------------------------------------------------------


def test_plain_parameters_take_the_arguments() -> None:
    model = small_model()
    optimizer = build_optimizer("sgd", model.parameters(), lr=0.3, weight_decay=0.1, momentum=0.2)
    (group,) = optimizer.param_groups
    assert [len(group["params"]), group["lr"], group["weight_decay"]] == [4, 0.3, 0.1]
    assert group["momentum"] == 0.2
    assert not group["nesterov"]


def test_what_a_group_says_goes_first() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [first], "lr": 0.5, "weight_decay": 0.0}, {"params": [second]}]
    optimizer = build_optimizer("adam", groups, lr=0.1, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0), (0.1, 0.2)]


@pytest.mark.parametrize(
    ("name", "groups", "options", "message"),
    [
        (
            "adamx",
            [],
            {"lr": 0.0, "weight_decay": -1, "momentum": 1.0, "betas": (0.9, 1.0)},
            "Unknown optimizer 'adamx'; known: adam, adamw, sgd. Did you mean 'adam'? "
            "lr must be above 0, got 0.0. weight_decay must be at least 0, got -1. "
            "momentum must be in [0, 1), got 1.0. "
            "betas must be two numbers in [0, 1), got (0.9, 1.0). "
            "There is no parameter to train.",
        ),
        (
            "sgd",
            [nn.Parameter(torch.ones(1))],
            {},
            "Give lr, or a group of its own with lr to every parameter.",
        ),
        (
            "sgd",
            [nn.Parameter(torch.ones(1))],
            {"lr": "1e-4", "weight_decay": True, "momentum": math.nan},
            "lr must be above 0, got '1e-4'. weight_decay must be at least 0, got True. "
            "momentum must be in [0, 1), got nan.",
        ),
        (
            ["sgd"],
            [nn.Parameter(torch.ones(1))],
            {"lr": 1.0},
            "Unknown optimizer ['sgd']; known: adam, adamw, sgd.",
        ),
    ],
)
def test_all_problems_are_named_at_once(
    name: Any, groups: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_optimizer(name, groups, **options)
    assert str(caught.value).startswith(message)


def test_another_package_may_add_one(
    tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIMIZERS._entries, "rmsprop", torch.optim.RMSprop)
    model, strategy = tiny_model(), HeadOnlyFinetune(optimizer="rmsprop", weight_decay=0.3)
    strategy.setup(model)
    optimizer, _ = make_optimizer(strategy, model)
    assert type(optimizer) is torch.optim.RMSprop
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.3, 0.0}


# --- strategies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
)
def test_a_strategy_has_it_over_its_groups(
    tiny_model: ModelFactory, name: str, kind: type[torch.optim.Optimizer]
) -> None:
    model = tiny_model()
    strategy = HeadOnlyFinetune(lr=0.01, optimizer=name, momentum=0.4, weight_decay=0.3)
    strategy.setup(model)
    optimizer, parameters = make_optimizer(strategy, model)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == 0.01
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
        assert group.get("momentum", None) == (0.4 if name == "sgd" else None)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(parameters)


def test_a_strategy_names_all_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        HeadOnlyFinetune(
            optimizer="sdg",
            scheduler="plateu",  # type: ignore[arg-type]
            plateau_mode="mni",  # type: ignore[arg-type]
            momentum=1.0,
            step_size=0,
            gamma=0.0,
            plateau_factor=1.0,
            plateau_patience=-1,
            min_lr=math.inf,
            lr=-1.0,
        )
    assert str(caught.value) == (
        "HeadOnlyFinetune: Unknown optimizer 'sdg'; known: adam, adamw, sgd. Did you mean 'sgd'? "
        "Unknown scheduler 'plateu'; known: constant, cosine, linear, plateau, step, "
        "warmup_cosine. Did you mean 'plateau'? "
        "Unknown plateau_mode 'mni'; known: max, min. Did you mean 'min'? "
        "step_size must be at least 1, got 0. plateau_patience must be at least 0, got -1. "
        "momentum must be in [0, 1), got 1.0. gamma must be above 0 and at most 1, got 0.0. "
        "plateau_factor must be above 0 and below 1, got 1.0. "
        "min_lr must be a number of at least 0, got inf. lr must be above 0, got -1.0."
    )


def test_values_of_the_wrong_type_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        HeadOnlyFinetune(
            optimizer={"name": "sgd"},  # type: ignore[arg-type]
            scheduler=["step"],  # type: ignore[arg-type]
        )
    assert "Unknown optimizer {'name': 'sgd'}; known: adam, adamw, sgd." in str(caught.value)
    assert "Unknown scheduler ['step']; known: constant," in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        HeadOnlyFinetune(
            step_size=2.5,  # type: ignore[arg-type]
            min_lr="1e-6",  # type: ignore[arg-type]
        )
    assert str(caught.value) == (
        "HeadOnlyFinetune: min_lr must be a number, got '1e-6'. "
        "step_size must be a whole number, got 2.5."
    )


def test_settings_survive_json_and_the_wrapper() -> None:
    inner = FullFinetune(
        optimizer="sgd",
        momentum=0.5,
        scheduler="plateau",
        plateau_mode="max",
        plateau_patience=3,
        min_lr=1e-7,
    )
    for strategy in (inner, GradualFinetune(inner=inner, step_size=7)):
        assert FinetuneStrategy.from_dict(json.loads(json.dumps(strategy.to_dict()))) == strategy
        assert (strategy.optimizer, strategy.momentum) == ("sgd", 0.5)
        assert (strategy.plateau_mode, strategy.min_lr) == ("max", 1e-7)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_each_learns_and_a_killed_run_goes_on_bit_by_bit(tmp_path: Path, name: str) -> None:
    strategy = HeadOnlyFinetune(lr=1e-2, optimizer=name, ema_decay=0.5, accumulation_steps=2)
    whole = run_fit(None, strategy=strategy, epochs=2)
    losses = [row["train_loss"] for row in whole.history]
    assert losses[1] < losses[0]
    with pytest.raises(Crash):
        run_fit(tmp_path, strategy=strategy, epochs=2, stop_at=10)
    assert run_fit(tmp_path, strategy=strategy, epochs=2, resume=True).same_results(whole)
    others = [n for n in OPTIMIZERS if n != name]
    other = run_fit(None, strategy=replace(strategy, optimizer=others[0]), epochs=2)
    assert not other.same_results(whole)


# --- command line --------------------------------------------------------------------------------

FLAGS = [
    "--optimizer", "sgd", "--momentum", "0.5", "--scheduler", "plateau", "--min-lr", "1e-6",
    "--plateau-patience", "2", "--plateau-factor", "0.4",
]  # fmt: skip
CHOSEN = {
    "optimizer": "sgd",
    "momentum": 0.5,
    "scheduler": "plateau",
    "min_lr": 1e-6,
    "plateau_patience": 2,
    "plateau_factor": 0.4,
}
STEP_FLAGS = ["--scheduler", "step", "--min-lr", "1e-6", "--step-size", "3", "--gamma", "0.2"]
STEP_CHOSEN = {"scheduler": "step", "min_lr": 1e-6, "step_size": 3, "gamma": 0.2}


def settings_of(command: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Settings that a command line leads to; the command itself does not run."""
    caught: list[Any] = []
    monkeypatch.setattr(command, "run", lambda settings, _: caught.append(settings))
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return caught[0]


@pytest.mark.parametrize("strategy", ["head_only", "lora", "gradual"])
@pytest.mark.parametrize(("flags", "chosen"), [(FLAGS, CHOSEN), (STEP_FLAGS, STEP_CHOSEN)])
def test_flags_reach_the_strategy(
    monkeypatch: pytest.MonkeyPatch, strategy: str, flags: list[str], chosen: dict[str, Any]
) -> None:
    settings = settings_of(
        fine_tune, monkeypatch, "fine-tune", "--demo", "--strategy", strategy, *flags
    )
    made = FinetuneStrategy.from_dict(settings.strategy_options(strategy, n_blocks=2))
    for part in (made, getattr(made, "inner", made)):
        assert {name: getattr(part, name) for name in chosen} == chosen


def test_the_settings_file_comes_back_as_it_was(tmp_path: Path) -> None:
    settings = FineTuneSettings.build({"demo": True, "plateau_mode": "max", **CHOSEN})
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    assert FineTuneSettings.build(read_yaml(tmp_path / "config.yaml")) == settings
    options = settings.strategy_options("full", n_blocks=2)
    assert FinetuneStrategy.from_dict(options).plateau_mode == "max"


def test_defaults_of_the_command_line_are_those_of_a_strategy() -> None:
    options = FineTuneSettings.build({"demo": True}).strategy_options("head_only", n_blocks=2)
    expected = HeadOnlyFinetune(warmup_ratio=0.1, ema_decay=0.999)
    assert FinetuneStrategy.from_dict(options) == expected


def test_pretraining_takes_them_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("step_size: 4\nmomentum: 0.3\n")
    settings = settings_of(
        pretrain, monkeypatch, "pretrain", "--sequences", "x.fasta", "--optimizer", "sgd",
        "--scheduler", "step", "--config", str(tmp_path / "more.yaml"),
    )  # fmt: skip
    strategy = pretrain._strategy(settings)
    assert (strategy.optimizer, strategy.scheduler) == ("sgd", "step")
    assert (strategy.step_size, strategy.momentum, strategy.warmup_ratio) == (4, 0.3, 0.05)
    assert PretrainSettings.build(settings.model_dump()) == settings


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_has_a_flag(monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    arguments = ("fine-tune", "--demo", "--scheduler", scheduler)
    assert settings_of(fine_tune, monkeypatch, *arguments).scheduler == scheduler


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--optimizer", "adm", "--scheduler", "cosin", "--gamma", "2"],
            [
                "optimizer: Unknown optimizer 'adm'; known: adam, adamw, sgd. Did you mean",
                "scheduler: Unknown scheduler 'cosin'; known: constant, cosine, linear, plateau, "
                "step, warmup_cosine. Did you mean 'cosine'?",
                "gamma: Input should be less than or equal to 1",
            ],
        ),
        (
            ["--scheduler", "warmup_cosine", "--warmup", "0"],
            ["warmup_cosine has a warm-up; without one the scheduler is cosine"],
        ),
    ],
)
def test_wrong_flags_are_named(arguments: list[str], messages: list[str]) -> None:
    result = CliRunner().invoke(app, ["fine-tune", "--demo", *arguments])
    assert result.exit_code == 1
    for message in messages:
        assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_plateau_needs_a_validation_set_on_the_command_line() -> None:
    result = CliRunner().invoke(
        app,
        ["fine-tune", "--backbone", "esm2_tiny", "--data", "x.csv", "--val-frac", "0",
         "--scheduler", "plateau"],
    )  # fmt: skip
    assert result.exit_code == 1
    assert "the scheduler plateau needs a validation set: raise val_frac" in result.stderr
