"""Fine-tuning strategies: what trains, and how fast.

`molfun.training` gives the same names, for good.
"""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
