"""The rules of the fit loop, on the real trunk."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_runs import make_engine
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from molfun.errors import ConfigError, DataError, NonFiniteError
from molfun.models.structure import MolfunStructureModel
from molfun.nn import lora
from molfun.parallel.launch import _known_by_version
from molfun.sample import Sample, SampleBatch
from molfun.training import (
    Callback,
    FinetuneStrategy,
    FullFinetune,
    HeadOnlyFinetune,
    History,
    LoRAFinetune,
    PartialFinetune,
)
from molfun.training.callbacks import CSVLog, FitPlan
from molfun.training.engine_config import EngineConfig
from molfun.training.job import choose_precision

ModelFactory = Callable[..., MolfunStructureModel]
SampleFactory = Callable[..., list[Sample]]
BatchFactory = Callable[..., list[SampleBatch]]

NO_DROPOUT = {"head_config": {"dropout": 0.0}}
PLAIN = HeadOnlyFinetune(lr=1e-2, scheduler="constant", grad_clip=0.0, weight_decay=0.0)


@contextlib.contextmanager
def recorded(after: bool = False) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Gradients before (or weights after) every optimizer step, by parameter name."""
    steps: list[dict[str, torch.Tensor]] = []

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        step = {}
        for group in optimizer.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                value = parameter.detach() if after else parameter.grad
                if value is not None:
                    step[name] = value.clone()
        steps.append(step)

    register = register_optimizer_step_post_hook if after else register_optimizer_step_pre_hook
    handle = register(hook)
    try:
        yield steps
    finally:
        handle.remove()


class Rates(Callback):
    """Learning rate of the head at every optimizer step."""

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[float]]:
        rates: list[float] = []
        handle = register_optimizer_step_pre_hook(
            lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
        )
        try:
            yield rates
        finally:
            handle.remove()


def weights_of(model: MolfunStructureModel) -> dict[str, torch.Tensor]:
    """Copies of all weights."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def relabel(sample: Sample, target: float | None) -> Sample:
    """The same sample with another label."""
    return dataclasses.replace(sample, target=target)


def anchored(model: MolfunStructureModel, train: list[SampleBatch]) -> list[SampleBatch]:
    """The inputs of `train`, labelled with what the untrained model says: training moves away."""
    assert model.task is not None
    model.task.fit_targets(np.array([s.target for batch in train for s in batch]))
    labels = iter(model.predict([s for batch in train for s in batch])["prediction"].tolist())
    return [SampleBatch([relabel(s, next(labels)) for s in batch]) for batch in train]


# --- rule 1: windows, counts and the schedule ----------------------------------------------------


@pytest.mark.parametrize(
    ("n_batches", "accumulation", "epochs", "per_epoch"),
    [(6, 1, 2, 6), (6, 2, 2, 3), (7, 2, 2, 4), (5, 8, 3, 1), (1, 1, 1, 1), (9, 4, 1, 3)],
)
def test_steps_are_rounded_up(
    tiny_model: ModelFactory,
    samples: SampleFactory,
    n_batches: int,
    accumulation: int,
    epochs: int,
    per_epoch: int,
) -> None:
    plans: list[FitPlan] = []

    class Plan(Callback):
        def on_fit_start(self, plan: FitPlan, history: History) -> None:
            plans.append(plan)

    one = samples(1)[0]
    train = [SampleBatch([relabel(one, float(i))]) for i in range(n_batches)]
    strategy = HeadOnlyFinetune(accumulation_steps=accumulation)
    history = tiny_model().fit(train, strategy=strategy, epochs=epochs, callbacks=[Plan()])
    assert [row["steps"] for row in history] == [per_epoch * (e + 1) for e in range(epochs)]
    assert plans == [FitPlan(epochs, n_batches, per_epoch, per_epoch * epochs)]


@pytest.mark.parametrize(
    ("strategy", "tolerance"),
    [(PLAIN, 1e-6), (LoRAFinetune(rank=2, scheduler="constant", grad_clip=0.0), 2e-5)],
    ids=["head_only", "lora"],
)
def test_a_window_is_one_big_batch(
    tiny_model: ModelFactory, samples: SampleFactory, strategy: FinetuneStrategy, tolerance: float
) -> None:
    """Three windows of 3, 3 and 1 labels, in micro-batches of unequal size."""
    seven = samples(7)

    def gradients(sizes: list[int], accumulation: int) -> list[dict[str, torch.Tensor]]:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        train = [
            SampleBatch(seven[start : start + size])
            for start, size in zip(starts, sizes, strict=True)
        ]
        model = tiny_model(**NO_DROPOUT)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        windows = dataclasses.replace(strategy, accumulation_steps=accumulation)
        with recorded() as steps:
            model.fit(train, strategy=windows, epochs=1)
        return steps

    whole = gradients([3, 3, 1], 1)
    assert len(whole) == 3
    for sizes, accumulation in (([1] * 7, 3), ([2, 1, 1, 2, 1], 2)):
        parts = gradients(sizes, accumulation)
        assert len(parts) == 3
        for got, expected in zip(parts, whole, strict=True):
            assert got.keys() == expected.keys()
            for name in got:
                scale = float(expected[name].abs().max())
                gap = float((got[name] - expected[name]).abs().max())
                assert gap <= tolerance * max(scale, 1.0), name


def test_missing_labels_do_not_count(tiny_model: ModelFactory, samples: SampleFactory) -> None:
    a, b, c, d = samples(4)
    nan, none = relabel(b, math.nan), relabel(d, None)

    def fit(train: list[SampleBatch], accumulation: int) -> tuple[Any, History]:
        strategy = dataclasses.replace(PLAIN, accumulation_steps=accumulation)
        with recorded() as steps:
            history = tiny_model(**NO_DROPOUT).fit(train, strategy=strategy, epochs=1)
        return steps, history

    expected, whole = fit([SampleBatch([a, c])], 1)
    for train, accumulation in (
        ([SampleBatch([a, nan, c, none])], 1),
        ([SampleBatch([a]), SampleBatch([nan]), SampleBatch([none, c])], 3),
        ([SampleBatch([none, nan]), SampleBatch([a, c])], 2),
    ):
        steps, history = fit(train, accumulation)
        assert len(steps) == 1
        for name, gradient in steps[0].items():
            torch.testing.assert_close(gradient, expected[0][name], rtol=1e-5, atol=1e-7)
        assert history[0]["train_loss"] == pytest.approx(whole[0]["train_loss"], rel=1e-6)
        assert history[0]["skipped"] == 0


def test_a_window_without_labels_is_no_step(
    tiny_model: ModelFactory, samples: SampleFactory
) -> None:
    a, b, c = samples(3)
    train = [SampleBatch([a]), SampleBatch([relabel(b, None)]), SampleBatch([c])]
    history = tiny_model().fit(train, strategy=PLAIN, epochs=2)
    assert [row["steps"] for row in history] == [2, 4]
    assert history[-1]["skipped"] == 0
    assert math.isfinite(history[-1]["train_loss"])


def test_the_training_loss_is_a_mean_over_labels(
    tiny_model: ModelFactory, samples: SampleFactory
) -> None:
    three = samples(3)
    model = tiny_model(**NO_DROPOUT)
    frozen = dataclasses.replace(PLAIN, lr=1e-12)
    history = model.fit([SampleBatch(three[:2]), SampleBatch(three[2:])], strategy=frozen, epochs=1)
    assert history[0]["train_loss"] == pytest.approx(model.evaluate([three])["loss"], rel=1e-6)


def test_the_schedule_of_the_demo(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    strategy = LoRAFinetune(rank=2, warmup_steps=1)
    history = tiny_model().fit(batches(6), batches(2, seed=1), strategy=strategy, epochs=3)
    assert [f"{row['lr']:.2e}" for row in history] == ["8.01e-04", "2.77e-04", "1.00e-09"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup_steps": 3, "scheduler": "constant"}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"warmup_ratio": 0.25, "scheduler": "constant"}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ({"scheduler": "linear"}, [1 - i / 8 for i in range(8)]),
        (
            {"scheduler": "cosine"},
            [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)],
        ),
        (
            {"scheduler": "cosine", "warmup_steps": 2, "min_lr_ratio": 0.3},
            [1 / 3, 2 / 3] + [max(0.3, 0.5 * (1 + math.cos(math.pi * i / 6))) for i in range(6)],
        ),
        ({"scheduler": "constant"}, [1.0] * 8),
    ],
)
def test_the_rate_of_every_step(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    settings: dict[str, Any],
    expected: list[float],
) -> None:
    strategy = HeadOnlyFinetune(lr=2e-3, **settings)
    with Rates().watched() as rates:
        tiny_model().fit(batches(4), strategy=strategy, epochs=2)
    assert rates == pytest.approx([2e-3 * factor for factor in expected], rel=1e-9)


def test_the_schedule_counts_optimizer_steps_not_batches(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    strategy = HeadOnlyFinetune(lr=1.0, scheduler="linear", accumulation_steps=3)
    with Rates().watched() as rates:
        tiny_model().fit(batches(4), strategy=strategy, epochs=2)
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_warm_up_longer_than_the_run_is_told(
    tiny_model: ModelFactory, batches: BatchFactory, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model().fit(batches(2), strategy=HeadOnlyFinetune(warmup_steps=10), epochs=1)
    assert (
        "The warm-up of 10 steps is not shorter than the run (2 optimizer steps): the learning "
        "rate stays below its peak. Lower warmup_steps or accumulation_steps."
    ) in caplog.messages


def test_gradients_are_clipped_to_the_norm(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    def largest(grad_clip: float) -> float:
        strategy = HeadOnlyFinetune(grad_clip=grad_clip)
        with recorded() as steps:
            tiny_model().fit(batches(3), strategy=strategy, epochs=1)
        return max(math.sqrt(sum(float((g**2).sum()) for g in step.values())) for step in steps)

    free = largest(0.0)
    assert largest(free / 2) == pytest.approx(free / 2, rel=1e-3)
    assert largest(1e6) == pytest.approx(free, rel=1e-6)


# --- when to stop --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "steps", "stopped"),
    [
        ({"epochs": 2, "max_steps": 100}, [4, 8], "epochs"),
        ({"epochs": 2, "max_steps": 6}, [4, 6], "max_steps"),
        ({"epochs": 5, "max_steps": 3}, [3], "max_steps"),
        ({"max_steps": 9}, [4, 8, 9], "max_steps"),
        ({"epochs": 2}, [4, 8], "epochs"),
    ],
)
def test_epochs_and_max_steps(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    limits: dict[str, int],
    steps: list[int],
    stopped: str,
) -> None:
    with Rates().watched() as rates:
        history = tiny_model().fit(
            batches(4), strategy=HeadOnlyFinetune(lr=1.0, scheduler="linear"), **limits
        )
    assert [row["steps"] for row in history] == steps
    assert history.stopped == stopped
    total = steps[-1]
    assert rates == pytest.approx([1 - i / total for i in range(total)])


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0."),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0."),
        (
            {"epochs": 1.5, "save_every_steps": 0},
            "epochs must be a whole number of at least 1, got 1.5. "
            "save_every_steps must be a whole number of at least 1, got 0.",
        ),
    ],
)
def test_nothing_to_do_is_an_error(
    tiny_model: ModelFactory, batches: BatchFactory, limits: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_model().fit(batches(1), strategy=PLAIN, **limits)
    assert str(caught.value) == text


def test_an_engine_needs_an_end() -> None:
    with pytest.raises(ConfigError, match=r"^Give epochs or max_steps\.$"):
        EngineConfig(epochs=None)


def test_an_empty_validation_set_is_an_error(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    with pytest.raises(DataError) as caught:
        tiny_model().fit(batches(1), [], strategy=PLAIN, epochs=1)
    assert str(caught.value) == (
        "The validation set is empty: its loader gives no batch. Leave val_loader out to train "
        "without validation."
    )


def test_a_training_set_without_labels_is_an_error(
    tiny_model: ModelFactory, samples: SampleFactory
) -> None:
    with pytest.raises(DataError, match=r"has no labels\. Fill the target column\."):
        tiny_model().fit([[relabel(samples(1)[0], None)]], strategy=PLAIN, epochs=1)


def test_a_batch_of_an_unknown_type_is_an_error(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    engine = make_engine(tiny_model(), PLAIN)
    with pytest.raises(DataError, match=r"Cannot use a batch of type str\. Give samples"):
        engine.fit(["ACDE"])


@pytest.mark.parametrize("name", ["fp61", "64-true", "bf16-true"])
def test_an_unknown_precision_is_an_error(
    tiny_model: ModelFactory, batches: BatchFactory, name: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_model().fit(batches(1), strategy=PLAIN, epochs=1, precision=name)
    assert str(caught.value).startswith(
        f"Unknown precision '{name}'; known: 16, 16-mixed, 32, 32-true, bf16, bf16-mixed, bfloat16"
    )


def test_mixed_precision_is_left_out_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert choose_precision(cpu, amp=True, precision=None) == "32-true"
    assert choose_precision(cpu, amp=True, precision="bf16-mixed") == "bf16-mixed"


# --- rule 2: modes and graphs --------------------------------------------------------------------


class Modes(Callback):
    """What is in training mode, and what carries a graph, while a batch is run."""

    def __init__(self, model: MolfunStructureModel) -> None:
        self.training: list[set[str]] = []
        self.with_graph: list[list[bool]] = []
        self.grad_enabled: list[bool] = []
        self._model = model
        assert model.head is not None
        model.head.register_forward_pre_hook(self._look)
        for block in model.backbone.blocks():
            block.register_forward_hook(self._look_at_block)

    def _look(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            names = {name for name, module in self._model.named_modules() if module.training}
            self.training.append(names)
            self.with_graph.append([])

    def _look_at_block(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.grad_enabled.append(torch.is_grad_enabled())
        if self.with_graph:
            self.with_graph[-1].append(any(t.requires_grad for t in output))


def _dropouts(model: MolfunStructureModel) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Dropout)}


@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(),
        LoRAFinetune(rank=2, dropout=0.1),
        PartialFinetune(unfreeze_last_n=1),
        FullFinetune(),
    ],
    ids=lambda s: s.name,
)
def test_frozen_modules_are_in_eval_mode_in_every_epoch(
    tiny_model: ModelFactory, batches: BatchFactory, strategy: FinetuneStrategy
) -> None:
    model = tiny_model()
    strategy.setup(model)
    modes = Modes(model)
    trains = {
        name
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters())
    }
    frozen = {
        name
        for name, module in model.named_modules()
        if list(module.parameters()) and name not in trains
    }
    model.fit(batches(2), batches(1, seed=1), strategy=strategy, epochs=2)
    assert len(modes.training) == 4, "two batches in each of two epochs"
    top = {"", "backbone", "head"}
    for training in modes.training:
        assert not training & frozen
        assert trains - top <= training
        for name in _dropouts(model):
            holder = name.rsplit(".", 1)[0]
            while holder not in trains | frozen:
                holder = holder.rsplit(".", 1)[0]
            assert (name in training) == (holder in trains), name


def test_dropout_acts_where_something_trains_and_nowhere_else(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    model = tiny_model()
    PartialFinetune(unfreeze_last_n=1).setup(model)
    modes = Modes(model)
    model.fit(batches(1), strategy=PartialFinetune(unfreeze_last_n=1), epochs=1)
    active = _dropouts(model) & modes.training[0]
    assert any(name.startswith("backbone.model.evoformer.blocks.1.") for name in active)
    assert not any(name.startswith("backbone.model.evoformer.blocks.0.") for name in active)
    assert not any("extra_msa" in name or "template" in name for name in active)
    assert "head.dropout" in active


def test_a_frozen_trunk_builds_no_graph(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    model = tiny_model()
    modes = Modes(model)
    model.fit(batches(2), strategy=HeadOnlyFinetune(), epochs=1, cache="off")
    assert modes.grad_enabled == [False] * 4, "two samples through two blocks"


def test_frozen_early_blocks_carry_no_graph(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    settings = {"fill_zero_init": 0.1, "checkpointing": False}
    model = tiny_model(backbone_config=settings)
    strategy = PartialFinetune(unfreeze_last_n=1)
    seen: list[bool] = []
    for block in model.backbone.blocks():
        block.register_forward_hook(
            lambda _m, _a, output: seen.append(any(t.requires_grad for t in output))
        )
    model.fit(batches(1), strategy=strategy, epochs=1)
    assert seen == [False, True]


# --- rule 3: the moving average is what counts ---------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(ema_decay=0.5, lr=1e-2),
        LoRAFinetune(rank=2, ema_decay=0.999, lr_lora=1e-2),
        PartialFinetune(unfreeze_last_n=1, ema_decay=0.2, lr_trunk=1e-3),
    ],
    ids=lambda s: s.name,
)
def test_the_average_is_that_of_the_trained_weights(
    tiny_model: ModelFactory, batches: BatchFactory, strategy: FinetuneStrategy
) -> None:
    model = tiny_model()
    engine = make_engine(model, strategy, epochs=2)
    assert engine.average is not None
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(engine.average.average) == trainable
    expected = {n: p.detach().clone().double() for n, p in engine.parameters.items()}
    with recorded(after=True) as steps:
        engine.fit(batches(3))
    for t, step in enumerate(steps):
        decay = min(strategy.ema_decay, (1 + t) / (10 + t))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * step[name].double()
    for name, value in engine.average.average.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(dict(model.named_parameters())[name], value), "fit ends with it"


@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(lr=1e-3, scheduler="constant"),
        HeadOnlyFinetune(lr=1e-3, scheduler="constant", ema_decay=0.9),
        LoRAFinetune(rank=2, lr_lora=1e-4, scheduler="constant", ema_decay=0.9),
        PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-4, scheduler="constant"),
        FullFinetune(lr=3e-4, scheduler="constant", ema_decay=0.9),
    ],
    ids=lambda s: s.name,
)
def test_what_is_measured_best_is_kept_and_saved(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    tmp_path: Path,
    strategy: FinetuneStrategy,
) -> None:
    model, train = tiny_model(), batches(4)
    val = anchored(model, train)
    history = model.fit(train, val, strategy=strategy, epochs=2, output_dir=tmp_path)
    best = history.best
    assert best["epoch"] < 2, "training moves away from the validation labels"
    assert best["val_loss"] == min(row["val_loss"] for row in history)
    assert model.evaluate(val)["loss"] == best["val_loss"]
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    measured = loaded.evaluate(val)
    assert measured["loss"] == best["val_loss"]
    for name in ("rmse", "mae", "pearson", "spearman", "r2"):
        assert measured[name] == best[f"val/{name}"]


def test_validation_with_the_average_leaves_the_live_weights(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    """The training path is the same whether the average is looked at or not."""
    strategy = HeadOnlyFinetune(lr=1e-2, ema_decay=0.9)
    with recorded(after=True) as watched:
        tiny_model().fit(batches(3), batches(2, seed=1), strategy=strategy, epochs=2)
    with recorded(after=True) as plain:
        tiny_model().fit(batches(3), strategy=strategy, epochs=2)
    assert all(same_bits(a, b) for a, b in zip(watched, plain, strict=True))


def test_without_validation_the_last_weights_stay(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    model = tiny_model()
    with recorded(after=True) as steps:
        history = model.fit(batches(3), strategy=HeadOnlyFinetune(lr=1e-2), epochs=2)
    weights = weights_of(model)
    assert all(torch.equal(weights[name], value) for name, value in steps[-1].items())
    assert math.isnan(history[0]["val_loss"])
    assert history.best == history[-1]


# --- rule 4: early stopping ----------------------------------------------------------------------


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_counts_epochs_without_a_better_loss(
    tiny_model: ModelFactory, batches: BatchFactory, patience: int
) -> None:
    strategy = HeadOnlyFinetune(lr=1e-3, scheduler="constant", early_stopping_patience=patience)
    model, train = tiny_model(), batches(4)
    history = model.fit(train, anchored(model, train), strategy=strategy, epochs=20)
    best = history.best["epoch"]
    assert len(history) == best + patience
    assert history.stopped == "early_stopping"


def test_an_equal_loss_is_not_a_better_one(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    strategy = dataclasses.replace(PLAIN, lr=1e-30, early_stopping_patience=2)
    history = tiny_model().fit(batches(2), batches(2), strategy=strategy, epochs=10)
    assert len({row["val_loss"] for row in history}) == 1
    assert len(history) == 3
    assert history.best["epoch"] == 1


def test_an_undefined_loss_never_wins(tiny_model: ModelFactory, samples: SampleFactory) -> None:
    strategy = HeadOnlyFinetune(early_stopping_patience=2, ema_decay=0.9)
    unlabelled = [relabel(s, None) for s in samples(2, seed=1)]
    model = tiny_model()
    engine = make_engine(model, strategy, epochs=9)
    history = engine.fit([samples(3)], [unlabelled])
    assert [math.isnan(row["val_loss"]) for row in history] == [True, True]
    assert engine.state.best_epoch == 0
    assert math.isinf(engine.state.best_score)
    assert engine.average is not None
    for name, value in engine.average.average.items():
        assert torch.equal(engine.parameters[name], value), "the average, for want of a best"


def test_undefined_metrics_are_nan_and_do_no_harm(
    tiny_model: ModelFactory, samples: SampleFactory
) -> None:
    val = [SampleBatch([relabel(s, 6.0) for s in samples(3, seed=1)])]
    history = tiny_model().fit([samples(3)], val, strategy=HeadOnlyFinetune(), epochs=2)
    for row in history:
        assert math.isnan(row["val/pearson"])
        assert math.isnan(row["val/spearman"])
        assert math.isnan(row["val/r2"])
        assert math.isfinite(row["val_loss"])
        assert row["val/rmse"] > 0
    assert history.best["val_loss"] == min(row["val_loss"] for row in history)


def test_early_stopping_needs_validation(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_model().fit(batches(1), strategy=HeadOnlyFinetune(early_stopping_patience=3), epochs=1)
    assert str(caught.value) == (
        "early_stopping_patience needs a val_loader: early stopping watches val/loss."
    )


# --- rule 5: what is not finite ------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_window_with_an_infinite_loss_is_left_out(
    tiny_model: ModelFactory,
    samples: SampleFactory,
    caplog: pytest.LogCaptureFixture,
    accumulation: int,
    place: int,
) -> None:
    strategy = dataclasses.replace(
        PLAIN, lr=1e-2, ema_decay=0.5, accumulation_steps=accumulation, weight_decay=0.1
    )
    good = samples(6)
    labels = [float(s.target or 0) for s in good]
    bad = [relabel(s, math.inf) if i == place else s for i, s in enumerate(good)]
    window = place // accumulation
    kept = [s for i, s in enumerate(good) if i // accumulation != window]

    def fit(chosen: list[Sample]) -> tuple[dict[str, torch.Tensor], Any, History]:
        model = tiny_model(**NO_DROPOUT)
        engine = make_engine(model, strategy, targets=labels)
        history = engine.fit([SampleBatch([s]) for s in chosen])
        assert engine.average is not None
        return weights_of(model), engine, history

    expected, without, _ = fit(kept)
    weights, engine, history = fit(bad)
    assert same_bits(weights, expected)
    assert same_bits(engine.average.average, without.average.average)
    assert engine.average.updates == without.average.updates == history[0]["steps"]
    assert history[0]["skipped"] == 1
    assert math.isfinite(history[0]["train_loss"])
    message = next(m for m in caplog.messages if m.startswith("Optimizer step skipped"))
    assert f"s{place}" in message
    assert "(1 in a row)" in message


def test_a_gradient_that_is_not_finite_is_left_out(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    model = tiny_model(**NO_DROPOUT)
    strategy = dataclasses.replace(PLAIN, ema_decay=0.5)
    engine = make_engine(model, strategy)
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * (math.nan if len(calls) == 2 else 1.0)

    assert model.head is not None
    model.head.output.weight.register_hook(spoil)
    with recorded(after=True) as steps:
        history = engine.fit(batches(4))
    assert (history[0]["steps"], history[0]["skipped"], len(steps)) == (3, 1, 3)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert engine.average is not None
    assert engine.average.updates == 3


def test_a_label_that_is_nan_is_a_missing_one(
    tiny_model: ModelFactory, samples: SampleFactory
) -> None:
    four = samples(4)
    train = [SampleBatch([s]) for s in (*four[:3], relabel(four[3], math.nan))]
    model = tiny_model()
    history = model.fit(train, strategy=PLAIN, epochs=2)
    assert [row["skipped"] for row in history] == [0, 0]
    assert [row["steps"] for row in history] == [3, 6]
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Spoilt:
    """Good batches in the first epoch, infinite labels in all later ones."""

    def __init__(self, batches: list[SampleBatch], *, good_epochs: int = 1) -> None:
        self.batches, self.good_epochs, self.epochs = batches, good_epochs, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SampleBatch]:
        self.epochs += 1
        for batch in self.batches:
            bad = self.epochs > self.good_epochs
            yield SampleBatch([relabel(s, math.inf) for s in batch]) if bad else batch


@pytest.mark.parametrize("with_val", [True, False])
def test_too_many_in_a_row_stop_the_run_with_the_best_weights(
    tiny_model: ModelFactory, batches: BatchFactory, with_val: bool
) -> None:
    model = tiny_model()
    val = batches(2, seed=1)
    strategy = dataclasses.replace(PLAIN, ema_decay=0.5)
    engine = make_engine(model, strategy, epochs=5, max_nonfinite=3)
    with pytest.raises(NonFiniteError) as caught:
        engine.fit(Spoilt(batches(2)), val if with_val else None)
    kept = "best ones (epoch 1)" if with_val else "last ones"
    assert str(caught.value) == (
        "Loss or gradients were not finite in 3 windows in a row, last for s0. The model holds "
        f"finite weights, the {kept}. Look at these samples, lower the learning rate, or train "
        "with amp=False."
    )
    assert engine.average is not None
    for name, value in engine.average.average.items():
        assert torch.equal(engine.parameters[name], value)
    if with_val:
        assert model.evaluate(val)["loss"] == engine.state.best_score
    assert not any(module.training for module in model.modules())


def test_a_good_window_starts_the_count_anew(
    tiny_model: ModelFactory, samples: SampleFactory
) -> None:
    six = samples(6)
    train = [SampleBatch([relabel(s, math.inf) if i % 3 else s]) for i, s in enumerate(six)]
    engine = make_engine(tiny_model(), PLAIN, epochs=2, max_nonfinite=3)
    history = engine.fit(train)
    assert [row["skipped"] for row in history] == [4, 8]
    assert [row["steps"] for row in history] == [2, 4]


def test_skipped_windows_count_towards_max_steps(
    tiny_model: ModelFactory, samples: SampleFactory
) -> None:
    a, b = samples(2)
    train = [SampleBatch([a]), SampleBatch([relabel(b, math.inf)])]
    history = make_engine(tiny_model(), PLAIN, epochs=None, max_steps=4).fit(train)
    assert history.stopped == "max_steps"
    assert (history[-1]["steps"], history[-1]["skipped"]) == (2, 2)


# --- callbacks -----------------------------------------------------------------------------------


class Events(Callback):
    """Names of the hooks in the order of their calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def on_fit_start(self, plan: FitPlan, history: History) -> None:
        self.log.append(f"{self.name} start {plan.epochs}x{plan.batches_per_epoch} {len(history)}")

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        assert math.isfinite(loss)
        self.log.append(f"{self.name} batch {epoch}.{batch}")

    def on_validation_start(self, n_batches: int) -> None:
        self.log.append(f"{self.name} validation {n_batches}")

    def on_epoch_end(self, row: dict[str, Any], improved: bool) -> None:
        self.log.append(f"{self.name} epoch {row['epoch']} {improved}")

    def on_fit_end(self, history: History) -> None:
        self.log.append(f"{self.name} end {len(history)}")


def test_callbacks_are_called_in_order(tiny_model: ModelFactory, batches: BatchFactory) -> None:
    log: list[str] = []
    model, train = tiny_model(), batches(2)
    model.fit(
        train,
        anchored(model, train),
        strategy=dataclasses.replace(PLAIN, accumulation_steps=2),
        epochs=2,
        callbacks=[Events("a", log), Events("b", log)],
    )
    events = ["start 2x2 0", "batch 1.1", "batch 1.2", "validation 2", "epoch 1 True"]
    events += ["batch 2.1", "batch 2.2", "validation 2", "epoch 2 False", "end 2"]
    assert log == [f"{name} {event}" for event in events for name in "ab"]


def test_callbacks_hear_no_end_after_an_error(
    tiny_model: ModelFactory, batches: BatchFactory
) -> None:
    log: list[str] = []
    engine = make_engine(
        tiny_model(), PLAIN, epochs=9, max_nonfinite=1, callbacks=[Events("a", log)]
    )
    with pytest.raises(NonFiniteError):
        engine.fit(Spoilt(batches(1)))
    assert log == ["a start 9x1 0", "a batch 1.1", "a epoch 1 False"]


def test_the_csv_log_holds_a_row_an_epoch(
    tiny_model: ModelFactory, batches: BatchFactory, tmp_path: Path
) -> None:
    import pandas as pd

    path = tmp_path / "logs" / "history.csv"
    history = tiny_model().fit(
        batches(2), batches(2, seed=1), strategy=PLAIN, epochs=3, callbacks=[CSVLog(path)]
    )
    table = pd.read_csv(path)
    assert list(table.columns) == list(history[0])
    assert table["val_loss"].tolist() == [row["val_loss"] for row in history]
    pd.testing.assert_frame_equal(table, history.to_pandas(), check_dtype=False)


# --- all strategies learn ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(lr=3e-2),
        LoRAFinetune(rank=4, lr_lora=1e-2),
        PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-3, lr_head=1e-2),
        FullFinetune(lr=1e-3, lr_head=1e-2),
    ],
    ids=lambda s: s.name,
)
def test_the_loss_goes_down(
    tiny_model: ModelFactory, batches: BatchFactory, strategy: FinetuneStrategy
) -> None:
    model = tiny_model(**NO_DROPOUT)
    history = model.fit(batches(3), strategy=strategy, epochs=6)
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    adapters = [p for n, p in model.named_parameters() if lora.is_adapter(n)]
    assert all(torch.isfinite(p).all() for p in adapters)


def test_the_import_of_fabric_leaves_torchmetrics_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning_fabric", "torchmetrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with _known_by_version("torchmetrics"):
        found = importlib.import_module("torchmetrics").__version__
    assert found == importlib.metadata.version("torchmetrics")
    assert "torchmetrics" not in sys.modules
    with _known_by_version("no_such_package"):
        assert importlib.util.find_spec("no_such_package") is None
