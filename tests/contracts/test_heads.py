"""The heads keep the contract."""

from __future__ import annotations

from molfun.testing import HeadContract


class TestAffinity(HeadContract):
    name = "affinity"


class TestAffinityWithAttention(HeadContract):
    name = "affinity"
    settings = {"pooling": "attention", "hidden_dim": 5}  # noqa: RUF012


class TestLinear(HeadContract):
    name = "linear"


class TestLinearOnCls(HeadContract):
    name = "linear"
    settings = {"pooling": "cls", "n_outputs": 3}  # noqa: RUF012


class TestLinearOnResidues(HeadContract):
    name = "linear"
    settings = {"level": "residue", "n_outputs": 2}  # noqa: RUF012


class TestMLP(HeadContract):
    name = "mlp"
    settings = {"hidden": [16, 8]}  # noqa: RUF012


class TestMLPWithAttention(HeadContract):
    name = "mlp"
    settings = {"hidden": [16], "pooling": "attention", "n_outputs": 2}  # noqa: RUF012


class TestConv(HeadContract):
    name = "conv"
    settings = {"n_outputs": 3, "width": 9, "kernel_size": 5}  # noqa: RUF012


class TestConfidence(HeadContract):
    name = "confidence"
    settings = {"n_outputs": 2}  # noqa: RUF012


class TestConfidenceOfTheLastChain(HeadContract):
    name = "confidence"
    settings = {"partner": "last"}  # noqa: RUF012


class TestContact(HeadContract):
    name = "contact"


class TestPairMLP(HeadContract):
    name = "pair_mlp"
    settings = {"hidden": [8]}  # noqa: RUF012


class TestPairMLPWithAttention(HeadContract):
    name = "pair_mlp"
    settings = {"pooling": "attention", "n_outputs": 2, "n_chains": None}  # noqa: RUF012


class TestPairMLPOfOrderedChains(HeadContract):
    name = "pair_mlp"
    settings = {"pooling": "cls", "symmetric": False, "n_chains": 1}  # noqa: RUF012


class TestCrossAttention(HeadContract):
    name = "cross_attention"
    settings = {"width": 12, "n_heads": 3}  # noqa: RUF012
