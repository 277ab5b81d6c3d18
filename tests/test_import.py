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
        "AtomsDataset",
        "CacheConfig",
        "Callback",
        "DataSplitter",
        "FinetuneStrategy",
        "FullFinetune",
        "GradualFinetune",
        "HeadOnlyFinetune",
        "History",
        "LengthBatchSampler",
        "LoRAFinetune",
        "MolfunError",
        "MolfunStructureModel",
        "PartialFinetune",
        "Prediction",
        "Sample",
        "SampleBatch",
        "SequenceDataset",
        "StructureDataset",
        "TimeSeriesDataset",
        "__version__",
    ],
    "molfun.backbones": [
        "Backbone",
        "Features",
        "Layer",
        "TrunkOutput",
    ],
    "molfun.data": [
        "AffinityDataset",
        "AtomsDataset",
        "DataKind",
        "DataSplitter",
        "Fold",
        "Labels",
        "LengthBatchSampler",
        "NamedTargets",
        "NestedFold",
        "PairSplitter",
        "Sample",
        "SampleBatch",
        "SampleDataset",
        "SequenceDataset",
        "SequencePairDataset",
        "Settings",
        "StructureDataset",
        "TimeSeriesDataset",
        "VariantSplitter",
        "check_groups",
        "double_well",
        "find_structure",
        "is_missing",
        "observables",
        "open_timeseries",
        "option",
        "read_fasta",
        "read_features",
        "read_structure",
        "read_table",
        "write_features",
    ],
    "molfun.heads": [
        "AffinityHead",
        "ConfidenceHead",
        "ContactHead",
        "ConvHead",
        "CrossAttentionHead",
        "EnergyHead",
        "Head",
        "LinearHead",
        "MLPHead",
        "PairMLPHead",
        "StructureHead",
    ],
    "molfun.lightning": [
        "BaseEncoder",
        "BaseSSLObjective",
        "BaseTaskHead",
        "CONFIG_REGISTRY",
        "ENCODER_CONFIG_REGISTRY",
        "ENCODER_REGISTRY",
        "EncoderConfig",
        "FineTuneModule",
        "SSLConfig",
        "SSLPretrainModule",
        "SSL_REGISTRY",
        "TASK_HEAD_REGISTRY",
        "TaskHeadConfig",
        "load_config",
    ],
    "molfun.models": [
        "CrossValidation",
        "Ensemble",
        "Estimate",
        "FoldResult",
        "Forgetting",
        "MolfunStructureModel",
        "Prediction",
        "cross_validate",
        "residue_attributions",
    ],
    "molfun.report": [
        "Comparison",
        "FinishedRun",
        "Section",
        "compare_runs",
        "write_comparison",
        "write_report",
    ],
    "molfun.structures": [
        "FoldedStructure",
        "Maker",
        "StructureScores",
        "mmcif_text",
        "pdb_text",
        "score",
        "write_structure",
    ],
    "molfun.objectives": [
        "ContrastiveObjective",
        "JEPAObjective",
        "MAEObjective",
        "MaskedLMObjective",
        "Objective",
        "ObjectiveOutput",
        "Reconstruction",
    ],
    "molfun.sklearn": [
        "MolfunClassifier",
        "MolfunRegressor",
    ],
    "molfun.tasks": [
        "BinaryTask",
        "ContactTask",
        "EnergyTask",
        "GaussianTask",
        "LossOfTerms",
        "LossSum",
        "MultiTargetTask",
        "MulticlassTask",
        "MultilabelTask",
        "QuantileTask",
        "RegressionTask",
        "StructureTask",
        "Task",
    ],
    "molfun.training": [
        "CSVLog",
        "CacheConfig",
        "Callback",
        "FinetuneStrategy",
        "FitPlan",
        "FullFinetune",
        "GradualFinetune",
        "HeadOnlyFinetune",
        "History",
        "LoRAFinetune",
        "PartialFinetune",
        "StepReport",
        "TaskHead",
        "choose_strategy",
    ],
    "molfun.training.loggers": [
        "CSVLogger",
        "LoggedRun",
        "Logger",
        "MLflowLogger",
        "TensorBoardLogger",
        "WandbLogger",
    ],
    "molfun.tuning": [
        "FinishedTrial",
        "Space",
        "Study",
        "StudyResults",
        "Trial",
    ],
    "molfun.backbones.timeseries.encoders": [
        "BaseEncoder",
        "ENCODER_CONFIG_REGISTRY",
        "ENCODER_REGISTRY",
        "EncoderConfig",
        "GRUDEncoder",
        "LayeredEncoder",
        "LinearEncoder",
        "TransformerEncoder",
    ],
    "molfun.backbones.openfold": [
        "OpenFoldBackbone",
    ],
    "molfun.backbones.esm2": [
        "ESM2Backbone",
    ],
    "molfun.backbones.language": [
        "LanguageBackbone",
    ],
    "molfun.backbones.pet": [
        "PETBackbone",
    ],
    "molfun.backbones.transformers": [
        "AnkhBackbone",
        "EsmBackbone",
        "EsmcBackbone",
        "ProstT5Backbone",
        "ProtT5Backbone",
        "SaProtBackbone",
        "TransformersBackbone",
    ],
    "molfun.backbones.timeseries": [
        "TimeSeriesBackbone",
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
