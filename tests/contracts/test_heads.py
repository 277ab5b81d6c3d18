"""The heads keep the contract."""

from __future__ import annotations

from head_contract import HeadContract


class TestAffinity(HeadContract):
    name = "affinity"


class TestAffinityWithAttention(HeadContract):
    name = "affinity"
    settings = {"pooling": "attention", "hidden_dim": 5}  # noqa: RUF012
