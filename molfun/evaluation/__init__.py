"""Judge a trained model: baselines on the same split, intervals, and a verdict in one sentence.

>>> from molfun.registry import BASELINES
>>> sorted(BASELINES)[:3]
['composition', 'elements', 'embedding_zero_shot']
"""
