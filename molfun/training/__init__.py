"""Training: strategies (what trains and how fast) and the engine (the loop)."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
