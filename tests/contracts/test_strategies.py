"""The strategies keep the contract."""

from __future__ import annotations

from strategy_contract import StrategyContract

from molfun.training import (
    FullFinetune,
    GradualFinetune,
    HeadOnlyFinetune,
    LoRAFinetune,
    PartialFinetune,
)


class TestHeadOnly(StrategyContract):
    strategy_class = HeadOnlyFinetune
    settings = {"lr": 1e-2}  # noqa: RUF012


class TestLoRA(StrategyContract):
    strategy_class = LoRAFinetune
    settings = {"rank": 4, "lr_lora": 1e-2, "target_modules": ["linear_q", "linear_o"]}  # noqa: RUF012


class TestPartial(StrategyContract):
    strategy_class = PartialFinetune
    settings = {"unfreeze_last_n": 1, "lr_trunk": 1e-3}  # noqa: RUF012


class TestFull(StrategyContract):
    strategy_class = FullFinetune
    settings = {"lr": 1e-3}  # noqa: RUF012


class TestGradual(StrategyContract):
    strategy_class = GradualFinetune
    settings = {"inner": FullFinetune(lr=1e-3)}  # noqa: RUF012


class TestGradualLoRA(StrategyContract):
    strategy_class = GradualFinetune
    settings = {  # noqa: RUF012
        "inner": {"name": "lora", "rank": 2, "lr_lora": 1e-2, "target_modules": ["linear_q"]}
    }
