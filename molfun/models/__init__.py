"""The facade and its checkpoints."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
