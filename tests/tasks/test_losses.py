"""Losses of regression: their values, their gradients, and what they refuse."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from molfun import HeadOnlyFinetune, MolfunStructureModel
from molfun.errors import ConfigError
from molfun.registry import LOSSES
from molfun.sample import Sample, SampleBatch
from molfun.tasks import RegressionTask
from molfun.tasks.losses import huber, listmle, margin, pairwise, ranks_a_batch, spearman

RANKING = [name for name in LOSSES if ranks_a_batch(name)]


def rows(seed: int, n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator), torch.randn(n, generator=generator)


def test_listmle_is_the_likelihood_of_the_order() -> None:
    """By definition: the product over places of the softmax of what is left (Plackett-Luce)."""
    prediction, target = rows(0)
    scores = prediction[torch.argsort(target, descending=True)].double().numpy()
    likelihood = 1.0
    for i in range(len(scores)):
        likelihood *= np.exp(scores[i]) / np.exp(scores[i:]).sum()
    assert float(listmle(prediction, target)) == pytest.approx(-np.log(likelihood), rel=1e-5)
    # of all orders these likelihoods sum to 1
    orders = [torch.tensor(o, dtype=torch.float32) for o in itertools.permutations(range(4))]
    shares = [float(torch.exp(-listmle(prediction[:4], order))) for order in orders]
    assert sum(shares) == pytest.approx(1.0, rel=1e-5)


def test_listmle_does_not_overflow() -> None:
    prediction, target = torch.tensor([1e4, -1e4, 0.0]), torch.tensor([1.0, 0.0, 2.0])
    assert torch.isfinite(listmle(prediction, target))


def test_equal_labels_have_no_order() -> None:
    prediction, _ = rows(1, 4)
    target = torch.tensor([1.0, 1.0, 0.0, 0.0])
    for name in RANKING:
        loss = LOSSES[name]
        flipped = loss(prediction[[1, 0, 3, 2]], target[[1, 0, 3, 2]])
        assert torch.allclose(loss(prediction, target), flipped, rtol=1e-5)
    assert float(margin(prediction, torch.ones(4))) == 0.0
    assert float(pairwise(prediction, torch.ones(4))) == 0.0


def test_pairs_are_those_with_different_labels() -> None:
    prediction, target = rows(2, 5)
    pairs = [(i, j) for i in range(5) for j in range(5) if target[i] > target[j]]
    short = [max(0.0, 0.5 - float(prediction[i] - prediction[j])) for i, j in pairs]
    assert float(margin(prediction, target, margin=0.5)) == pytest.approx(
        5 * np.mean(short), rel=1e-5
    )
    likelihoods = [np.log1p(np.exp(-float(prediction[i] - prediction[j]))) for i, j in pairs]
    assert float(pairwise(prediction, target)) == pytest.approx(5 * np.mean(likelihoods), rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 20))
def test_soft_spearman_comes_near_spearman(seed: int, n: int) -> None:
    prediction, target = rows(seed, n)
    # narrow steps leave no rank between two others
    gap = torch.diff(prediction.sort().values).min() / prediction.std()
    temperature = max(float(gap) / 20, 1e-7)
    loss = float(spearman(prediction, target, temperature=temperature)) / n
    expected = 1 - stats.spearmanr(prediction, target).statistic
    assert loss == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", RANKING)
def test_the_right_order_is_best_and_gradients_lead_there(name: str) -> None:
    loss, target = LOSSES[name], torch.tensor([2.0, -1.0, 0.5, 1.0, -2.0])
    right, wrong = (float(loss(sign * 5 * target, target)) for sign in (1.0, -1.0))
    assert right < 0.5 < wrong
    torch.manual_seed(0)
    prediction = torch.randn(5, requires_grad=True)
    optimizer = torch.optim.Adam([prediction], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss(prediction, target).backward()
        optimizer.step()
    assert torch.argsort(prediction).tolist() == torch.argsort(target).tolist()


@pytest.mark.parametrize("name", RANKING)
def test_one_sample_has_no_order(name: str) -> None:
    prediction = torch.ones(1, requires_grad=True)
    loss = LOSSES[name](prediction, torch.ones(1))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert torch.equal(prediction.grad, torch.zeros(1))  # type: ignore[arg-type]
    constant = torch.ones(4, requires_grad=True)
    LOSSES[name](constant, torch.arange(4.0)).backward()
    assert torch.isfinite(constant.grad).all()  # type: ignore[union-attr,arg-type]


def test_missing_labels_are_no_part_of_the_order() -> None:
    task = RegressionTask(loss="listmle", standardize=False)
    prediction = torch.tensor([1.0, 5.0, -1.0])
    found = task.loss({"prediction": prediction}, torch.tensor([2.0, torch.nan, 1.0]).double())
    assert found.n_labels == 2
    expected = listmle(prediction[[0, 2]], torch.tensor([2.0, 1.0]))
    assert torch.equal(found.total, expected)


def test_options_are_kept_and_checked() -> None:
    task = RegressionTask(loss="huber", loss_config={"delta": 0.5}, standardize=False)
    again = RegressionTask(**json.loads(json.dumps(task.config_dict)))
    prediction, target = rows(3)
    found = again.loss({"prediction": prediction}, target.double())
    assert torch.equal(found.total, huber(prediction, target, delta=0.5))
    with pytest.raises(ConfigError, match="Unknown option of the loss 'margin' 'margn'"):
        RegressionTask(loss="margin", loss_config={"margn": 0.5})
    with pytest.raises(ConfigError, match=r"loss 'listml'.*Did you mean 'listmle'"):
        RegressionTask(loss="listml")
    for wrong in ({"level": "residue"}, {"shape": (3,)}):
        with pytest.raises(ConfigError, match="ranks samples by one number each"):
            RegressionTask(loss="spearman", **wrong)


@pytest.fixture
def cubic() -> Iterator[str]:
    """A loss of the user's own."""

    @LOSSES.register("cubic")
    def cubic(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction - target).abs().pow(3).sum()

    yield "cubic"
    del LOSSES._entries["cubic"]


def batches() -> list[SampleBatch]:
    texts = ["MKV", "ACDEF", "GGSG", "PQRSTV", "LLLL", "MNPQ", "WWAC", "KKE"]
    samples = [Sample(id=f"s{i}", sequence=s, target=float(i % 5)) for i, s in enumerate(texts)]
    return [SampleBatch(samples[:4]), SampleBatch(samples[4:])]


def test_a_loss_of_one_s_own(cubic: str) -> None:
    model = MolfunStructureModel(
        "esm2_tiny", head="linear", task_config={"loss": cubic}, device="cpu"
    )
    history = model.fit(batches(), strategy="head_only", epochs=2)
    assert np.isfinite(history[-1]["train_loss"])


@pytest.mark.parametrize("name", RANKING)
def test_models_learn_to_rank(name: str) -> None:
    model = MolfunStructureModel(
        "esm2_tiny", head="linear", task_config={"loss": name}, device="cpu"
    )
    data = batches()
    history = model.fit(data, data, strategy=HeadOnlyFinetune(lr=2e-2), epochs=60)
    assert history[-1]["val/spearman"] > 0.7
