"""What is kept for the backward pass: planned before the first step, never a matter of numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from molfun import FullFinetune, HeadOnlyFinetune, LoRAFinetune, MolfunStructureModel
from molfun.backbones.openfold import memory
from molfun.backbones.openfold.memory import Shape
from molfun.models import memory as planning
from molfun.models import memory as system
from molfun.nn import attention
from molfun.nn.modes import set_modes
from molfun.sample import Sample, SampleBatch
from molfun.training import FinetuneStrategy

ModelFactory = Callable[..., MolfunStructureModel]
SampleFactory = Callable[..., list[Sample]]
BatchFactory = Callable[..., list[SampleBatch]]
SHAPE = Shape(batch=1, length=64, rows=5, c_m=256, c_z=128, blocks=48)


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs take the way of large ones; the other way is torch's own."""
    monkeypatch.setattr(attention, "SMALL_BYTES", 0)


def gradients(model: MolfunStructureModel, samples: list[Sample]) -> dict[str, torch.Tensor]:
    backbone = model.backbone
    set_modes(backbone, training=True)
    torch.manual_seed(3)
    batch = backbone.collate([backbone.featurize(s) for s in samples])
    backbone(batch).single.square().sum().backward()
    found = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    return found


@pytest.mark.parametrize("strategy", [LoRAFinetune(rank=2), FullFinetune()])
@pytest.mark.parametrize("kernels", ["fast", "stock"])
def test_every_level_gives_the_same_bits(
    tiny_model: ModelFactory, samples: SampleFactory, strategy: FinetuneStrategy, kernels: str
) -> None:
    model = tiny_model(kernels=kernels)
    strategy.setup(model)
    given = samples(2, lengths=(9, 6))
    found = {}
    for plan in memory.plans(fast=kernels == "fast"):
        model.backbone._planned = plan
        found[plan] = gradients(model, given)
    assert len(found["keep"]) > 10
    for plan, others in found.items():
        for name, gradient in found["keep"].items():
            assert torch.equal(others[name], gradient), f"{plan} {name}"


def test_lean_parts_run_three_times(tiny_model: ModelFactory, samples: SampleFactory) -> None:
    model = tiny_model(kernels="fast")
    LoRAFinetune(rank=2).setup(model)
    modules = dict(model.backbone.blocks()[0].named_modules())
    (layer,) = (m for n, m in modules.items() if n.endswith("tri_mul_out.layer_norm_in"))
    ran: list[int] = []
    layer.register_forward_hook(lambda *_: ran.append(1))
    counts = {}
    for plan in memory.plans(fast=True):
        ran.clear()
        model.backbone._planned = plan
        gradients(model, samples(1))
        counts[plan] = len(ran)
    assert counts == {"keep": 1, "checkpoint": 2, "compact": 2, "lean": 3}


@pytest.mark.parametrize("fast", [True, False])
def test_the_level_with_the_least_work_that_fits_is_taken(fast: bool) -> None:
    peaks = [memory.peak_bytes(SHAPE, plan, fast=fast) for plan in memory.plans(fast=fast)]
    assert peaks == sorted(peaks, reverse=True)
    for plan, peak in zip(memory.plans(fast=fast), peaks, strict=True):
        assert memory.choose(SHAPE, peak, fast=fast) == memory.Choice(plan, peak)
    assert memory.choose(SHAPE, 0, fast=fast) == memory.Choice(
        memory.plans(fast=fast)[-1], peaks[-1]
    )


def test_as_many_blocks_keep_their_activations_as_fit() -> None:
    most, least = (memory.peak_bytes(SHAPE, plan, fast=True) for plan in ("keep", "checkpoint"))
    found = [memory.choose(SHAPE, least + i * (most - least) // 8, fast=True) for i in range(8)]
    assert {choice.plan for choice in found} == {"checkpoint"}
    kept = [choice.kept for choice in found]
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert 36 <= kept[-1] < 48
    for i, choice in enumerate(found):
        assert choice.peak <= least + i * (most - least) // 8
    words = "activations of the last 1 block are kept, those of the others are computed again"
    assert words in str(memory.Choice("checkpoint", 1, 1))
    # openfold's own code has one setting for all blocks
    least = memory.peak_bytes(SHAPE, "checkpoint", fast=False)
    assert memory.choose(SHAPE, 2 * least, fast=False).kept == 0


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_blocks_that_are_recomputed_run_twice_and_change_no_bit(
    tiny_model: ModelFactory, samples: SampleFactory, kept: int
) -> None:
    model = tiny_model(kernels="fast")
    LoRAFinetune(rank=2).setup(model)
    given = samples(2, lengths=(9, 6))
    whole = gradients(model, given)
    ran: list[int] = []
    for number, block in enumerate(model.backbone.blocks()):
        (layer,) = (m for n, m in block.named_modules() if n.endswith("msa_transition"))
        layer.register_forward_hook(lambda *_, n=number: ran.append(n))
    model.backbone._planned, model.backbone._kept = "checkpoint", kept
    found = gradients(model, given)
    assert ran.count(0) == (1 if kept == 2 else 2)
    assert ran.count(1) == (2 if kept == 0 else 1)
    assert all(torch.equal(found[name], gradient) for name, gradient in whole.items())


@pytest.mark.parametrize("fast", [True, False])
def test_the_length_that_is_advised_fits_and_8_more_do_not(fast: bool) -> None:
    shape = Shape(**{**SHAPE.__dict__, "length": 900})
    available = memory.peak_bytes(
        Shape(**{**SHAPE.__dict__, "length": 500}), memory.plans(fast=fast)[-1], fast=fast
    )
    assert memory.longest_that_fits(shape, available, fast=fast) == 496
    assert memory.longest_that_fits(shape, 1, fast=fast) == 0


# --- fit ------------------------------------------------------------------------------------------


def fit(
    model: MolfunStructureModel,
    batches: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    free: int | None,
    strategy: FinetuneStrategy,
) -> list[str]:
    monkeypatch.setattr(planning, "free_bytes", lambda _: free)
    with caplog.at_level(logging.INFO):
        model.fit(batches, strategy=strategy, epochs=1)
    return [m for m in caplog.messages if "longest sample" in m]


def test_enough_memory_keeps_everything(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model()
    (message,) = fit(
        model, batches(4), monkeypatch, caplog, free=2**34, strategy=LoRAFinetune(rank=2)
    )
    assert message.startswith("A step on the longest sample (s1: 12 residues) takes about ")
    assert message.endswith("16.0 GB are free: activations are kept.")
    assert model.backbone._planned is None, "the plan ends with the fit"


def test_too_little_memory_is_said_with_what_to_lower(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model(kernels="fast")
    (message,) = fit(
        model,
        batches(4, batch_size=2),
        monkeypatch,
        caplog,
        free=700_000,
        strategy=LoRAFinetune(rank=2),
    )
    assert message.startswith("A step on 2 of the longest samples (s1: 12 residues) takes about ")
    assert message.endswith(
        "computed again in the backward pass, twice inside of blocks. It may not fit: lower the "
        "batch size or max_length (to 8 residues) or the number of blocks that train."
    )


def test_what_the_user_chose_stands(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"fill_zero_init": 0.1, "checkpointing": False}
    model = tiny_model(backbone_config=settings)
    (message,) = fit(
        model, batches(2), monkeypatch, caplog, free=1000, strategy=LoRAFinetune(rank=2)
    )
    assert "activations are kept. It may not fit" in message


@pytest.mark.parametrize(
    ("free", "strategy"), [(None, LoRAFinetune(rank=2)), (2**34, HeadOnlyFinetune())]
)
def test_nothing_is_planned_where_nothing_is_known_or_needed(
    tiny_model: ModelFactory,
    batches: BatchFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int | None,
    strategy: FinetuneStrategy,
) -> None:
    assert fit(tiny_model(), batches(2), monkeypatch, caplog, free=free, strategy=strategy) == []


# --- the system -----------------------------------------------------------------------------------


def test_the_smaller_of_machine_and_control_group_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(system, "CGROUP", tmp_path)
    free = system.free_bytes(torch.device("cpu"))
    if free is None:
        pytest.skip("the system does not say")
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 250000\n")
    assert system.free_bytes(torch.device("cpu")) == 2_250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert system.free_bytes(torch.device("cpu")) > 2_250_000  # type: ignore[operator]


def test_the_batch_that_takes_most_is_planned(samples: SampleFactory) -> None:
    from torch.utils.data import DataLoader

    from molfun import AffinityDataset, LengthBatchSampler

    data = AffinityDataset.synthetic(8, length=12)
    sampler = LengthBatchSampler(lengths=[40] + [10] * 7, batch_size=8, max_cost=4 * 25**3)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=AffinityDataset.collate_fn)
    sample, _, size = planning.heaviest_batch(loader)
    assert sample is not None
    assert (sample.id, size) == (data[0].id, 1)
    plain = DataLoader(data, batch_size=3, collate_fn=AffinityDataset.collate_fn)
    assert planning.heaviest_batch(plain)[1:] == (12, 3)
    listed = [SampleBatch(samples(2)), SampleBatch(samples(3))]
    assert planning.heaviest_batch(listed)[1:] == (12, 3)


def test_memory_that_the_process_has_freed_counts_as_free() -> None:
    from molfun.nn.allocator import keep_large_buffers

    if not keep_large_buffers() or system.free_bytes(torch.device("cpu")) is None:
        pytest.skip("the system does not say, or gives buffers back by itself")
    torch.ones(2**27)  # 512 MB, which stay with the process
    held = _resident()
    system.free_bytes(torch.device("cpu"))
    assert held - _resident() > 2**28


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096
