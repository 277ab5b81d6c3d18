"""Data sets: tables, structures, pre-computed features, splits.

>>> from molfun.data import AffinityDataset
>>> dataset = AffinityDataset.synthetic(2, length=8)
>>> dataset.ids
['demo_000', 'demo_001']
"""

from molfun._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
