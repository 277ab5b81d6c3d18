"""The strategies keep the contract."""

from __future__ import annotations

from typing import Any

from tiny import build_batches, build_tiny_model

from molfun import MolfunStructureModel
from molfun.sample import SampleBatch
from molfun.testing import StrategyContract
from molfun.training import (
    FullFinetune,
    GradualFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    PartialFinetune,
)


class OnOpenFold(StrategyContract):
    """Trains the AlphaFold trunk, which has every kind of layer."""

    not_read = {"structure_module", "output"}  # noqa: RUF012  the affinity head reads `single`

    def model(self, **settings: Any) -> MolfunStructureModel:
        return build_tiny_model(**settings)

    def batches(self, n: int, *, batch_size: int = 1) -> list[SampleBatch]:
        return build_batches(n, batch_size=batch_size)


class TestHeadOnly(OnOpenFold):
    strategy_class = HeadOnlyFinetune
    settings = {"lr": 1e-2}  # noqa: RUF012


class TestLoRA(OnOpenFold):
    strategy_class = LoRAFinetune
    settings = {"rank": 4, "lr_lora": 1e-2, "target_modules": ["linear_q", "linear_o"]}  # noqa: RUF012


class TestPartial(OnOpenFold):
    strategy_class = PartialFinetune
    settings = {"unfreeze_last_n": 1, "lr_trunk": 1e-3}  # noqa: RUF012


class TestFull(OnOpenFold):
    strategy_class = FullFinetune
    settings = {"lr": 1e-3}  # noqa: RUF012


class TestGradual(OnOpenFold):
    strategy_class = GradualFinetune
    settings = {"inner": FullFinetune(lr=1e-3)}  # noqa: RUF012


class TestGradualLoRA(OnOpenFold):
    strategy_class = GradualFinetune
    settings = {  # noqa: RUF012
        "inner": {"name": "lora", "rank": 2, "lr_lora": 1e-2, "target_modules": ["linear_q"]}
    }


class TestLoRAOnSeries(StrategyContract):
    strategy_class = LoRAFinetune
    settings = {"rank": 2, "lr_lora": 1e-2}  # noqa: RUF012
