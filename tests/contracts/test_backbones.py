"""The backbones keep the contract."""

from __future__ import annotations

from backbone_contract import BackboneContract

from molfun.backbones.esm2 import ESM2Backbone
from molfun.backbones.openfold import OpenFoldBackbone


class TestOpenFold(BackboneContract):
    backbone_class = OpenFoldBackbone
    settings = {"config": "tiny", "fill_zero_init": 0.1}  # noqa: RUF012


class TestESM2(BackboneContract):
    backbone_class = ESM2Backbone
    settings = {"config": "esm2_tiny"}  # noqa: RUF012
