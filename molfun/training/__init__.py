"""Training: the engine and its parts; strategies are in `molfun.strategies`."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
