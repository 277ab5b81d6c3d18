"""Predicted structures: their confidence, and the files that hold them."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
