"""The objectives keep the contract."""

from __future__ import annotations

from typing import Any, ClassVar

from molfun.sample import Sample
from molfun.testing import ObjectiveContract


class Lacking(ObjectiveContract):
    """Needs what OpenFold does not have."""

    lacking: ClassVar[tuple[str, Any] | None] = ("openfold", "tiny")


class TestMaskedLM(Lacking):
    name = "masked_lm"
    settings = {"mask_ratio": 0.3}  # noqa: RUF012
    backbone = ("esm2", "esm2_tiny")
    epochs = 12

    @staticmethod
    def samples() -> list[Sample]:
        texts = ["MKVLAAGIVG", "ACDEFGHIKLMNPQRSTVWY", "GGSGGS", "PQRSTVWYMKAA"]
        return [Sample(id=f"s{i}", sequence=t) for i, t in enumerate(texts)]


class TestMAE(Lacking):
    name = "mae"
    settings = {"mask_ratio": 0.3}  # noqa: RUF012


class TestMAEInBlocks(Lacking):
    name = "mae"
    settings = {"mask_ratio": 0.4, "mask_unit": "block", "n_blocks": 2}  # noqa: RUF012


class TestContrastive(Lacking):
    name = "contrastive"
    additive = False


class TestContrastOverTime(Lacking):
    name = "contrastive"
    settings = {"mode": "temporal"}  # noqa: RUF012


class TestJEPA(Lacking):
    name = "jepa"
    settings = {"n_blocks": 1, "momentum": 0.9}  # noqa: RUF012


class TestMAEOfGRUD(Lacking):
    name = "mae"
    backbone = ("timeseries", {"name": "gru_d", "d_input": 3, "d_model": 16, "dropout": 0.0})
