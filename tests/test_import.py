"""The public surface, and that asking for it costs nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import molfun

PUBLIC = {
    "molfun": [
        "AffinityDataset",
        "DataSplitter",
        "FinetuneStrategy",
        "FullFinetune",
        "GradualFinetune",
        "HeadOnlyFinetune",
        "LengthBatchSampler",
        "LoRAFinetune",
        "MolfunError",
        "MolfunStructureModel",
        "PartialFinetune",
        "SequenceDataset",
        "TimeSeriesDataset",
        "__version__",
    ],
    "molfun.backbones": ["Backbone", "TrunkOutput"],
    "molfun.backbones.openfold": ["OpenFoldBackbone"],
    "molfun.backbones.esm2": ["ESM2Backbone"],
    "molfun.heads": ["AffinityHead", "ContactHead", "ConvHead", "Head", "LinearHead", "MLPHead"],
    "molfun.models": ["MolfunStructureModel", "Prediction"],
    "molfun.tasks": [
        "BinaryTask",
        "ContactTask",
        "MulticlassTask",
        "MultilabelTask",
        "RegressionTask",
        "Task",
    ],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_these(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == PUBLIC[package]
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_names_of_the_guide_are_where_it_says():
    from molfun.data import AffinityDataset, DataSplitter
    from molfun.models.structure import MolfunStructureModel
    from molfun.training import (
        FinetuneStrategy,
        FullFinetune,
        HeadOnlyFinetune,
        LoRAFinetune,
        PartialFinetune,
    )

    names = (AffinityDataset, DataSplitter, MolfunStructureModel, FinetuneStrategy, FullFinetune)
    for cls in (*names, HeadOnlyFinetune, LoRAFinetune, PartialFinetune):
        assert getattr(molfun, cls.__name__) is cls


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'molfun' has no attribute 'Molfun'"):
        _ = molfun.Molfun


def test_import_is_light():
    code = "import sys, molfun; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    for heavy in ("torch", "numpy", "pandas", "peft", "openfold", "lightning_fabric", "scipy"):
        assert f"'{heavy}'" not in loaded.stdout


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert molfun.__version__ == version("molfun")
