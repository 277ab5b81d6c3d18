"""What decides the best epoch: the validation loss, or a metric by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from molfun.errors import ConfigError
from molfun.models.structure import MolfunStructureModel
from molfun.sample import SampleBatch
from molfun.training import HeadOnlyFinetune

Batches = Callable[..., list[SampleBatch]]
Model = Callable[..., MolfunStructureModel]


@pytest.mark.parametrize(
    ("monitor", "pick"), [("val/loss", min), ("val/mae", min), ("val/spearman", max)]
)
def test_the_best_epoch_is_the_one_of_the_monitored_value(
    tiny_model: Model, batches: Batches, tmp_path: Path, monitor: str, pick: Callable[..., float]
) -> None:
    model, val = tiny_model(), batches(5, seed=3)
    strategy = HeadOnlyFinetune(lr=0.05, monitor=monitor, scheduler="constant")
    history = model.fit(batches(6), val, strategy=strategy, epochs=8, output_dir=tmp_path)
    key = "val_loss" if monitor == "val/loss" else monitor
    assert history.best[key] == pick(row[key] for row in history)
    assert len({row[key] for row in history}) > 1, "a monitor that never moves decides nothing"
    metrics = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint").evaluate(val)
    assert metrics[monitor.removeprefix("val/")] == pytest.approx(history.best[key], abs=1e-12)


def test_patience_counts_epochs_without_a_better_metric(
    tiny_model: Model, batches: Batches
) -> None:
    strategy = HeadOnlyFinetune(lr=0.05, monitor="val/r2", early_stopping_patience=2)
    history = tiny_model().fit(batches(6), batches(5, seed=3), strategy=strategy, epochs=40)
    best = history.best["epoch"]
    assert history.stopped == "early_stopping"
    assert len(history) == best + 2


def test_an_undefined_metric_never_wins(
    tiny_model: Model, batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = HeadOnlyFinetune(monitor="val/pearson", early_stopping_patience=3)
    history = tiny_model().fit(batches(4), batches(1, seed=3), strategy=strategy, epochs=9)
    assert all(math.isnan(row["val/pearson"]) for row in history)
    assert (len(history), history.stopped) == (3, "early_stopping")
    (message,) = [m for m in caplog.messages if "undefined" in m]
    assert message.startswith("val/pearson is undefined on this validation set (too few samples")


def test_an_unknown_monitor_names_the_nearest(tiny_model: Model, batches: Batches) -> None:
    with pytest.raises(ConfigError, match=r"Unknown monitor 'val/spearmann'.*'val/spearman'\?"):
        tiny_model().fit(
            batches(2), batches(2), strategy=HeadOnlyFinetune(monitor="val/spearmann"), epochs=1
        )


def test_the_last_weights_stay_if_asked_for(
    tiny_model: Model, batches: Batches, tmp_path: Path
) -> None:
    val, strategy = batches(5, seed=3), HeadOnlyFinetune(lr=0.05, scheduler="constant")
    model = tiny_model()
    history = model.fit(
        batches(6), val, strategy=strategy, epochs=6, output_dir=tmp_path, restore_best=False
    )
    assert history.best is not history[-1], "the last epoch has to be worse for this to tell"
    assert model.evaluate(val)["loss"] == history[-1]["val_loss"]
    kept = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")
    assert kept.evaluate(val)["loss"] == history.best["val_loss"]
    assert not torch.equal(kept.head.output.weight, model.head.output.weight)  # type: ignore[union-attr]
