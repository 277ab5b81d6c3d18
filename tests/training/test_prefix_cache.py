"""Activations at the first block that trains are computed once a sample."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from molfun import FullFinetune, LoRAFinetune, MolfunStructureModel, PartialFinetune
from molfun.backbones.esm2 import ESM2Backbone
from molfun.sample import Sample, SampleBatch
from molfun.training import History

SEQUENCES = ["MKVLAAG", "ACDEFGHIKL", "GGSG", "PQRSTVWYMK", "LLLLKKKK", "MNPQ"]
STRATEGY = PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2, scheduler="constant")


@pytest.fixture(scope="module")
def model() -> MolfunStructureModel:
    return MolfunStructureModel("esm2", config="esm2_t3_d16_h2", head="regression", device="cpu")


@pytest.fixture
def batches() -> list[SampleBatch]:
    samples = [
        Sample(id=f"s{i}", sequence=s, target=float(len(s))) for i, s in enumerate(SEQUENCES)
    ]
    return [SampleBatch(samples[:3]), SampleBatch(samples[3:])]


@pytest.fixture
def prefixes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples for which the frozen blocks ran."""
    ran: list[int] = []
    run = ESM2Backbone.run_prefix

    def counted(self: ESM2Backbone, batch: Any, block: int) -> Any:
        ran.append(block)
        return run(self, batch, block)

    monkeypatch.setattr(ESM2Backbone, "run_prefix", counted)
    return ran


def fit(
    model: MolfunStructureModel, batches: list[SampleBatch], **options: Any
) -> tuple[MolfunStructureModel, History]:
    model = copy.deepcopy(model)
    settings: dict[str, Any] = {"strategy": STRATEGY, "epochs": 4, **options}
    return model, model.fit(batches, batches[:1], **settings)


def test_the_frozen_blocks_run_once_a_sample(
    model: MolfunStructureModel,
    batches: list[SampleBatch],
    prefixes: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        _, history = fit(model, batches)
    # three of the six are validated in every epoch, too
    assert prefixes == [2] * 6
    assert history.cache_report in caplog.messages
    assert re.fullmatch(
        r"Frozen-prefix cache: the frozen part of the backbone ran 6 times instead of 36, which "
        r"saved about [\d.]+ s \(\d+ kB memory\)\.",
        history.cache_report,
    )


def test_results_are_those_without_the_cache(
    model: MolfunStructureModel, batches: list[SampleBatch], prefixes: list[int]
) -> None:
    cached, with_cache = fit(model, batches)
    assert prefixes
    plain, without = fit(model, batches, cache="off")
    for row, other in zip(with_cache, without, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    moved = False
    start = dict(model.named_parameters())
    for (name, a), b in zip(cached.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=2e-4), name
        moved |= "layers.2" in name and not torch.equal(a, start[name])
    assert moved, "the block that trains has to change"


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_every_mode_gives_the_same_bits(
    model: MolfunStructureModel, batches: list[SampleBatch], tmp_path: Path, mode: Any
) -> None:
    _, reference = fit(model, batches)
    _, history = fit(model, batches, cache=mode, cache_dir=tmp_path)
    assert list(history) == list(reference)
    _, again = fit(model, batches, cache=mode, cache_dir=tmp_path)
    assert list(again) == list(reference)


def test_other_weights_in_front_never_hit(
    model: MolfunStructureModel,
    batches: list[SampleBatch],
    prefixes: list[int],
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"cache": "disk", "cache_dir": tmp_path}
    fit(model, batches, **options)
    fit(model, batches, **options)
    assert len(prefixes) == 6
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.backbone.blocks()[0].parameters()).view(-1)[0] += 1e-3
    fit(other, batches, **options)
    assert len(prefixes) == 12
    fit(model, batches, **{**options, "strategy": PartialFinetune(unfreeze_last_n=2)})
    assert prefixes[12:] == [1] * 6


@pytest.mark.parametrize("strategy", [LoRAFinetune(), FullFinetune()])
def test_nothing_is_kept_where_the_first_block_trains(
    model: MolfunStructureModel, batches: list[SampleBatch], prefixes: list[int], strategy: Any
) -> None:
    _, history = fit(model, batches, strategy=strategy)
    assert not prefixes
    assert history.cache_report == ""


def test_a_resumed_run_is_the_uninterrupted_one(
    model: MolfunStructureModel, batches: list[SampleBatch], tmp_path: Path
) -> None:
    from molfun.training import Callback

    class Crash(Callback):
        def on_epoch_end(self, row: Any, improved: bool) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    whole, reference = fit(model, batches)
    with pytest.raises(KeyboardInterrupt):
        fit(model, batches, output_dir=tmp_path, callbacks=[Crash()], save_every_steps=1)
    resumed, history = fit(model, batches, output_dir=tmp_path, resume=True)
    assert list(history) == list(reference)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
