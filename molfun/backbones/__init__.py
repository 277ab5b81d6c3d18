"""Backbones: pretrained models behind one interface, one sub-package each."""

from molfun._lazy import attach

__getattr__, __all__ = attach(
    __name__, {"Backbone": "molfun.backbones.base", "TrunkOutput": "molfun.trunk"}
)
