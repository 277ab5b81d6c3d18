"""A new backbone, head, strategy or objective from outside the package touches no core file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from molfun import (
    FinetuneStrategy,
    FullFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    PartialFinetune,
    SequenceDataset,
)
from molfun.backbones.base import Backbone, Features, Layer
from molfun.errors import DataError
from molfun.heads.base import Head
from molfun.objectives.base import Objective, ObjectiveOutput
from molfun.registry import BACKBONES, HEADS, OBJECTIVES, STRATEGIES
from molfun.sample import Sample
from molfun.trunk import TrunkOutput

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class ToyBackbone(Backbone):
    """Two gated layers on one-hot residues: all that a backbone needs, in forty lines."""

    name = "toy"
    display_name = "Toy"
    block_prefix = "blocks_"
    lora_targets = ("mix",)
    inputs = ("sequence",)
    default_head = "mlp"

    def __init__(self, width: int = 8, *, weights: Any = None, seed: int = 0) -> None:
        super().__init__()
        del weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(len(LETTERS), width)
            self.blocks_ = nn.ModuleList(
                nn.ModuleDict({"mix": nn.Linear(width, width)}) for _ in range(2)
            )
        self.width = self.single_dim = width
        self.pair_dim = None

    def featurize(self, sample: Sample) -> Features:
        if not sample.sequence:
            raise DataError(f"{sample.id} has neither a sequence nor anything else.")
        index = torch.tensor([LETTERS.index(letter) for letter in sample.sequence])
        one_hot = functional.one_hot(index, len(LETTERS)).float()
        return {"x": one_hot, "mask": torch.ones(len(index))}

    def collate(self, features: Sequence[Features]) -> Features:
        pad = nn.utils.rnn.pad_sequence
        return {k: pad([f[k] for f in features], batch_first=True) for k in features[0]}

    def forward(self, batch: Features, *, outputs: Sequence[str] = ("single",)) -> TrunkOutput:
        x = self.embed(batch["x"])
        for block in self.blocks_:
            x = x + torch.tanh(block["mix"](x))  # type: ignore[index]  # a ModuleDict
        mask = batch["mask"]
        found = {"mask": mask, "single": x}
        if "mean" in outputs:
            found["mean"] = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return TrunkOutput.from_tensors(found).select(outputs)

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.blocks_)

    def layer_of(self, parameter: str) -> Layer:
        parts = parameter.split(".")
        return Layer("block", int(parts[1])) if parts[0] == "blocks_" else Layer("embedder")

    @property
    def config_dict(self) -> dict[str, Any]:
        return {"width": self.width}

    @classmethod
    def arguments_from(cls, config: dict[str, Any]) -> dict[str, Any]:
        return dict(config)


class LastResidueHead(Head):
    """Reads the last residue."""

    def __init__(self, *, single_dim: int) -> None:
        super().__init__()
        self.single_dim = single_dim
        self.output = nn.Linear(single_dim, 1)

    def forward(self, trunk: TrunkOutput) -> dict[str, torch.Tensor]:
        last = trunk.mask.sum(1).long() - 1
        single = trunk.need("single")
        return self.as_outputs(self.output(single[torch.arange(len(last)), last]), 1)

    @property
    def config_dict(self) -> Mapping[str, Any]:
        return {"single_dim": self.single_dim}


@dataclass(frozen=True, kw_only=True)
class BiasFinetune(FinetuneStrategy):
    """Trains biases alone (BitFit)."""

    name: ClassVar[str] = "bias"
    lr: float = 1e-2

    @property
    def main_lr(self) -> float:
        return self.lr

    @property
    def head_lr(self) -> float:
        return self.lr

    def backbone_entries(self, backbone: Backbone) -> Iterator[Any]:
        for name, parameter in backbone.named_parameters():
            if name.endswith("bias"):
                yield "bias", self.lr, name, parameter


class DenoiseObjective(Objective):
    """Find the residues again behind noise."""

    name = "denoise"
    metric_names = ("error",)

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.LazyLinear(len(LETTERS))

    def check(self, backbone: nn.Module) -> None:
        self.decoder = nn.Linear(int(backbone.single_dim), len(LETTERS))  # type: ignore[arg-type]

    def prepare(
        self, features: dict[str, torch.Tensor], generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        noise = 0.1 * torch.randn(features["x"].shape, generator=generator)
        return {**features, "x": features["x"] + noise, "labels": features["x"]}

    def forward(self, backbone: Any, batch: dict[str, torch.Tensor]) -> ObjectiveOutput:
        decoded = self.decoder(backbone(batch).single)
        error = (decoded - batch["labels"]).square().mean(-1) * batch["mask"]
        return ObjectiveOutput(error.sum(), int(batch["mask"].sum()))

    def metrics(self, loss: float, sums: Mapping[str, float], n_labels: int) -> dict[str, float]:
        return {"error": math.sqrt(loss) if n_labels else math.nan}

    @property
    def config_dict(self) -> Mapping[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that each part needs; gone after the test."""
    for registry, part in (
        (BACKBONES, ToyBackbone),
        (STRATEGIES, BiasFinetune),
        (OBJECTIVES, DenoiseObjective),
    ):
        monkeypatch.setitem(registry._entries, part.name, part)  # type: ignore[attr-defined]
    monkeypatch.setitem(HEADS._entries, "last_residue", LastResidueHead)


@pytest.fixture
def data() -> SequenceDataset:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(LETTERS), 4 + i % 5)) for i in range(12)]
    return SequenceDataset.from_list([(t, t.count("A") + 0.1 * len(t)) for t in texts])


@pytest.mark.parametrize("head", ["regression", "affinity", "last_residue"])
@pytest.mark.parametrize(
    "strategy",
    [
        HeadOnlyFinetune(lr=1e-2),
        LoRAFinetune(rank=2, lr_lora=1e-2),
        PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2),
        FullFinetune(lr=1e-2, ema_decay=0.5),
        BiasFinetune(),
    ],
    ids=lambda s: s.name,
)
def test_everything_works_on_a_backbone_from_outside(
    data: SequenceDataset, tmp_path: Path, strategy: FinetuneStrategy, head: str
) -> None:
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
    assert history[-1]["val/error"] < history[0]["val/error"]
    assert model.embed(data, pooling="mean").shape == (12, 8)
