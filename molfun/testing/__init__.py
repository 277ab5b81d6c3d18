"""Contracts: the tests that every part from outside should pass.

A test module of yours inherits a contract and names the part; pytest runs the rest::

    from molfun.testing import HeadContract

    class TestMyHead(HeadContract):
        name = "my_head"

Needs pytest. docs/extending.md shows one example per contract.
"""

import pytest

from molfun._lazy import attach

# so that a failing assert inside a contract shows its values
pytest.register_assert_rewrite(
    "molfun.testing.backbone",
    "molfun.testing.data",
    "molfun.testing.head",
    "molfun.testing.objective",
    "molfun.testing.strategy",
    "molfun.testing.task",
)

__getattr__, __dir__, __all__ = attach(__name__, __file__)
