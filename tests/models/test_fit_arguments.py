"""What ``fit`` says to arguments it cannot use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from molfun.errors import ConfigError, DataError
from molfun.models.structure import MolfunStructureModel
from molfun.sample import SampleBatch


@pytest.mark.parametrize("empty", [[], iter([])])
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
    with pytest.raises(ConfigError, match=r"Unknown strategy 'lorra'.*Did you mean 'lora'"):
        tiny_model().fit(batches(2), strategy="lorra", epochs=1)


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_seed_out_of_range(
    tiny_model: Callable[..., MolfunStructureModel],
    batches: Callable[..., list[SampleBatch]],
    seed: int,
) -> None:
    with pytest.raises(ConfigError, match=r"seed must be from 0 to 2\*\*63 - 1"):
        tiny_model().fit(batches(2), strategy="head_only", epochs=1, seed=seed)
