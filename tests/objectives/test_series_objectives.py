"""Objectives on time series: their numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_series

from molfun import FullFinetune, MolfunStructureModel
from molfun.objectives.contrastive import nt_xent
from molfun.objectives.jepa import JEPAObjective
from molfun.objectives.series import random_blocks
from molfun.registry import OBJECTIVES
from molfun.sample import Sample, SampleBatch
from molfun.training import Callback

SMALL: dict[str, Any] = {
    "name": "transformer", "d_input": 3, "d_model": 16, "n_heads": 2, "dropout": 0.0,
}  # fmt: skip
FAST = FullFinetune(lr=3e-3, lr_head=3e-3, lr_embedder=3e-3, layer_lr_decay=1.0)


def prepared(name: str, samples: list[Sample], **settings: Any) -> tuple[Any, Any, Any]:
    model = MolfunStructureModel("timeseries", config=SMALL, device="cpu")
    objective = OBJECTIVES[name](**settings)
    objective.build(model.backbone)
    rows = [
        objective.prepare(model.backbone.featurize(s), torch.Generator().manual_seed(i))
        for i, s in enumerate(samples)
    ]
    return objective, model.backbone, model.backbone.collate(rows)


def test_nt_xent_is_the_double_loop() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    both = torch.nn.functional.normalize(torch.cat([a, b]), dim=-1)
    total = 0.0
    for i in range(8):
        scores = [float(both[i] @ both[j]) / 0.2 for j in range(8)]
        others = [math.exp(scores[j]) for j in range(8) if j != i]
        total -= math.log(math.exp(scores[(i + 4) % 8]) / sum(others))
    loss, count, _ = nt_xent([(a, b)], 0.2)
    assert count == 8
    assert float(loss) == pytest.approx(total, rel=1e-5)


def test_mae_asks_only_for_values_that_were_observed_and_hidden() -> None:
    samples = build_series(3)
    objective, backbone, batch = prepared("mae", samples, mask_ratio=0.4)
    observed = backbone.collate([backbone.featurize(s) for s in samples])["mask"]
    assert bool((batch["hidden"] <= observed).all())
    assert not bool((batch["hidden"] & batch["mask"]).any())
    first = objective(backbone, batch)
    assert first.n_labels == int(batch["hidden"].sum())
    changed = {**batch, "timeseries": torch.where(observed, batch["timeseries"], 99.0)}
    assert torch.equal(objective(backbone, changed).total, first.total)


def test_hidden_values_do_not_reach_the_encoder() -> None:
    _, backbone, batch = prepared("mae", build_series(3), mask_ratio=0.4)
    other = torch.where(batch["hidden"], batch["timeseries"] + 5.0, batch["timeseries"])
    one, two = (backbone.encode({**batch, "timeseries": t}) for t in (batch["timeseries"], other))
    assert torch.equal(one, two)


def test_views_have_beginnings_of_their_own_and_share_what_both_have() -> None:
    sample = build_series(1, lengths=(30,))[0]
    objective, backbone, _ = prepared("contrastive", [sample], mode="temporal", min_crop=0.5)
    for seed in range(20):
        row = objective.prepare(backbone.featurize(sample), torch.Generator().manual_seed(seed))
        one, two = row["timeseries_1"][row["both_1"]], row["timeseries_2"][row["both_2"]]
        assert torch.equal(one, two)
        assert 15 <= len(row["timeseries_1"]) <= 30


def test_contrast_over_time_is_not_solved_by_the_clock() -> None:
    """On constant series nothing but the number of the step tells steps apart."""
    rng = np.random.default_rng(0)
    flat = [
        Sample(id=str(i), features={"timeseries": np.zeros((24, 3), np.float32) + rng.normal()})
        for i in range(12)
    ]
    model = MolfunStructureModel("timeseries", config=SMALL, device="cpu")
    settings = {"mode": "temporal", "min_crop": 0.5, "jitter": 0.0, "mask_ratio": 0.0}
    history = model.pretrain(
        [SampleBatch(flat)], [SampleBatch(flat)], objective="contrastive",
        objective_config=settings, strategy=FAST, epochs=40,
    )  # fmt: skip
    assert history[-1]["val/accuracy"] < 0.5


def test_mae_learns_what_the_mean_does_not_know() -> None:
    samples = build_series(32, lengths=(24,))
    model = MolfunStructureModel("timeseries", config=SMALL, device="cpu")
    history = model.pretrain(
        [SampleBatch(samples[:16]), SampleBatch(samples[16:])], [SampleBatch(samples)],
        objective="mae", objective_config={"mask_ratio": 0.2}, strategy=FAST, epochs=200,
    )  # fmt: skip
    assert history.best["val/r2"] > 0.3


def test_the_teacher_follows_once_a_step_whatever_the_accumulation() -> None:
    moved: list[float] = []

    class Counted(JEPAObjective):
        def after_step(self, progress: float) -> None:
            super().after_step(progress)
            moved.append(progress)

    OBJECTIVES["counted_jepa"] = Counted
    model = MolfunStructureModel("timeseries", config=SMALL, device="cpu")
    batches = [SampleBatch(build_series(2, seed=i)) for i in range(4)]
    model.pretrain(
        batches, objective="counted_jepa", epochs=3,
        strategy=FullFinetune(lr=1e-3, accumulation_steps=2),
    )  # fmt: skip
    assert moved == pytest.approx([i / 6 for i in range(1, 7)])


def test_the_teacher_is_an_average_of_the_student() -> None:
    objective, backbone, _ = prepared("jepa", build_series(2), momentum=0.9, final_momentum=0.9)
    teacher = objective._teacher[0]
    before = {n: p.clone() for n, p in teacher.named_parameters()}
    with torch.no_grad():
        for p in backbone.parameters():
            p += 1.0
    objective.after_step(0.5)
    for name, p in teacher.named_parameters():
        assert torch.allclose(p, before[name] + 0.1, atol=1e-6), name
        assert not p.requires_grad
    assert not any("teacher" in n for n, _ in objective.named_parameters())


def test_pieces_leave_something_to_see() -> None:
    for length in (1, 2, 3, 17):
        for seed in range(20):
            marked = random_blocks(length, 0.6, 3, torch.Generator().manual_seed(seed))
            assert marked.any()
            assert length == 1 or not marked.all()


@pytest.mark.parametrize(("objective", "kept"), [("mae", "best"), ("jepa", "last")])
def test_jepa_keeps_the_last_weights_and_others_the_best(
    objective: str, kept: str, tmp_path: Path
) -> None:
    """A loss against representations that move ranks no epochs."""
    batches = [SampleBatch(build_series(6))]
    model = MolfunStructureModel("timeseries", config=SMALL, device="cpu", seed=0)
    states: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        def on_epoch_end(self, row: Any, improved: bool) -> None:
            states.append({k: v.clone() for k, v in model.backbone.state_dict().items()})

    # far too fast, so that the last epoch is not the best one
    strategy = FullFinetune(
        lr=0.3, lr_head=0.3, lr_embedder=0.3, layer_lr_decay=1.0, scheduler="constant"
    )
    history = model.pretrain(
        batches,
        batches,
        objective=objective,
        strategy=strategy,
        epochs=3,
        callbacks=[Keep()],
        output_dir=tmp_path,
    )
    best = history.best["epoch"] - 1
    assert best < 2
    chosen = states[best if kept == "best" else 2]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, chosen[name]), name
    again = MolfunStructureModel(
        "timeseries", weights=tmp_path / "weights.safetensors", device="cpu"
    )
    for name, tensor in again.backbone.state_dict().items():
        assert torch.equal(tensor, chosen[name]), name


def test_a_reconstruction_is_what_the_loss_measures() -> None:
    samples = build_series(3)
    objective, backbone, batch = prepared("mae", samples, mask_ratio=0.4)
    backbone.input_mean.fill_(5.0)
    backbone.input_std.fill_(2.0)
    found = objective.reconstruct(backbone, batch)
    assert [len(one.values) for one in found] == [len(s.features["timeseries"]) for s in samples]
    error = sum(
        float(np.square((one.predicted - one.values)[one.hidden] / 2).sum()) for one in found
    )
    assert error == pytest.approx(float(objective(backbone, batch).total.detach()), rel=1e-4)
    for one, sample in zip(found, samples, strict=True):
        known = np.isfinite(one.values)
        assert not (one.hidden & ~known).any()
        assert np.array_equal(one.values[known], sample.features["timeseries"][known])
    assert prepared("jepa", samples)[0].reconstruct(backbone, batch) is None
