"""Gradual unfreezing: nothing moves before its epoch, everything does after."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_runs import Crash, Outcome, make_engine, run_fit

from molfun import FullFinetune, LoRAFinetune, MolfunStructureModel, PartialFinetune
from molfun.errors import ConfigError
from molfun.sample import Sample, SampleBatch
from molfun.training import Callback, FinetuneStrategy, GradualFinetune
from molfun.training.schedule import delayed

SEQUENCES = ["MKVLAAG", "ACDEFGHIKL", "GGSG", "PQRSTVWYMK", "LLLLKKKK", "MNPQ"]
FULL = FullFinetune(lr=1e-2, layer_lr_decay=1.0, scheduler="constant")


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    return MolfunStructureModel("esm2", config="esm2_t3_d16_h2", head="regression", device="cpu")


@pytest.fixture(scope="module")
def batches() -> list[SampleBatch]:
    samples = [
        Sample(id=f"s{i}", sequence=s, target=float(len(s))) for i, s in enumerate(SEQUENCES)
    ]
    return [SampleBatch(samples[:3]), SampleBatch(samples[3:])]


class Watch(Callback):
    """Keep the weights at the end of every epoch."""

    def __init__(self, model: MolfunStructureModel) -> None:
        self.model = model
        self.weights = [self._now()]

    def _now(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def on_epoch_end(self, row: Any, improved: bool) -> None:
        self.weights.append(self._now())

    def changed(self, epoch: int) -> set[str]:
        """Names of the parameters that this epoch (from 0) changed."""
        before, after = self.weights[epoch], self.weights[epoch + 1]
        common = before.keys() & after.keys()  # adapters are injected when the fit begins
        return {name for name in common if not torch.equal(before[name], after[name])}


def watch_fit(
    model: MolfunStructureModel, batches: list[SampleBatch], strategy: FinetuneStrategy, **kw: Any
) -> tuple[MolfunStructureModel, Watch, Any]:
    model = copy.deepcopy(model)
    watch = Watch(model)
    history = model.fit(
        batches, batches[:1], strategy=strategy, callbacks=[watch], **{"epochs": 4, **kw}
    )
    return model, watch, history


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_the_backbone_stays_bit_by_bit_and_then_trains(
    model: MolfunStructureModel, batches: list[SampleBatch], ema_decay: float, cache: Any
) -> None:
    strategy = GradualFinetune(inner=FULL, unfreeze_epoch=2, ema_decay=ema_decay)
    _, watch, _ = watch_fit(model, batches, strategy, cache=cache)
    for epoch in (0, 1):
        assert {name.split(".")[0] for name in watch.changed(epoch)} == {"head"}
    for epoch in (2, 3):
        moved = watch.changed(epoch)
        assert any(name.startswith("backbone.model.layers.0.") for name in moved)
        assert any(name.startswith("backbone.model.layers.2.") for name in moved)


def test_after_the_switch_it_trains_as_fast_as_the_inner_strategy_says(
    model: MolfunStructureModel, batches: list[SampleBatch]
) -> None:
    """The first step of Adam moves each weight by its learning rate, and decays it by a bit."""
    inner = FullFinetune(lr=1e-3, layer_lr_decay=0.5, scheduler="constant", weight_decay=0.0)
    _, watch, _ = watch_fit(
        model, [*batches[:1]], GradualFinetune(inner=inner, unfreeze_epoch=3), restore_best=False
    )
    before, after = watch.weights[3], watch.weights[4]
    for layer, lr in ((0, 2.5e-4), (1, 5e-4), (2, 1e-3)):
        name = f"backbone.model.layers.{layer}.fc1.weight"
        moved = (after[name] - before[name]).abs().max()
        assert moved.item() == pytest.approx(lr, rel=0.02)


def test_blocks_follow_from_the_last_to_the_first(
    model: MolfunStructureModel, batches: list[SampleBatch]
) -> None:
    strategy = GradualFinetune(inner=FULL, unfreeze_epoch=1, blocks_per_stage=1)
    _, watch, _ = watch_fit(model, batches, strategy, epochs=5)
    seen = []
    for epoch in range(5):
        layers = {n.split(".")[3] for n in watch.changed(epoch) if "model.layers." in n}
        embedding = any("embed_tokens" in n for n in watch.changed(epoch))
        seen.append((sorted(layers), embedding))
    assert seen == [
        ([], False),
        (["2"], False),
        (["1", "2"], False),
        (["0", "1", "2"], False),
        (["0", "1", "2"], True),
    ]


def test_only_what_the_inner_strategy_trains_is_unfrozen(
    model: MolfunStructureModel, batches: list[SampleBatch]
) -> None:
    strategy = GradualFinetune(inner=PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2))
    _, watch, _ = watch_fit(model, batches, strategy, epochs=2)
    backbone = {n for n in watch.changed(1) if n.startswith("backbone.")}
    assert backbone
    last = ("backbone.model.layers.2.", "backbone.model.emb_layer_norm_after.")
    assert all(n.startswith(last) for n in backbone)


def test_adapters_stay_zero_until_then(
    model: MolfunStructureModel, batches: list[SampleBatch]
) -> None:
    strategy = GradualFinetune(inner=LoRAFinetune(rank=2, lr_lora=1e-2), unfreeze_epoch=2)
    trained, watch, _ = watch_fit(model, batches, strategy, epochs=3)
    assert not any(".lora_" in n for e in (0, 1) for n in watch.changed(e) if e)
    assert any(".lora_B" in n for n in watch.changed(2))
    assert strategy.adds_adapters
    assert not GradualFinetune().adds_adapters
    assert trained.strategy == strategy


@pytest.mark.parametrize("blocks", [None, 1])
def test_the_frozen_part_is_computed_once_a_stage_and_results_are_the_same(
    model: MolfunStructureModel, batches: list[SampleBatch], blocks: int | None
) -> None:
    # samples one by one: padding changes the order of sums in a batch that trains
    single = [SampleBatch([s]) for batch in batches for s in batch]
    strategy = GradualFinetune(inner=FULL, unfreeze_epoch=2, blocks_per_stage=blocks)
    cached, _, with_cache = watch_fit(model, single, strategy)
    plain, _, without = watch_fit(model, single, strategy, cache="off")
    assert repr(list(with_cache)) == repr(list(without))
    for (name, p), (_, q) in zip(cached.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    reports = with_cache.cache_report.splitlines()
    # stages: all frozen; then nothing is (all at once), or the last block trains, then the last two
    assert len(reports) == (1 if blocks is None else 3)
    assert "ran 6 times instead of" in reports[0]
    assert without.cache_report == ""


@pytest.mark.parametrize("stop_at", [3, 7, 8, 16, 22, 27])
def test_a_killed_run_goes_on_bit_by_bit_in_every_stage(tmp_path: Path, stop_at: int) -> None:
    strategy = GradualFinetune(
        inner=FullFinetune(lr=1e-3),
        blocks_per_stage=1,
        stage_warmup_steps=2,
        ema_decay=0.9,
        early_stopping_patience=3,
    )
    whole: Outcome = run_fit(None, strategy=strategy, epochs=4)
    with pytest.raises(Crash):
        run_fit(tmp_path / "run", strategy=strategy, epochs=4, stop_at=stop_at)
    again = run_fit(tmp_path / "run", strategy=strategy, epochs=4, resume=True)
    assert again.same_results(whole)


def test_moments_begin_with_the_first_gradient(tiny_model: Any, batches: Any) -> None:
    from tiny import build_batches

    model = tiny_model()
    engine = make_engine(model, GradualFinetune(inner=FULL, unfreeze_epoch=1), epochs=2)
    known: list[int] = []
    engine.callbacks = [_OnEpoch(lambda: known.append(len(engine.optimizer.state)))]
    engine.fit(build_batches(4))
    head = sum(1 for n in engine.parameters if n.startswith("head."))
    assert known[0] == head
    assert known[1] > head


class _OnEpoch(Callback):
    def __init__(self, call: Any) -> None:
        self._call = call

    def on_epoch_end(self, row: Any, improved: bool) -> None:
        self._call()


def test_each_stage_has_a_warm_up_of_its_own() -> None:
    late = delayed(lambda step: 1.0, first_step=10, warmup_steps=4)
    assert [round(late(step), 3) for step in (0, 10, 11, 12, 13, 14, 20)] == [
        0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0,
    ]  # fmt: skip


def test_patience_starts_anew_when_more_trains(
    model: MolfunStructureModel, batches: list[SampleBatch]
) -> None:
    """With rates of next to nothing no epoch after the first is better by the rounded metric."""
    inner = FullFinetune(lr=1e-30, lr_head=1e-30, early_stopping_patience=2)
    strategy = GradualFinetune(inner=inner, unfreeze_epoch=2)
    _, _, history = watch_fit(model, batches, strategy, epochs=9)
    # best in epoch 1, one bad epoch, then two more after the switch
    assert len(history) == 4
    assert history.stopped == "early_stopping"


def test_patience_does_not_end_a_run_before_the_switch(
    model: MolfunStructureModel, batches: list[SampleBatch]
) -> None:
    inner = FullFinetune(lr=1e-30, lr_head=1e-30, early_stopping_patience=1)
    _, watch, history = watch_fit(
        model, batches, GradualFinetune(inner=inner, unfreeze_epoch=4), epochs=9
    )
    assert len(history) == 5
    assert history.stopped == "early_stopping"
    assert watch.weights


def test_it_says_if_the_run_ends_before_the_switch(
    model: MolfunStructureModel, batches: list[SampleBatch], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        watch_fit(model, batches, GradualFinetune(inner=FULL, unfreeze_epoch=5), epochs=2)
    assert "begin to train in epoch 6, and this run has 2: they do not change" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "head_only"}, "inner is 'head_only', which leaves nothing to unfreeze."),
        ({"inner": GradualFinetune()}, "inner is 'gradual'"),
        ({"inner": "fully"}, "Unknown strategy 'fully'"),
        ({"inner": 3}, "inner must be a strategy, got 3."),
        ({"inner": {"name": "full", "lrr": 1.0}}, "Did you mean 'lr'?"),
        ({"unfreeze_epoch": 0}, "unfreeze_epoch must be at least 1, got 0."),
        ({"blocks_per_stage": 0}, "blocks_per_stage must be at least 1, got 0."),
        (
            {"inner": FullFinetune(ema_decay=0.5), "ema_decay": 0.9},
            "ema_decay differ between it and inner",
        ),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GradualFinetune(**settings)
    assert message in str(caught.value)


def test_shared_settings_may_stand_on_either_side() -> None:
    first = GradualFinetune(inner=FullFinetune(ema_decay=0.5, grad_clip=2.0), amp=False)
    assert (first.ema_decay, first.grad_clip, first.amp) == (0.5, 2.0, False)
    assert (first.inner.ema_decay, first.inner.amp) == (0.5, False)
