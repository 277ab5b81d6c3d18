"""Backbones: pretrained models behind one interface, one sub-package each."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
