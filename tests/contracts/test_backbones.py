"""The backbones keep the contract."""

from __future__ import annotations

import pytest
from tiny import PET_TINY, build_atoms, build_samples, build_series

from molfun.backbones.esm2 import ESM2Backbone
from molfun.backbones.openfold import OpenFoldBackbone
from molfun.backbones.pet import PETBackbone
from molfun.backbones.timeseries import TimeSeriesBackbone
from molfun.backbones.transformers import (
    AnkhBackbone,
    EsmBackbone,
    EsmcBackbone,
    ProstT5Backbone,
    ProtT5Backbone,
    SaProtBackbone,
)
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


ESM_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
T5_SIZES = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}


class TestESMOfTransformers(BackboneContract):
    backbone_class = EsmBackbone
    settings = {"config": ESM_SIZES}  # noqa: RUF012


class TestESM1b(BackboneContract):
    backbone_class = EsmBackbone
    settings = {  # noqa: RUF012
        "config": {
            **ESM_SIZES,
            "position_embedding_type": "absolute",
            "emb_layer_norm_before": True,
        }
    }


class TestSaProt(BackboneContract):
    backbone_class = SaProtBackbone
    settings = {"config": ESM_SIZES}  # noqa: RUF012


class TestESMC(BackboneContract):
    backbone_class = EsmcBackbone
    settings = {"config": ESM_SIZES}  # noqa: RUF012


class TestProtT5(BackboneContract):
    backbone_class = ProtT5Backbone
    settings = {"config": T5_SIZES}  # noqa: RUF012


class TestProstT5(BackboneContract):
    backbone_class = ProstT5Backbone
    settings = {"config": T5_SIZES}  # noqa: RUF012


class TestAnkh(BackboneContract):
    backbone_class = AnkhBackbone
    settings = {"config": T5_SIZES}  # noqa: RUF012


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
