"""The backbones keep the contract."""

from __future__ import annotations

import pytest
from tiny import PET_TINY, build_atoms, build_samples, build_series

from molfun.backbones.esm2 import ESM2Backbone
from molfun.backbones.openfold import OpenFoldBackbone
from molfun.backbones.pet import PETBackbone
from molfun.backbones.timeseries import TimeSeriesBackbone
from molfun.testing import BackboneContract
from molfun.testing.backbone import SampleFactory


class TestOpenFold(BackboneContract):
    backbone_class = OpenFoldBackbone
    settings = {"config": "tiny", "fill_zero_init": 0.1}  # noqa: RUF012

    @pytest.fixture
    def samples(self) -> SampleFactory:
        return build_samples


class TestESM2(BackboneContract):
    backbone_class = ESM2Backbone
    settings = {"config": "esm2_tiny"}  # noqa: RUF012


class SeriesContract(BackboneContract):
    backbone_class = TimeSeriesBackbone

    @pytest.fixture
    def samples(self) -> SampleFactory:
        return build_series


class TestTransformer(SeriesContract):
    settings = {"config": {"d_input": 3, "d_model": 16, "n_heads": 2}}  # noqa: RUF012


class TestTransformerWithSummary(SeriesContract):
    settings = {  # noqa: RUF012
        "config": {"d_input": 3, "d_model": 16, "n_heads": 2, "cls": True, "prenorm": False}
    }


class TestGRUD(SeriesContract):
    settings = {"config": {"name": "gru_d", "d_input": 3, "d_model": 16}}  # noqa: RUF012


class TestPET(BackboneContract):
    backbone_class = PETBackbone
    # a sum with zero is contiguous where a plain product was not, so the next kernel adds up anew
    adapter_tolerance = 1e-6
    settings = {"config": PET_TINY}  # noqa: RUF012

    @pytest.fixture
    def samples(self) -> SampleFactory:
        return build_atoms
