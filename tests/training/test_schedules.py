"""Learning rates of a run, beside torch's own schedulers, and schedulers for other loops."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import Crash, Outcome, make_engine, run_fit
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from molfun.errors import ConfigError
from molfun.models.structure import MolfunStructureModel
from molfun.sample import SampleBatch
from molfun.strategies.base import SCHEDULERS
from molfun.training import Callback, FinetuneStrategy, FullFinetune, GradualFinetune
from molfun.training import HeadOnlyFinetune as HeadOnly
from molfun.training.callbacks import FitPlan
from molfun.training.schedule import RunSchedule, epoch_scheduler, multiplier, warmup_of

ModelFactory = Callable[..., MolfunStructureModel]
BatchFactory = Callable[..., list[SampleBatch]]

PEAKS = (3e-2, 1e-3, 4e-5)
EPOCHS, STEPS = 9, 4
PLAN = FitPlan(EPOCHS, STEPS, STEPS, EPOCHS * STEPS)
NAN = math.nan


def make_sgd(peaks: tuple[float, ...] = PEAKS, **group: Any) -> SGD:
    late = {"start_epoch": 0, "start_warmup": 0, **group}
    return SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": peak, **late} for peak in peaks])


def rates_of(optimizer: SGD) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def run_of(
    strategy: FinetuneStrategy,
    values: list[float] | None = None,
    *,
    plan: FitPlan = PLAN,
    peaks: tuple[float, ...] = PEAKS,
    higher_is_better: bool = False,
) -> list[list[float]]:
    """Rates of every optimizer step of a run, as the engine asks for them."""
    optimizer = make_sgd(peaks)
    schedule = RunSchedule(optimizer, strategy, plan, higher_is_better=higher_is_better)
    rates = []
    for epoch in range(plan.epochs):
        for _ in range(plan.steps_per_epoch):
            rates.append(rates_of(optimizer))
            optimizer.step()
            schedule.step()
        schedule.end_epoch(NAN if values is None else values[epoch])
    return [*rates, rates_of(optimizer)]


def torch_run(
    make: Callable[[SGD], LRScheduler],
    values: list[float] | None = None,
    *,
    every: int = 1,
    plan: FitPlan = PLAN,
    peaks: tuple[float, ...] = PEAKS,
) -> list[list[float]]:
    """Rates of every step under a scheduler of torch that is stepped every so many steps."""
    optimizer = make_sgd(peaks)
    scheduler, rates = make(optimizer), []
    for step in range(plan.total_steps):
        rates.append(rates_of(optimizer))
        optimizer.step()
        if (step + 1) % every == 0:
            if values is None:
                scheduler.step()
            else:
                scheduler.step(values[step // every])  # type: ignore[arg-type]
    return [*rates, rates_of(optimizer)]


def check_equal(ours: list[list[float]], theirs: list[list[float]]) -> None:
    for now, then in zip(ours, theirs, strict=True):
        assert now == pytest.approx(then, rel=1e-12, abs=1e-15)
    assert len({tuple(rates) for rates in ours}) > 1, "something changes"


# --- with every optimizer step -------------------------------------------------------------------


@pytest.mark.parametrize("eta_min", [0.0, 1e-5, 3e-5])
def test_cosine_is_torchs(eta_min: float) -> None:
    strategy = HeadOnly(scheduler="cosine", min_lr_ratio=0.0, min_lr=eta_min)
    check_equal(
        run_of(strategy),
        torch_run(lambda o: CosineAnnealingLR(o, T_max=PLAN.total_steps, eta_min=eta_min)),
    )


@pytest.mark.parametrize("warmup", [1, 5, 17])
def test_warm_up_and_cosine_are_torchs(warmup: int) -> None:
    def theirs(optimizer: SGD) -> LRScheduler:
        rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        fall = CosineAnnealingLR(optimizer, T_max=PLAN.total_steps - warmup, eta_min=2e-6)
        return SequentialLR(optimizer, [rise, fall], [warmup])

    for scheduler in ("cosine", "warmup_cosine"):
        strategy = HeadOnly(scheduler=scheduler, warmup_steps=warmup, min_lr_ratio=0.0, min_lr=2e-6)
        check_equal(run_of(strategy), torch_run(theirs))


def test_linear_is_torchs() -> None:
    check_equal(
        run_of(HeadOnly(scheduler="linear", min_lr_ratio=0.0)),
        torch_run(lambda o: LinearLR(o, 1.0, 0.0, total_iters=PLAN.total_steps)),
    )
    one = (1e-3,)
    check_equal(
        run_of(HeadOnly(scheduler="linear", min_lr_ratio=0.0, min_lr=2e-4), peaks=one),
        torch_run(lambda o: LinearLR(o, 1.0, 0.2, total_iters=PLAN.total_steps), peaks=one),
    )


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("floor", [1e-6, 0.3])
def test_what_there_was_before_has_the_same_bits(warmup: int, floor: float) -> None:
    def before(scheduler: str, step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if scheduler == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, PLAN.total_steps - warmup))
        if scheduler == "linear":
            return max(floor, 1.0 - progress)
        return max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))

    for scheduler in ("cosine", "linear", "constant"):
        strategy = HeadOnly(scheduler=scheduler, warmup_steps=warmup, min_lr_ratio=floor)
        expected = [
            [peak * before(scheduler, step) for peak in PEAKS]
            for step in range(PLAN.total_steps + 1)
        ]
        assert run_of(strategy) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scheduler": "warmup_cosine"}, 3),
        ({"scheduler": "warmup_cosine", "warmup_ratio": 0.5}, 18),
        ({"scheduler": "warmup_cosine", "warmup_steps": 2}, 2),
        ({"scheduler": "cosine"}, 0),
    ],
)
def test_warmup_cosine_warms_up_by_itself(settings: dict[str, Any], expected: int) -> None:
    strategy = HeadOnly(**settings)
    assert warmup_of(strategy, total_steps=36) == expected
    given = HeadOnly(scheduler="cosine", warmup_steps=expected)
    assert run_of(strategy) == run_of(given)


# --- the two floors ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "warmup_cosine"])
def test_each_group_ends_at_the_larger_floor(scheduler: Any) -> None:
    rates = run_of(HeadOnly(scheduler=scheduler, min_lr_ratio=0.01, min_lr=1e-4))
    assert rates[-1] == pytest.approx([3e-4, 1e-4, 4e-5], rel=1e-12)
    warmup = 3 if scheduler == "warmup_cosine" else 0
    lowest = [min(rate[i] for rate in rates[warmup:]) for i in range(len(PEAKS))]
    assert lowest == rates[-1]
    assert {rate[2] for rate in rates[warmup:]} == {4e-5}, "a peak below min_lr stays"


def test_step_and_plateau_stop_at_the_floor() -> None:
    values = [1.0] * EPOCHS
    floors = {"min_lr_ratio": 0.01, "min_lr": 1e-4}
    for settings in (
        {"scheduler": "step", "step_size": 1},
        {"scheduler": "plateau", "plateau_patience": 0},
    ):
        rates = run_of(HeadOnly(**settings, **floors), values)
        assert rates[-1] == pytest.approx([3e-4, 1e-4, 4e-5], rel=1e-12)
        assert {rate[2] for rate in rates} == {4e-5}


# --- with the epochs -----------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [1, 2, 3, 8])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1 / 3])
def test_step_is_torchs(step_size: int, gamma: float) -> None:
    strategy = HeadOnly(scheduler="step", step_size=step_size, gamma=gamma, min_lr_ratio=0.0)
    theirs = torch_run(lambda o: StepLR(o, step_size=step_size, gamma=gamma), every=STEPS)
    check_equal(run_of(strategy), theirs)


def some_values(seed: int, n: int) -> list[float]:
    """Some that improve, some by less than torch's threshold, some that are undefined."""
    rng = random.Random(seed)
    values, now = [], 1.0
    for _ in range(n):
        now *= rng.choice([1.0, 1.0, 0.9, 0.99995, 1.1])
        values.append(rng.choice([now, now, now, NAN]))
    return values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_is_torchs(seed: int, patience: int, mode: str) -> None:
    plan = FitPlan(30, STEPS, STEPS, 30 * STEPS)
    values = some_values(seed, plan.epochs)
    strategy = HeadOnly(
        scheduler="plateau", plateau_patience=patience, plateau_factor=0.3, min_lr_ratio=0.0,
        min_lr=1e-5,
    )  # fmt: skip

    def theirs(optimizer: SGD) -> LRScheduler:
        return ReduceLROnPlateau(optimizer, mode, 0.3, patience, min_lr=1e-5, eps=0.0)

    check_equal(
        run_of(strategy, values, plan=plan, higher_is_better=mode == "max"),
        torch_run(theirs, values, every=STEPS, plan=plan),
    )


def test_plateau_is_torchs_with_all_its_defaults() -> None:
    """Rates of everyday size: torch's eps of 1e-8 never matters."""
    plan = FitPlan(40, STEPS, STEPS, 40 * STEPS)
    strategy = HeadOnly(scheduler="plateau", min_lr_ratio=0.0)
    values = [1.0] * 40
    check_equal(
        run_of(strategy, values, plan=plan),
        torch_run(ReduceLROnPlateau, values, every=STEPS, plan=plan),
    )


def test_also_rates_below_torchs_eps_go_down() -> None:
    strategy = HeadOnly(scheduler="plateau", plateau_patience=0)
    rates = run_of(strategy, [1.0] * EPOCHS, peaks=(1e-8,))
    assert rates[-1] == pytest.approx([1e-14], rel=1e-9), "the floor of 1e-6"


def test_an_undefined_value_is_no_improvement() -> None:
    strategy = HeadOnly(scheduler="plateau", plateau_patience=1, plateau_factor=0.5)
    falls = [2.0, NAN, NAN, 1.5, NAN, NAN, NAN, NAN, NAN]
    rates = [rate[0] for rate in run_of(strategy, falls)][::STEPS]
    peak = PEAKS[0]
    assert rates == pytest.approx([peak * 0.5**k for k in (0, 0, 0, 1, 1, 1, 2, 2, 3, 3)])


def test_the_direction_is_the_monitors_unless_given() -> None:
    rising = [0.1 * (i + 1) for i in range(EPOCHS)]

    def last(mode: Any, *, higher: bool) -> float:
        strategy = HeadOnly(scheduler="plateau", plateau_patience=1, plateau_mode=mode)
        return run_of(strategy, rising, higher_is_better=higher)[-1][0]

    peak = PEAKS[0]
    assert last(None, higher=True) == last("max", higher=False) == peak
    assert last(None, higher=False) == last("min", higher=True) < peak


def test_warm_up_is_beneath_the_levels() -> None:
    strategy = HeadOnly(scheduler="step", step_size=1, gamma=0.5, warmup_steps=5)
    rates = [rate[0] / PEAKS[0] for rate in run_of(strategy)]
    expected = [min(1, (s + 1) / 6) * 0.5 ** (s // STEPS) for s in range(EPOCHS * STEPS + 1)]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_state_goes_on_where_it_was(scheduler: Any) -> None:
    strategy = HeadOnly(
        scheduler=scheduler, warmup_steps=3, step_size=2, plateau_patience=1, min_lr=1e-5
    )
    values = [1.0, 0.9, 0.9, 0.9, 0.8, NAN, NAN, 0.7, 0.7]
    whole = run_of(strategy, values)
    for stop in range(EPOCHS):
        first = make_sgd()
        schedule = RunSchedule(first, strategy, PLAN)
        for value in values[:stop]:
            first.step()
            for _ in range(STEPS):
                schedule.step()
            schedule.end_epoch(value)
        second = make_sgd()
        again = RunSchedule(second, strategy, PLAN)
        second.load_state_dict(first.state_dict())
        again.load_state_dict(schedule.state_dict())
        assert again.state_dict() == schedule.state_dict()
        rates = []
        second.step()
        for value in values[stop:]:
            for _ in range(STEPS):
                rates.append(rates_of(second))
                again.step()
            again.end_epoch(value)
        assert [*rates, rates_of(second)] == whole[stop * STEPS :]


# --- what comes to nothing is said ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scheduler": "step"},
            "The learning rate stays at its peak: it falls after epoch 30 at the earliest, and "
            "this run has 9. Lower step_size.",
        ),
        (
            {"scheduler": "plateau"},
            "The learning rate stays at its peak: it falls after epoch 12 at the earliest, and "
            "this run has 9. Lower plateau_patience.",
        ),
        (
            {"scheduler": "plateau", "plateau_patience": 2, "early_stopping_patience": 3},
            "early_stopping_patience (3 epochs) ends the run before plateau_patience (2) lowers "
            "the learning rate. Raise it, or lower the other.",
        ),
        ({"min_lr": 0.03}, "The learning rate stays at its peak of 0.03: min_lr is 0.03."),
        ({"min_lr": 0.02}, None),
        ({"scheduler": "step", "step_size": 8}, None),
        ({"scheduler": "plateau", "plateau_patience": 6}, None),
        (
            {"scheduler": "plateau", "plateau_patience": 2, "early_stopping_patience": 4},
            None,
        ),
    ],
)
def test_a_schedule_without_effect_is_told(
    settings: dict[str, Any], message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    RunSchedule(make_sgd(), HeadOnly(**settings), PLAN)
    assert caplog.messages == ([] if message is None else [message])


@pytest.mark.parametrize(
    ("settings", "first"),
    [({"scheduler": "step", "step_size": 8}, 8), ({"scheduler": "plateau"}, 12)],
)
def test_it_is_told_of_the_right_runs(settings: dict[str, Any], first: int) -> None:
    """In a run of one epoch more than told, the last epoch does have a lower rate."""
    for epochs in (first, first + 1):
        plan = FitPlan(epochs, 1, 1, epochs)
        rates = run_of(HeadOnly(**settings), [1.0] * epochs, plan=plan)
        fell = rates[epochs - 1] != rates[0]
        assert fell == (epochs > first)


# --- in the engine -------------------------------------------------------------------------------


class Rates(Callback):
    """Rates by parameter group at every step, and what ended each epoch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.rows: list[dict[str, Any]] = []

    def watch(self) -> Any:
        return register_optimizer_step_pre_hook(
            lambda optimizer, *_: self.steps.append(
                {str(g["name"]): float(g["lr"]) for g in optimizer.param_groups}
            )
        )

    def on_epoch_end(self, row: dict[str, Any], improved: bool) -> None:
        self.rows.append(dict(row))


def watched_fit(model: MolfunStructureModel, *data: Any, **arguments: Any) -> Rates:
    rates = Rates()
    handle = rates.watch()
    try:
        model.fit(*data, callbacks=[rates], **arguments)
    finally:
        handle.remove()
    return rates


def test_step_falls_between_epochs(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    """Three batches in windows of two: two steps an epoch."""
    strategy = HeadOnly(
        lr=1e-2, scheduler="step", step_size=2, gamma=0.1, accumulation_steps=2, optimizer="sgd"
    )
    rates = watched_fit(tiny_model(), batches(3), strategy=strategy, epochs=5)
    expected = [1e-2] * 4 + [1e-3] * 4 + [1e-4] * 2
    assert [step["head"] for step in rates.steps] == pytest.approx(expected, rel=1e-12)
    shown = [row["lr"] for row in rates.rows]
    assert shown == pytest.approx([1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rel=1e-12), "of the next step"


@pytest.mark.parametrize("monitor", ["val/loss", "val/r2"])
def test_plateau_watches_the_monitor(
    tiny_model: ModelFactory, batches: BatchFactory, monitor: str
) -> None:
    strategy = HeadOnly(
        lr=0.2, scheduler="plateau", plateau_patience=0, plateau_factor=0.5, optimizer="adam",
        monitor=monitor,
    )  # fmt: skip
    rates = watched_fit(tiny_model(), batches(3), batches(3, seed=1), strategy=strategy, epochs=8)
    optimizer = make_sgd((0.2,))
    torchs = ReduceLROnPlateau(
        optimizer, "min" if monitor == "val/loss" else "max", 0.5, 0, eps=0.0
    )
    expected = []
    for row in rates.rows:
        torchs.step(row["val_loss"] if monitor == "val/loss" else row[monitor])
        expected += rates_of(optimizer)
    assert [row["lr"] for row in rates.rows] == pytest.approx(expected, rel=1e-12)
    assert 2 <= len(set(expected)) < 8, "some epochs improve and some do not"
    of_epochs = [step["head"] for step in rates.steps][::3]
    assert of_epochs == [0.2, *[row["lr"] for row in rates.rows[:-1]]]


def test_plateau_needs_validation(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_model().fit(batches(1), strategy=HeadOnly(scheduler="plateau"), epochs=1)
    assert str(caught.value) == "The scheduler plateau needs a val_loader: it watches val/loss."
    strategy = HeadOnly(scheduler="plateau", early_stopping_patience=1, monitor="val/rmse")
    with pytest.raises(ConfigError) as caught:
        tiny_model().fit(batches(1), strategy=strategy, epochs=1)
    assert str(caught.value) == (
        "early_stopping_patience needs a val_loader: early stopping watches val/rmse. "
        "The scheduler plateau needs a val_loader: it watches val/rmse."
    )


PLATEAU = HeadOnly(
    lr=0.3, scheduler="plateau", plateau_patience=0, plateau_factor=0.5, optimizer="sgd",
    accumulation_steps=2, ema_decay=0.2, warmup_steps=2,
)  # fmt: skip
STEP = HeadOnly(lr=1e-2, scheduler="step", step_size=1, gamma=0.5, accumulation_steps=2)


@pytest.fixture(scope="module", params=[PLATEAU, STEP], ids=["plateau", "step"])
def whole(request: pytest.FixtureRequest) -> tuple[FinetuneStrategy, Outcome]:
    """A run that was never stopped, in which the rate falls more than once."""
    outcome = run_fit(None, strategy=request.param, epochs=5)
    assert len({row["lr"] for row in outcome.history}) > 2
    return request.param, outcome


class CrashInValidation(Callback):
    """Raise at the start of the validation of one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation_start(self, n_batches: int) -> None:
        self.epoch -= 1
        if self.epoch == 0:
            raise Crash


@pytest.mark.parametrize("epoch", range(5))
@pytest.mark.parametrize("place", ["in a window", "validation"])
def test_a_run_killed_in_any_epoch_goes_on_bit_by_bit(
    tmp_path: Path, whole: tuple[FinetuneStrategy, Outcome], epoch: int, place: str
) -> None:
    strategy, expected = whole
    stop: dict[str, Any] = {
        "in a window": {"stop_at": 7 * epoch + 6},
        "validation": {"callbacks": [CrashInValidation(epoch + 1)]},
    }[place]
    with pytest.raises(Crash):
        run_fit(tmp_path, strategy=strategy, epochs=5, **stop)
    resumed = run_fit(tmp_path, strategy=strategy, epochs=5, resume=True)
    assert resumed.same_results(expected)


# --- with a strategy that begins in stages -------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_begins_later_follows_the_same_schedule(
    tiny_model: ModelFactory, batches: BatchFactory, scheduler: Any
) -> None:
    strategy = GradualFinetune(
        inner=FullFinetune(lr=1e-4, layer_lr_decay=1.0, scheduler=scheduler, step_size=1),
        unfreeze_epoch=2,
        stage_warmup_steps=3,
        plateau_patience=0,
        plateau_factor=0.5,
    )
    rates = watched_fit(tiny_model(), batches(2), batches(2, seed=1), strategy=strategy, epochs=4)
    for step, names in enumerate(rates.steps):
        own = min(1.0, (max(0, step - 4) + 1) / 4)
        assert names["block.1"] / 1e-4 == pytest.approx(own * names["head"] / 1e-3, rel=1e-12)
    heads = [names["head"] for names in rates.steps]
    assert (len(set(heads)) == 1) == (scheduler == "constant")


def test_patience_of_plateau_starts_anew_when_more_trains(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    """Nothing ever improves at rates of next to nothing."""
    inner = FullFinetune(lr=1e-30, lr_head=1e-30, scheduler="plateau", plateau_patience=1)
    strategy = GradualFinetune(inner=inner, unfreeze_epoch=2, optimizer="sgd")
    rates = watched_fit(tiny_model(), batches(2), batches(2), strategy=strategy, epochs=5)
    fallen = [row["lr"] < 1e-30 for row in rates.rows]
    # best in epoch 1, bad in 2, then two more after the switch
    assert fallen == [False, False, False, True, True]


def test_the_engine_takes_all_of_them(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    for optimizer, scheduler in zip(itertools.cycle(("adam", "sgd")), SCHEDULERS, strict=False):
        strategy = HeadOnly(optimizer=optimizer, scheduler=scheduler)
        engine = make_engine(tiny_model(), strategy, epochs=1)
        history = engine.fit(batches(2), batches(1))
        assert history[0]["steps"] == 2
        assert engine._schedule.state_dict()["steps"] == 2
        assert engine._schedule.state_dict()["epochs"] == 1


# --- for other loops -----------------------------------------------------------------------------

THEIRS: dict[str, tuple[dict[str, Any], Callable[[SGD], LRScheduler]]] = {
    "cosine": ({"T_max": 9, "eta_min": 1e-5}, lambda o: CosineAnnealingLR(o, 9, 1e-5)),
    "linear": ({"max_epochs": 9}, lambda o: LinearLR(o, 1.0, 0.0, total_iters=9)),
    "constant": ({}, lambda o: ConstantLR(o, 1.0)),
    "step": ({"step_size": 2, "gamma": 0.3}, lambda o: StepLR(o, 2, 0.3)),
    "plateau": (
        {"mode": "max", "factor": 0.5, "patience": 1},
        lambda o: ReduceLROnPlateau(o, "max", 0.5, 1),
    ),
    "warmup_cosine": (
        {"warmup_epochs": 3, "max_epochs": 9, "eta_min": 1e-5},
        lambda o: SequentialLR(o, [LinearLR(o, 0.25, 1.0, 3), CosineAnnealingLR(o, 6, 1e-5)], [3]),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_for_other_loops_are_torchs(name: str) -> None:
    options, theirs = THEIRS[name]
    values = [0.1, 0.2, 0.2, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3] if name == "plateau" else None
    ours = torch_run(lambda o: epoch_scheduler(name, o, **options), values, every=STEPS)
    expected = torch_run(theirs, values, every=STEPS)
    assert ours == expected
    assert (len({tuple(rates) for rates in ours}) == 1) == (name == "constant")


def by_epoch(name: str, epochs: int, **options: Any) -> list[float]:
    plan = FitPlan(epochs, 1, 1, epochs)
    run = torch_run(lambda o: epoch_scheduler(name, o, **options), plan=plan, peaks=(1e-3,))
    return [rates[0] for rates in run]


def test_warm_up_by_epochs_is_the_engines() -> None:
    factor = multiplier("cosine", total_steps=20, warmup_steps=4, floor=0.0, end=1e-2)
    rates = by_epoch("warmup_cosine", 20, warmup_epochs=4, max_epochs=20, eta_min=1e-5)
    assert rates == pytest.approx([1e-3 * factor(e) for e in range(21)], rel=1e-12)
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[-1] == pytest.approx(1e-5), "eta_min is absolute"


def test_no_warm_up_is_cosine() -> None:
    rates = by_epoch("warmup_cosine", 8, warmup_epochs=0, max_epochs=8)
    assert rates == by_epoch("cosine", 8, T_max=8)
    assert rates[0] == 1e-3


def test_defaults_are_those_of_the_guide() -> None:
    rates = by_epoch("warmup_cosine", 100)
    assert rates == by_epoch("warmup_cosine", 100, warmup_epochs=10, max_epochs=100, eta_min=0.0)
    assert (rates[10], max(rates)) == (1e-3, 1e-3)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert [by_epoch("step", 60)[e] for e in (29, 30, 60)] == pytest.approx([1e-3, 1e-4, 1e-5])
    plateau = epoch_scheduler("plateau", make_sgd())
    assert isinstance(plateau, ReduceLROnPlateau)
    assert (plateau.mode, plateau.factor, plateau.patience) == ("min", 0.1, 10)
    assert by_epoch("linear", 4, total_iters=4) == pytest.approx(
        [1e-3, 7.5e-4, 5e-4, 2.5e-4, 0], abs=1e-18
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "warmup_cosin",
            {},
            "Unknown scheduler 'warmup_cosin'; known: constant, cosine, linear, plateau, step, "
            "warmup_cosine. Did you mean 'warmup_cosine'?",
        ),
        (["step"], {}, "Unknown scheduler ['step']; known: constant, cosine, linear, plateau, "),
        (
            "step",
            {"stepsize": 3, "gama": 0.1},
            "Scheduler step: Unknown option of step 'stepsize'; known: gamma, step_size. Did you "
            "mean 'step_size'? Unknown option of step 'gama'; known: gamma, step_size. Did you "
            "mean 'gamma'?",
        ),
        ("cosine", {}, "Scheduler cosine: Give T_max, the number of epochs."),
        (
            "linear",
            {"total_iters": 3, "max_epochs": 3},
            "Scheduler linear: Give total_iters or max_epochs, the number of epochs.",
        ),
        (
            "plateau",
            {"mode": "maxx", "factor": 1.0, "patience": -1},
            "Scheduler plateau: Unknown mode 'maxx'; known: max, min. Did you mean 'max'? factor "
            "must be above 0 and below 1, got 1.0. patience must be a whole number of at least 0, "
            "got -1.",
        ),
        (
            "warmup_cosine",
            {"warmup_epochs": 9, "max_epochs": 9, "eta_min": "1e-6"},
            "Scheduler warmup_cosine: eta_min must be a number of at least 0, got '1e-6'. "
            "warmup_epochs must be below max_epochs (9), got 9.",
        ),
        (
            "step",
            {"step_size": 1.5, "gamma": 0},
            "Scheduler step: step_size must be a whole number of at least 1, got 1.5. gamma must "
            "be above 0 and at most 1, got 0.",
        ),
    ],
)
def test_wrong_names_and_options(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        epoch_scheduler(name, make_sgd(), **options)
    assert str(caught.value).startswith(message)
