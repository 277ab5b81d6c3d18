"""The facade `MolfunStructureModel`, and the functions that it delegates to."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
