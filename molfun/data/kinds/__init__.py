"""Kinds of data: how each is opened from settings, from a checkpoint and from Python.

A kind is one class in `molfun.registry.DATASETS`, which `Backbone.inputs` refers to by name. Its
settings become flags and keys of ``config.yaml``. Nothing heavy is imported before data is opened.

>>> from molfun.registry import DATASETS
>>> sorted(DATASETS)
['atoms', 'sequences', 'series', 'structures']
"""
