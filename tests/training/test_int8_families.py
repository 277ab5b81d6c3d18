"""LoRA on a base in int8 for every family of protein language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molfun.models.structure import MolfunStructureModel
from molfun.nn import int8
from molfun.sample import Sample
from molfun.training import LoRAFinetune

pytest.importorskip("torchao")

ESM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "dropout_rate": 0.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ESM1b": ("esm", {**ESM, "position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    "ESM": ("esm", ESM),
    "SaProt": ("saprot", ESM),
    "ESMC": ("esmc", ESM),
    "ProtT5": ("prott5", T5),
    "ProstT5": ("prostt5", T5),
    "Ankh": ("ankh", T5),
}
SEQUENCES = ("MKVLATGGHK", "ACDEFGHIKLMN", "GGGGGHKW", "PPPWYV", "ACACACWW", "MMKKLL")
STRATEGY = LoRAFinetune(rank=2, lr_lora=1e-2, lr_head=1e-2, base="int8")


def data() -> list[Sample]:
    return [Sample(id=s, sequence=s, target=float(i)) for i, s in enumerate(SEQUENCES)]


def made(family: str, **settings: Any) -> MolfunStructureModel:
    name, config = FAMILIES[family]
    arguments = {"head": "regression", "device": "cpu", "seed": 1, "config": config, **settings}
    return MolfunStructureModel(name, **arguments)


def predicted(model: MolfunStructureModel) -> torch.Tensor:
    return torch.as_tensor(model.predict(data())["prediction"])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    """Weights of a model as Hugging Face has them."""
    path = tmp_path / "weights"
    path.mkdir()
    made(family, seed=3).backbone.write_hugging_face(path)  # type: ignore[union-attr,operator]  # a language model
    return path


def test_outputs_are_near_those_of_floats(family: str, folder: Path) -> None:
    exact = made(family, weights=folder, head=None).embed(list(SEQUENCES))
    small = made(family, weights=folder, head=None, base="int8")
    assert int8.holds_int8(small.backbone)
    found = small.embed(list(SEQUENCES))
    exact, found = np.concatenate(exact), np.concatenate(found)
    assert 0 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.02


def test_all_linear_layers_of_the_blocks_are_in_int8(family: str) -> None:
    model = made(family)
    before = {
        f"{name}.weight"
        for name, module in model.backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(model.backbone.block_prefix)
    }
    int8.quantise(model.backbone)
    found = {n for n, p in model.backbone.named_parameters() if int8.is_int8(p)}
    assert found == before
    assert len(found) >= 12


@pytest.mark.parametrize("on_file", [True, False], ids=["file", "random"])
def test_adapters_learn_and_are_saved(
    family: str, folder: Path, on_file: bool, tmp_path: Path
) -> None:
    base: dict[str, Any] = {"weights": folder, "base": "int8"} if on_file else {}
    model = made(family, **base)
    kept = [p.dequantize() for p in model.backbone.parameters() if int8.is_int8(p)]
    history = model.fit(data(), strategy=STRATEGY, epochs=8)
    losses = [row["train_loss"] for row in history]
    assert losses[-1] < 0.8 * losses[0]
    assert int8.holds_int8(model.backbone)
    after = [p.dequantize() for p in model.backbone.parameters() if int8.is_int8(p)]
    assert not on_file or all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
    model.save(tmp_path / "c")
    same = MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu")
    assert int8.holds_int8(same.backbone)
    assert torch.equal(predicted(same), predicted(model))
    plain = MolfunStructureModel.from_checkpoint(tmp_path / "c", device="cpu", base="float32")
    assert not int8.holds_int8(plain.backbone)
    torch.testing.assert_close(predicted(plain), predicted(model), rtol=0.05, atol=0.05)
    before = predicted(model)
    torch.testing.assert_close(predicted(model.merge()), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(predicted(model.unmerge()), before)
