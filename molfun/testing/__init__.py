"""Contracts: base classes of tests that every part of another package should pass.

Inherit a contract in a test module of yours and name the part; pytest runs the inherited tests::

    from molfun.testing import HeadContract

    class TestMyHead(HeadContract):
        name = "my_head"

Needs pytest. docs/extending.md shows one example per contract.
"""

import pytest

from molfun._lazy import attach

# pytest rewrites asserts in test modules only; without this, a failing contract shows no values
pytest.register_assert_rewrite(
    "molfun.testing.backbone",
    "molfun.testing.data",
    "molfun.testing.head",
    "molfun.testing.objective",
    "molfun.testing.strategy",
    "molfun.testing.task",
)

__getattr__, __dir__, __all__ = attach(__name__, __file__)
