"""The tasks keep the contract."""

from __future__ import annotations

import math

from molfun.testing import TaskContract


class TestRegression(TaskContract):
    name = "regression"
    targets = (4.0, 6.5, 5.0, 9.0)


class TestRegressionOfResidues(TaskContract):
    name = "regression"
    settings = {"level": "residue", "loss": "huber"}  # noqa: RUF012
    targets = ([1.0, 2.0, math.nan], [0.5, 0.1], [3.0, 1.0, 2.0, 4.0], [0.0, 1.0])
    lengths = (3, 2, 4, 2)


class TestRegressionOfVectors(TaskContract):
    name = "regression"
    settings = {"shape": [3]}  # noqa: RUF012
    targets = ([1.0, 0.0, 2.0], [0.0, 1.0, 0.5], [2.0, 2.0, 1.0], [0.0, 0.0, 3.0])


class TestBinary(TaskContract):
    name = "binary"
    settings = {"class_weight": "balanced"}  # noqa: RUF012
    targets = (1, 0, 1, 1)


class TestMulticlass(TaskContract):
    name = "multiclass"
    settings = {"n_classes": 3, "label_smoothing": 0.1}  # noqa: RUF012
    targets = ("soluble", "membrane", "fibril", "soluble")


class TestMulticlassOfResidues(TaskContract):
    name = "multiclass"
    settings = {"classes": ["C", "E", "H"], "level": "residue"}  # noqa: RUF012
    targets = ("CEH", "HH", "CCEE", "EC")
    lengths = (3, 2, 4, 2)


class TestMultilabel(TaskContract):
    name = "multilabel"
    settings = {"n_classes": 3}  # noqa: RUF012
    targets = ("a", "a;b", "c", "b;c")


class TestContact(TaskContract):
    name = "contact"
    settings = {"min_separation": 1}  # noqa: RUF012
    targets = tuple([[0.0, i % 2, 1.0], [i % 2, 0.0, 1.0], [1.0, 1.0, 0.0]] for i in range(4))
    lengths = (3, 3, 3, 3)
