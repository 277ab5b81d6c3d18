"""Every family of protein language models keeps the contract of every strategy.

`make test` runs one strategy per family, `make proof` all; tests/soak/families.py prints a table.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from molfun import MolfunStructureModel
from molfun.nn import packed_attention
from molfun.sample import SampleBatch
from molfun.testing import StrategyContract
from molfun.testing.samples import in_batches, sequences
from molfun.training import (
    Callback,
    FullFinetune,
    GradualFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    PartialFinetune,
)

ESM = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ESM2": ("esm2", {"num_layers": 2, "embed_dim": 16, "attention_heads": 2}),
    "ESM1b": ("esm", {**ESM, "position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    "SaProt": ("saprot", ESM),
    "ESMC": ("esmc", ESM),
    "ProtT5": ("prott5", {**T5, "dropout_rate": 0.0}),
    "ProstT5": ("prostt5", {**T5, "dropout_rate": 0.0}),
    "Ankh": ("ankh", T5),
}
STRATEGIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "HeadOnly": (HeadOnlyFinetune, {"lr": 1e-2}),
    "LoRA": (LoRAFinetune, {"rank": 2, "lr_lora": 1e-2}),
    "Partial": (PartialFinetune, {"unfreeze_last_n": 1, "lr_trunk": 1e-3}),
    "Full": (FullFinetune, {"lr": 1e-3}),
    "Gradual": (GradualFinetune, {"inner": FullFinetune(lr=1e-3)}),
}


class Crash(Exception):  # noqa: N818
    """Stands for whatever kills a run."""


class StopAt(Callback):
    def __init__(self, at: int) -> None:
        self.left = at

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


class FamilyContract(StrategyContract):
    """The contract of a strategy, and what caches, resuming and merging promise."""

    family: ClassVar[str]
    not_read: ClassVar[set[str]] = {"output"}
    """The heads that predict residues and contacts."""

    @pytest.fixture(autouse=True)
    def _attention_of_wide_models(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packed_attention, "LEAST_WIDTH", 0)

    def model(self, **settings: Any) -> MolfunStructureModel:
        name, config = FAMILIES[self.family]
        settings = {"head": "regression", "device": "cpu", **settings}
        return MolfunStructureModel(name, config=config, **settings)

    def batches(self, n: int, *, batch_size: int = 1) -> list[SampleBatch]:
        return in_batches(sequences(n), batch_size)

    def fitted(self, **options: Any) -> tuple[MolfunStructureModel, list[dict[str, Any]]]:
        model = self.model()
        batches = self.batches(6, batch_size=2)
        options = {"strategy": self.make(), "epochs": 3, **options}
        history = model.fit(batches, batches[:1], **options)
        return model, [{k: v for k, v in row.items() if "seconds" not in k} for row in history]

    def test_the_cache_changes_no_result(self) -> None:
        model, with_cache = self.fitted()
        other, without = self.fitted(cache="off")
        for row, expected in zip(with_cache, without, strict=True):
            assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-4)
        batch = self.batches(3, batch_size=3)[0]
        predictions = (m.predict(batch)["prediction"] for m in (model, other))
        assert torch.allclose(*predictions, rtol=1e-3, atol=1e-4)

    def test_a_resumed_run_is_the_uninterrupted_one(self, tmp_path: Path) -> None:
        whole, expected = self.fitted()
        with pytest.raises(Crash):
            self.fitted(output_dir=tmp_path, callbacks=[StopAt(5)])
        resumed, history = self.fitted(output_dir=tmp_path, resume=True)
        assert repr(history) == repr(expected)
        for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b), name

    def test_merged_adapters_predict_the_same(self) -> None:
        if self.strategy_class is not LoRAFinetune:
            pytest.skip("it has no adapters")
        model, _ = self.fitted()
        batch = self.batches(3, batch_size=3)[0]
        before = model.predict(batch)["prediction"]
        weights = copy.deepcopy(model.backbone.state_dict())
        merged = model.merge().predict(batch)["prediction"]
        assert torch.allclose(merged, before, rtol=0, atol=1e-5)
        after = model.unmerge()
        assert torch.equal(after.predict(batch)["prediction"], before)
        assert all(torch.equal(t, weights[n]) for n, t in model.backbone.state_dict().items())


def class_of(family: str, strategy: str) -> type[FamilyContract]:
    """Return the class of tests of one cell of the matrix."""
    cls, settings = STRATEGIES[strategy]
    content = {"family": family, "strategy_class": cls, "settings": settings}
    return type(f"Test{family}{strategy}", (FamilyContract,), content)


for _row, _family in enumerate(FAMILIES):
    for _column, _strategy in enumerate(STRATEGIES):
        _class = class_of(_family, _strategy)
        if _column != _row % len(STRATEGIES):
            pytest.mark.proof(_class)
        globals()[_class.__name__] = _class
del _class
