"""OpenFold's AlphaFold trunk as a backbone."""

from molfun._lazy import attach

__getattr__, __all__ = attach(__name__, {"OpenFoldBackbone": "molfun.backbones.openfold.backbone"})
