"""The affinity head and its pooling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from molfun.errors import ConfigError
from molfun.heads import AffinityHead, Head
from molfun.nn.pooling import AttentionPool, MeanPool
from molfun.trunk import TrunkOutput


def test_the_head_of_the_guide_has_49409_parameters():
    head = AffinityHead(single_dim=384, hidden_dim=128)
    assert sum(p.numel() for p in head.parameters()) == 384 * 128 + 128 + 128 + 1 == 49_409
    attention = AffinityHead(single_dim=384, pooling="attention")
    assert sum(p.numel() for p in attention.parameters()) == 49_409 + 384 + 1


def test_it_computes_what_it_says():
    head = AffinityHead(single_dim=6, hidden_dim=4).eval()
    single = torch.randn(2, 5, 6)
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1.0, 1, 1, 1, 1]])
    expected = []
    for row, n in zip(single, (3, 5), strict=True):
        norm = (row - row.mean(-1, keepdim=True)) / (
            row.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        hidden = torch.relu(norm[:n].mean(0) @ head.hidden.weight.T + head.hidden.bias)
        expected.append(hidden @ head.output.weight[0] + head.output.bias[0])
    result = head(TrunkOutput(single=single, mask=mask))["prediction"]
    assert torch.allclose(result, torch.stack(expected), atol=1e-6)


def test_the_scale_of_the_representation_does_not_matter():
    head = AffinityHead(single_dim=6).eval()
    single, mask = torch.randn(1, 5, 6), torch.ones(1, 5)
    small = head(TrunkOutput(single=single, mask=mask))["prediction"]
    large = head(TrunkOutput(single=1e4 * single, mask=mask))["prediction"]
    assert torch.allclose(small, large, atol=1e-3)


def test_dropout_is_on_only_in_training():
    head = AffinityHead(single_dim=6, dropout=0.5)
    trunk = TrunkOutput(single=torch.randn(1, 5, 6), mask=torch.ones(1, 5))
    assert len({head.train()(trunk)["prediction"].item() for _ in range(8)}) > 1
    assert len({head.eval()(trunk)["prediction"].item() for _ in range(8)}) == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"pooling": "man"},
            r"Unknown pooling 'man'; known: attention, mean\. Did you mean 'mean'",
        ),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        AffinityHead(single_dim=6, **settings)


@pytest.mark.parametrize("pool", [MeanPool(), AttentionPool(3)], ids=["mean", "attention"])
def test_pooling_ignores_padding(pool: nn.Module):
    x, mask = torch.randn(2, 5, 3), torch.tensor([[1.0, 1, 0, 0, 0], [1.0, 1, 1, 1, 1]])
    noisy = x.clone()
    noisy[0, 2:] = 1e6
    assert torch.equal(pool(noisy, mask), pool(x, mask))
    assert torch.allclose(pool(x[:1, :2], mask[:1, :2]), pool(x, mask)[:1], atol=1e-6)


@pytest.mark.parametrize("pool", [MeanPool(), AttentionPool(3)], ids=["mean", "attention"])
def test_pooling_of_nothing_is_zero(pool: nn.Module):
    assert torch.equal(pool(torch.randn(1, 4, 3), torch.zeros(1, 4)), torch.zeros(1, 3))


def test_attention_weights_sum_to_one():
    x, mask = torch.ones(1, 4, 3), torch.tensor([[1.0, 1, 1, 0]])
    assert torch.allclose(AttentionPool(3)(x, mask), torch.ones(1, 3))


def test_a_wrong_dimension_is_one_clear_error():
    with pytest.raises(
        ConfigError, match="head_config has single_dim=3, but the backbone gives 12"
    ):
        Head.check_dim("single_dim", 3, 12)
    with pytest.raises(ConfigError, match="needs pair_dim, which the backbone does not give"):
        Head.check_dim("pair_dim", None, None)
