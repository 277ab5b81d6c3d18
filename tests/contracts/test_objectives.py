"""The objectives keep the contract."""

from __future__ import annotations

from objective_contract import ObjectiveContract
from tiny import build_series

from molfun.sample import Sample


class TestMaskedLM(ObjectiveContract):
    name = "masked_lm"
    settings = {"mask_ratio": 0.3}  # noqa: RUF012


class SeriesObjective(ObjectiveContract):
    backbone = (
        "timeseries",
        {"name": "transformer", "d_input": 3, "d_model": 16, "n_heads": 2, "dropout": 0.0},
    )

    epochs = 30

    @staticmethod
    def samples() -> list[Sample]:
        return build_series(4, lengths=(9, 12, 7, 15))


class TestMAE(SeriesObjective):
    name = "mae"
    settings = {"mask_ratio": 0.3}  # noqa: RUF012


class TestMAEInBlocks(SeriesObjective):
    name = "mae"
    settings = {"mask_ratio": 0.4, "mask_unit": "block", "n_blocks": 2}  # noqa: RUF012


class TestContrastive(SeriesObjective):
    name = "contrastive"
    additive = False


class TestContrastOverTime(SeriesObjective):
    name = "contrastive"
    settings = {"mode": "temporal"}  # noqa: RUF012


class TestJEPA(SeriesObjective):
    name = "jepa"
    settings = {"n_blocks": 1, "momentum": 0.9}  # noqa: RUF012


class TestMAEOfGRUD(SeriesObjective):
    name = "mae"
    backbone = ("timeseries", {"name": "gru_d", "d_input": 3, "d_model": 16, "dropout": 0.0})
