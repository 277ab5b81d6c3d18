"""Protein language models of Hugging Face ``transformers``, one module per family."""

from molfun._lazy import require, unlogged

with unlogged():  # transformers imports torchao where it is installed
    require("transformers", "pip install 'molfun[esm]'")

    from molfun.backbones.transformers.ankh import AnkhBackbone
    from molfun.backbones.transformers.backbone import TransformersBackbone
    from molfun.backbones.transformers.esm import EsmBackbone
    from molfun.backbones.transformers.esmc import EsmcBackbone
    from molfun.backbones.transformers.prostt5 import ProstT5Backbone
    from molfun.backbones.transformers.prott5 import ProtT5Backbone
    from molfun.backbones.transformers.saprot import SaProtBackbone

__all__ = [
    "AnkhBackbone",
    "EsmBackbone",
    "EsmcBackbone",
    "ProstT5Backbone",
    "ProtT5Backbone",
    "SaProtBackbone",
    "TransformersBackbone",
]
