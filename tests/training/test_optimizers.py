"""Optimizers by name: torch's own, for strategies, for the command line and for other loops."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import Crash, run_fit
from tiny import build_tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from molfun.cli import fine_tune, pretrain
from molfun.cli.main import app
from molfun.cli.pretrain_settings import PretrainSettings
from molfun.cli.settings import FineTuneSettings
from molfun.config import read_yaml
from molfun.errors import ConfigError, MissingDependencyError
from molfun.models.structure import MolfunStructureModel
from molfun.nn import schedule_free
from molfun.nn.optimizers import OPTIMIZERS, averages_weights, build_optimizer
from molfun.strategies.base import SCHEDULERS
from molfun.training import (
    Callback,
    FinetuneStrategy,
    FullFinetune,
    GradualFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
)
from molfun.training.ema import OwnAverage, average_of
from molfun.training.groups import make_optimizer

ModelFactory = Callable[..., MolfunStructureModel]

OWN = {
    "adam": lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.99), fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.99), fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.7),
    "adafactor": torch.optim.Adafactor,
}
PARTS = ("muon", "schedule_free_adamw")
"""Those that are more than one class of another package, with tests of their own."""


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


def test_each_has_its_tests() -> None:
    assert sorted([*OWN, *PARTS]) == sorted(OPTIMIZERS)


@pytest.mark.parametrize("name", list(OWN))
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


@pytest.mark.parametrize("name", list(OWN))
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
            "Unknown optimizer 'adamx'; known: adafactor, adam, adamw, muon, "
            "schedule_free_adamw, sgd. Did you mean 'adam'? "
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
            "Unknown optimizer ['sgd']; known: adafactor, adam, adamw, muon, "
            "schedule_free_adamw, sgd.",
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
        "HeadOnlyFinetune: Unknown optimizer 'sdg'; known: adafactor, adam, adamw, muon, "
        "schedule_free_adamw, sgd. Did you mean 'sgd'? "
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
    assert "Unknown optimizer {'name': 'sgd'}; known: adafactor, adam," in str(caught.value)
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


def own_settings(name: str) -> dict[str, Any]:
    """Settings of a strategy for an optimizer: an average of weights, and no two of them."""
    if averages_weights(name):
        return {"optimizer": name, "scheduler": "constant", "warmup_steps": 1}
    return {"optimizer": name, "ema_decay": 0.5}


def tuned(name: str, **settings: Any) -> LoRAFinetune:
    return LoRAFinetune(rank=2, lr_lora=1e-3, lr_head=1e-2, **own_settings(name), **settings)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_each_learns_and_a_killed_run_goes_on_bit_by_bit(tmp_path: Path, name: str) -> None:
    strategy = tuned(name, accumulation_steps=2)
    whole = run_fit(None, strategy=strategy, epochs=2)
    losses = [row["train_loss"] for row in whole.history]
    assert losses[1] < losses[0]
    with pytest.raises(Crash):  # in the middle of the second epoch, and of a window
        run_fit(tmp_path, strategy=strategy, epochs=2, stop_at=10)
    assert run_fit(tmp_path, strategy=strategy, epochs=2, resume=True).same_results(whole)
    others = [n for n in OPTIMIZERS if n != name]
    other = run_fit(None, strategy=tuned(others[0], accumulation_steps=2), epochs=2)
    assert not other.same_results(whole)


@pytest.mark.parametrize("name", ["adafactor", *PARTS])
def test_groups_that_begin_later_stay_bit_by_bit_and_resume(tmp_path: Path, name: str) -> None:
    inner = FullFinetune(lr=1e-4, **own_settings(name))
    strategy = GradualFinetune(inner=inner, unfreeze_epoch=1)
    before = {n: p.clone() for n, p in fresh().backbone.named_parameters()}
    one = run_fit(None, strategy=strategy, epochs=1, model=fresh())
    assert all(torch.equal(one.weights[f"backbone.{n}"], p) for n, p in before.items())
    whole = run_fit(None, strategy=strategy, epochs=3, model=fresh(), restore_best=False)
    moved = [n for n, p in before.items() if not torch.equal(whole.weights[f"backbone.{n}"], p)]
    assert len(moved) > len(before) / 3  # the heads that nothing reads stay
    options = {"strategy": strategy, "epochs": 3, "restore_best": False}
    with pytest.raises(Crash):  # in the epoch in which the backbone begins to train
        run_fit(tmp_path, model=fresh(), stop_at=11, **options)
    again = run_fit(tmp_path, model=fresh(), resume=True, **options)
    assert again.same_results(whole)


def fresh() -> MolfunStructureModel:
    return build_tiny_model(backbone_config={"fill_zero_init": 0.1, "checkpointing": False})


@pytest.mark.parametrize("name", ["adafactor", *PARTS])
def test_each_trains_in_half_precision_and_with_clipping(name: str) -> None:
    found = run_fit(None, strategy=tuned(name, grad_clip=0.01), epochs=2, precision="bf16")
    assert found.history[-1]["steps"] == 14
    assert all(math.isfinite(row["train_loss"]) for row in found.history)
    assert all(bool(torch.isfinite(p).all()) for p in found.weights.values())


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_loss_scaler_of_fp16_unscales_and_skips(name: str) -> None:
    ours, theirs = small_model(), small_model()
    plain = build_optimizer(name, groups_of(theirs))
    take_steps(theirs, plain, steps=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = build_optimizer(name, groups_of(ours))
    inputs = torch.linspace(-1, 1, 12).reshape(3, 4)
    scaler.scale(ours(inputs).square().sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)  # a power of two leaves no rounding
    scaler.update()
    optimizer.zero_grad()
    scaler.scale(ours(inputs * math.inf).sum()).backward()
    scaler.step(optimizer)
    assert all(
        torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


# --- muon ----------------------------------------------------------------------------------------


def hidden_and_head(model: nn.Sequential) -> list[dict[str, Any]]:
    (first, first_bias), (last, last_bias) = (tuple(model[i].parameters()) for i in (0, 2))
    return [
        {"params": [first], "lr": 0.1, "weight_decay": 0.05, "hidden": True},
        {"params": [first_bias], "lr": 0.1, "weight_decay": 0.0, "hidden": True},
        {"params": [last, last_bias], "lr": 0.02, "weight_decay": 0.0, "hidden": False},
    ]


def test_muon_steps_hidden_matrices_and_adamw_the_rest_bit_by_bit() -> None:
    ours, theirs = small_model(), small_model()
    take_steps(ours, build_optimizer("muon", hidden_and_head(ours)))
    groups = hidden_and_head(theirs)
    muon = torch.optim.Muon(groups[:1], adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(groups[1:], fused=True)
    inputs = torch.linspace(-1, 1, 12).reshape(3, 4)
    for _ in range(4):
        theirs.zero_grad()
        theirs(inputs).square().sum().backward()
        muon.step()
        adamw.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("strategy", "by_muon"),
    [
        (LoRAFinetune(rank=2, optimizer="muon"), {"lora"}),
        (FullFinetune(optimizer="muon"), {"block.0", "block.1", "early", "structure_module"}),
    ],
)
def test_muon_takes_the_matrices_between_the_first_and_the_last_layers(
    tiny_model: ModelFactory, strategy: FinetuneStrategy, by_muon: set[str]
) -> None:
    model = tiny_model()
    strategy.setup(model)
    optimizer, parameters = make_optimizer(strategy, model)
    groups = optimizer.param_groups
    assert {g["name"] for g in groups if g["by_muon"]} == by_muon
    for group in groups:
        matrices = all(p.ndim == 2 for p in group["params"])
        assert matrices or not group["by_muon"]
        named = zip(group["param_names"], group["params"], strict=True)
        assert all(parameters[name] is parameter for name, parameter in named)
    rates = {group.name: group.lr for group in strategy.groups(model)}
    assert all(group["lr"] == rates[group["name"]] for group in groups)
    assert sum(len(group["params"]) for group in groups) == len(parameters)


def test_muon_without_a_hidden_matrix_is_refused(tiny_model: ModelFactory) -> None:
    with pytest.raises(ConfigError) as caught:
        run_fit(None, strategy=HeadOnlyFinetune(optimizer="muon"))
    assert str(caught.value) == (
        "muon trains matrices of hidden layers, and none trains here. Use adamw, or a strategy "
        "that trains blocks or adapters."
    )


# --- schedule-free -------------------------------------------------------------------------------


def stock_schedule_free(parameters: Any, lr: float) -> Any:
    return pytest.importorskip("pytorch_optimizer").ScheduleFreeAdamW(parameters, lr=lr)


def test_a_schedule_free_group_begins_with_its_first_gradient() -> None:
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer("schedule_free_adamw", [{"params": [p]} for p in (early, late)],
                                lr=0.1)  # fmt: skip
    alone = nn.Parameter(torch.ones(3))
    stock = stock_schedule_free([alone], 0.1)
    for step in range(6):
        early.grad = torch.arange(3.0) + step
        if step >= 3:
            late.grad = torch.arange(3.0) - step
            alone.grad = late.grad.clone()
            stock.step()
        optimizer.step()
    for made in (optimizer, stock):
        made.eval()  # type: ignore[union-attr]
    assert torch.equal(late, alone)
    assert not torch.equal(late, torch.ones(3))


def test_the_average_is_put_in_and_taken_out_bit_by_bit() -> None:
    model = small_model()
    optimizer: Any = build_optimizer("schedule_free_adamw", list(model.parameters()), lr=0.1)
    take_steps(model, optimizer, steps=3)
    parameters = dict(model.named_parameters())
    average = average_of(parameters, optimizer, 0.0)
    assert isinstance(average, OwnAverage)
    live = [p.detach().clone() for p in model.parameters()]
    copied = copy.deepcopy((model, optimizer))
    copied[1].eval()
    with average.applied():
        for p, q in zip(model.parameters(), copied[0].parameters(), strict=True):
            assert torch.equal(p, q)
        assert not any(torch.equal(p, q) for p, q in zip(parameters.values(), live, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(parameters.values(), live, strict=True))
    take_steps(model, optimizer, steps=1)  # trains on


class Validated(Callback):
    """Keep the weights that were validated last."""

    def __init__(self, model: MolfunStructureModel) -> None:
        self.model = model
        self.weights: dict[str, torch.Tensor] = {}

    def on_validation_start(self, n_batches: int) -> None:
        self.weights = {n: p.detach().clone() for n, p in self.model.named_parameters()}


def test_a_schedule_free_run_validates_keeps_and_leaves_the_average() -> None:
    model = fresh()
    validated, reports = Validated(model), dict[str, torch.Tensor]()

    class Trained(Callback):
        def on_step_end(self, report: Any) -> None:
            reports.update({n: p.detach().clone() for n, p in model.named_parameters()})

    found = run_fit(
        None, strategy=tuned("schedule_free_adamw"), epochs=2, model=model,
        callbacks=[validated, Trained()], restore_best=False,
    )  # fmt: skip
    assert all(torch.equal(found.weights[n], p) for n, p in validated.weights.items())
    assert any(not torch.equal(found.weights[n], p) for n, p in reports.items())


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "scheduler='cosine'"),
        ({"scheduler": "constant", "ema_decay": 0.9}, "ema_decay=0.9"),
        ({"scheduler": "step", "ema_decay": 0.9}, "scheduler='step' and ema_decay=0.9"),
    ],
)
def test_two_averages_and_a_schedule_are_refused(settings: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HeadOnlyFinetune(optimizer="schedule_free_adamw", **settings)
    assert str(caught.value) == (
        "HeadOnlyFinetune: schedule_free_adamw averages the weights itself, in place of a schedule "
        f"and of a moving average, got {found}. Set scheduler='constant' and ema_decay=0 "
        "(--scheduler constant --ema 0)."
    )


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    schedule_free._optimizer_class.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        build_optimizer("schedule_free_adamw", [nn.Parameter(torch.ones(1))], lr=0.1)
    assert "pip install 'molfun[optimizers]'" in str(caught.value)


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
                "optimizer: Unknown optimizer 'adm'; known: adafactor, adam, adamw, muon, "
                "schedule_free_adamw, sgd. Did you mean",
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
