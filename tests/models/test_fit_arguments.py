"""What ``fit`` says to arguments it cannot use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from molfun.data import AffinityDataset, DataSplitter
from molfun.errors import ConfigError, DataError, RunError
from molfun.models.structure import MolfunStructureModel
from molfun.nn import lora
from molfun.sample import SampleBatch
from molfun.training import LoRAFinetune


@pytest.mark.parametrize("empty", [[], ()])
def test_a_training_set_without_batches(
    tiny_model: Callable[..., MolfunStructureModel], empty: Any
) -> None:
    with pytest.raises(DataError, match=r"training set has no length or no batch. Pass a Data"):
        tiny_model().fit(empty, strategy="head_only", epochs=1)


def test_a_strategy_by_name(
    tiny_model: Callable[..., MolfunStructureModel], batches: Callable[..., list[SampleBatch]]
) -> None:
    model = tiny_model()
    model.fit(batches(2), strategy="lora", epochs=1)
    assert model.strategy is not None
    assert model.strategy.name == "lora"
    with pytest.raises(
        ConfigError, match=r"Unknown strategy 'lorra'; known: auto, .*Did you mean 'lora'"
    ):
        tiny_model().fit(batches(2), strategy="lorra", epochs=1)


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_seed_out_of_range(
    tiny_model: Callable[..., MolfunStructureModel],
    batches: Callable[..., list[SampleBatch]],
    seed: int,
) -> None:
    with pytest.raises(ConfigError, match=r"seed must be a whole number from 0 to 2\*\*63 - 1"):
        tiny_model().fit(batches(2), strategy="head_only", epochs=1, seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "x", True, None])
def test_a_seed_that_no_generator_takes(seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"seed must be a whole number from 0 to 2\*\*63 - 1"):
        MolfunStructureModel("esm2_tiny", seed=seed)
    with pytest.raises(ConfigError, match=r"seed must be a whole number"):
        DataSplitter.random(AffinityDataset.synthetic(10, length=5), seed=seed)


def test_a_strategy_class_in_place_of_an_object(
    tiny_model: Callable[..., MolfunStructureModel], batches: Callable[..., list[SampleBatch]]
) -> None:
    with pytest.raises(ConfigError, match=r"class LoRAFinetune; pass an object: LoRAFinetune\(\)"):
        tiny_model().fit(batches(2), strategy=LoRAFinetune, epochs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("seed", 1.5, "seed must be a whole number from 0 to 2**63 - 1, got 1.5."),
        ("seed", "x", "seed must be a whole number from 0 to 2**63 - 1, got 'x'."),
        ("seed", True, "seed must be a whole number from 0 to 2**63 - 1, got True."),
        ("strategy", 5, "strategy must be an object such as FullFinetune()"),
        ("strategy", ["lora"], "strategy must be an object such as FullFinetune()"),
        ("output_dir", 5, "A path must be a text or a pathlib.Path, got 5."),
        ("cache_dir", 5, "A path must be a text or a pathlib.Path, got 5."),
        ("callbacks", 5, "callbacks must be a list of molfun.training.Callback objects, got 5."),
        ("callbacks", [print], "callbacks must be a list of molfun.training.Callback objects"),
    ],
)
def test_arguments_of_another_type(
    tiny_model: Callable[..., MolfunStructureModel],
    batches: Callable[..., list[SampleBatch]],
    argument: str,
    value: Any,
    message: str,
) -> None:
    for verb in ("fit", "pretrain") if argument != "cache_dir" else ("fit",):
        with pytest.raises(ConfigError) as caught:
            getattr(tiny_model(), verb)(batches(2), **{"epochs": 1, argument: value})
        assert str(caught.value).startswith(message)


def test_pretraining_takes_no_name_of_a_strategy(
    tiny_model: Callable[..., MolfunStructureModel], batches: Callable[..., list[SampleBatch]]
) -> None:
    with pytest.raises(ConfigError, match=r"an object such as FullFinetune\(\), got 'full'"):
        tiny_model().pretrain(batches(2), strategy="full")  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["backbone_config", "head_config", "task_config"])
def test_settings_that_are_no_mapping(argument: str) -> None:
    for value in (5, "x", [1], {1: 2}):
        with pytest.raises(ConfigError, match=f"{argument} must map names to values, got "):
            MolfunStructureModel("esm2_tiny", head="regression", **{argument: value})


def test_a_checkpoint_that_is_no_path(tiny_model: Callable[..., MolfunStructureModel]) -> None:
    for verb in (tiny_model().load, tiny_model().save, MolfunStructureModel.from_checkpoint):
        with pytest.raises(ConfigError, match=r"A path must be a text or a pathlib\.Path, got 5"):
            verb(5)  # type: ignore[arg-type]


def test_a_run_is_replaced_only_if_asked_for(
    tiny_model: Callable[..., MolfunStructureModel],
    batches: Callable[..., list[SampleBatch]],
    tmp_path: Path,
) -> None:
    run: dict[str, Any] = {"strategy": "head_only", "epochs": 1, "output_dir": tmp_path}
    tiny_model().fit(batches(2), **run)
    before = (tmp_path / "checkpoint" / "manifest.json").read_bytes()
    with pytest.raises(RunError) as caught:
        tiny_model(seed=1).fit(batches(2), **run)
    assert str(caught.value) == (
        f"{tmp_path} already holds a run (checkpoint, resume, history.csv). Continue it with "
        f"resume=True (--resume), replace it with overwrite=True (--overwrite), or choose another "
        f"output folder."
    )
    assert (tmp_path / "checkpoint" / "manifest.json").read_bytes() == before
    tiny_model(seed=1).fit(batches(2), **run, overwrite=True)
    assert (tmp_path / "checkpoint" / "manifest.json").read_bytes() != before
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


def test_a_loader_that_cannot_put_samples_together(
    tiny_model: Callable[..., MolfunStructureModel],
) -> None:
    loader = DataLoader(AffinityDataset.synthetic(3, length=5))
    with pytest.raises(ConfigError, match=r"Pass collate_fn=AffinityDataset\.collate_fn to it, or"):
        tiny_model().fit(loader, strategy="head_only", epochs=1)


def test_one_sample_can_be_evaluated(tiny_model: Callable[..., MolfunStructureModel]) -> None:
    data = AffinityDataset.synthetic(3, length=5)
    model = tiny_model()
    assert model.evaluate(data[1])["loss"] == model.evaluate(data.subset([1]))["loss"]


def test_adapters_on_random_weights_get_gradients() -> None:
    """The architecture starts residual branches at zero, which would leave every B at zero."""
    model = MolfunStructureModel("openfold", config="tiny", head="affinity", device="cpu")
    model.fit(AffinityDataset.synthetic(3, length=5), strategy="lora", epochs=1)
    ups = [p for n, p in lora.parameters(model.backbone) if "lora_B" in n]
    moved = [bool(torch.any(p != 0)) for p in ups]
    # attention over MSA columns and in the last block's pair stack does not reach `single`
    assert sum(moved) >= len(moved) // 2


@pytest.mark.parametrize(
    ("head", "items", "message"),
    [
        ("conv", [("MKVLA", "CHHE"), ("GGSG", "CCEEC")], "seq_1: 4 labels for 5 residues"),
        ("contact", [("MKVLA", np.zeros((7, 7)))], "seq_1: 7 x 7 labels for 5 residues"),
    ],
)
def test_labels_of_another_size_are_refused(head, items, message):
    from molfun import SequenceDataset

    settings = {"task_config": {"classes": ["C", "E", "H"]}} if head == "conv" else {}
    model = MolfunStructureModel("esm2_tiny", head=head, device="cpu", **settings)
    with pytest.raises(DataError, match="labels do not fit the sequence") as caught:
        model.fit(SequenceDataset.from_list(items), strategy="head_only", epochs=1)
    assert message in str(caught.value)


def test_an_architecture_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="Give config as an argument, not in backbone_config"):
        MolfunStructureModel("timeseries", config="transformer", backbone_config={"config": {}})
