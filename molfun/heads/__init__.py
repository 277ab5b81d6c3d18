"""Heads: from the backbone's representations to predictions, registered by name."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
