"""Parts from outside the package work with all others: those of docs/extending.md, in process."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_package import write_toy_package

from molfun import (
    FullFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    PartialFinetune,
    SequenceDataset,
)
from molfun import registry as registries
from molfun.registry import STRATEGIES

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Names of the parts by the group of their entry points."""
    folder = tmp_path_factory.mktemp("toy")
    entries = write_toy_package(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for targets in entries.values():
            for target in targets.values():
                importlib.import_module(target.partition(":")[0])
    return entries


@pytest.fixture(autouse=True)
def _registered(parts: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The names, as entry points give them; gone after the test."""
    for group, targets in parts.items():
        registry = getattr(registries, group.removeprefix("molfun.").upper())
        for name, target in targets.items():
            monkeypatch.setitem(registry._entries, name, target)


@pytest.fixture
def data() -> SequenceDataset:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(LETTERS), 4 + i % 5)) for i in range(12)]
    return SequenceDataset.from_list([(t, t.count("A") + 0.1 * len(t)) for t in texts])


@pytest.mark.parametrize("head", ["regression", "affinity", "largest"])
@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(lr=1e-2),
        LoRAFinetune(rank=2, lr_lora=1e-2),
        PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2),
        FullFinetune(lr=1e-2, ema_decay=0.5),
        "bias",
    ],
    ids=lambda s: getattr(s, "name", s),
)
def test_everything_works_on_a_backbone_from_outside(
    data: SequenceDataset, tmp_path: Path, strategy: Any, head: str
) -> None:
    strategy = STRATEGIES["bias"](lr=1e-2) if strategy == "bias" else strategy
    model = MolfunStructureModel("toy", head=head, device="cpu")
    history = model.fit(data, data, strategy=strategy, epochs=5, output_dir=tmp_path)
    losses = [row["train_loss"] for row in history]
    assert min(losses) < losses[0]
    again = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    expected = model.predict(data)["prediction"]
    assert torch.equal(again.predict(data)["prediction"], expected)
    if strategy.name == "lora":
        assert torch.allclose(model.merge().predict(data)["prediction"], expected, atol=1e-5)
    assert "block" in model.summary()


def test_an_objective_from_outside(data: SequenceDataset, tmp_path: Path) -> None:
    model = MolfunStructureModel("toy", device="cpu")
    history = model.pretrain(data, data, objective="denoise", epochs=4, output_dir=tmp_path)
    assert history[-1]["val/rms"] < history[0]["val/rms"]
    assert model.embed(data, pooling="mean").shape == (12, 8)
