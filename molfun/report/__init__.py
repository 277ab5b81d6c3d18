"""Reports of runs: one HTML file that works offline, and a table that compares runs."""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
