"""The objectives keep the contract."""

from __future__ import annotations

from objective_contract import ObjectiveContract


class TestMaskedLM(ObjectiveContract):
    name = "masked_lm"
    settings = {"mask_ratio": 0.3}  # noqa: RUF012
