"""Batches by length: every sample once, as many batches in every epoch, costs within the bound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

import molfun
from molfun.data import (
    AffinityDataset,
    DataSplitter,
    LengthBatchSampler,
    SequenceDataset,
    affinity_files,
)
from molfun.data.batching import COST_SLACK, lengths_of
from molfun.errors import ConfigError
from molfun.registry import BACKBONES


def log_normal(n: int, seed: int = 0) -> np.ndarray:
    """Lengths of chains as in the PDB: half of them from 190 to 380 residues, some above 900."""
    draws = np.random.default_rng(seed).normal(5.6, 0.5, n)
    return np.clip(np.exp(draws), 30, 1200).astype(int)


def cost(lengths: Sequence[int], power: float) -> float:
    """What a padded batch of these lengths costs."""
    return len(lengths) * float(max(lengths)) ** power


def overhead(lengths: np.ndarray, batches: Iterable[list[int]], power: float) -> float:
    """Cost of padded batches over that of the samples one by one."""
    alone = (lengths.astype(float) ** power).sum()
    return sum(cost(lengths[b].tolist(), power) for b in batches) / float(alone)


@given(
    lengths=st.lists(st.integers(1, 40) | st.integers(1, 1500), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    power=st.sampled_from([1.0, 1.5, 2, 3.0]),
    bound=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 1500)),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=300, deadline=None)
def test_what_holds_for_all_lengths(
    lengths: list[int],
    batch_size: int,
    power: float,
    bound: tuple[int, int] | None,
    shuffle: bool,
    seed: int,
) -> None:
    max_cost = None if bound is None else bound[0] * float(bound[1]) ** power
    sampler = LengthBatchSampler(
        lengths=lengths,
        batch_size=batch_size,
        power=power,
        max_cost=max_cost,
        shuffle=shuffle,
        seed=seed,
    )
    for _ in range(4):
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert len(batches) == len(sampler)
        for batch in batches:
            assert 1 <= len(batch) <= batch_size
            within = max_cost is None or cost([lengths[i] for i in batch], power) <= max_cost
            assert within or len(batch) == 1
    if max_cost is None:
        assert len(sampler) == -(-len(lengths) // batch_size)


@given(lengths=st.lists(st.integers(1, 99), min_size=1, max_size=40), seed=st.integers(0, 2**60))
@settings(max_examples=50, deadline=None)
def test_the_order_follows_from_the_seed_of_the_generator_alone(
    lengths: list[int], seed: int
) -> None:
    one, other = (
        LengthBatchSampler(lengths=lengths, batch_size=3, max_cost=2 * 50**3, seed=s)
        for s in (0, 1)
    )
    list(one)
    before = torch.get_rng_state()
    for sampler in (one, other):
        sampler.generator.manual_seed(seed)
    assert list(one) == list(other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("power", [1.0, 3.0])
@pytest.mark.parametrize("n", [100, 500, 5000])
def test_padding_is_far_below_that_of_random_batches(n: int, power: float) -> None:
    lengths = log_normal(n)
    sampler = LengthBatchSampler(lengths=lengths, batch_size=4, power=power)
    grouped = np.mean([overhead(lengths, sampler, power) for _ in range(5)])
    order = torch.Generator().manual_seed(0)
    shuffled = DataLoader(range(n), batch_size=4, shuffle=True, collate_fn=list, generator=order)
    at_random = np.mean([overhead(lengths, shuffled, power) for _ in range(5)])
    assert at_random > {1.0: 1.5, 3.0: 2.5}[power]
    assert grouped - 1 < (at_random - 1) / 4
    # the batches of the sorted data set are the best there are
    fixed = LengthBatchSampler(lengths=lengths, batch_size=4, power=power, shuffle=False)
    assert grouped < 1.1 * overhead(lengths, fixed, power)


def test_only_costs_that_are_near_change_places() -> None:
    lengths = np.arange(100, 500)
    sampler = LengthBatchSampler(lengths=lengths, batch_size=4)
    largest_ratio = 1.05 * (1 + COST_SLACK) / (1 - COST_SLACK)  # 5 % between the ends of a batch
    for _ in range(5):
        for batch in sampler:
            costs = lengths[batch].astype(float) ** 3
            assert costs.max() / costs.min() < largest_ratio


def test_a_sample_meets_others_in_every_epoch() -> None:
    n, epochs = 500, 10
    sampler = LengthBatchSampler(lengths=log_normal(n), batch_size=4)
    met: list[set[int]] = [set() for _ in range(n)]
    for _ in range(epochs):
        for batch in sampler:
            for i in batch:
                met[i] |= set(batch) - {i}
    assert np.mean([len(others) for others in met]) > 20  # of 30 at most


def test_the_smaller_batch_is_not_always_of_the_longest() -> None:
    sampler = LengthBatchSampler(lengths=range(100, 109), batch_size=4)
    alone = {batch[0] for _ in range(50) for batch in sampler if len(batch) == 1}
    assert len(alone) > 3


def test_long_samples_come_in_smaller_batches() -> None:
    lengths = [600, 256, 250, 90, 500, 80, 70, 60, 50, 255]
    sampler = LengthBatchSampler(lengths=lengths, batch_size=4, max_cost=3 * 256**3, shuffle=False)
    assert list(sampler) == [[0], [4], [1, 9, 2], [3, 5, 6, 7], [8]]
    assert len(sampler) == 5


def test_without_shuffle_the_longest_come_first_and_stay() -> None:
    sampler = LengthBatchSampler(lengths=[5, 9, 7, 9, 1], batch_size=2, shuffle=False)
    assert list(sampler) == list(sampler) == [[1, 3], [2, 0], [4]]


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"lengths": []}, "There are no lengths, so there is nothing to make batches of."),
    (
        {"lengths": [5, 0, -1]},
        "lengths must be at least 1; 2 samples below that, the first at index 1 with 0.",
    ),
    (
        {"lengths": [5.0, 6.0]},
        "lengths must be whole numbers, one per sample, got float64(2,).",
    ),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0."),
    ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1, got 2.0."),
    ({"power": 0}, "power must be above 0 and at most 10, got 0."),
    ({"max_cost": 0}, "max_cost must be above 0, got 0. None sets no bound."),
    ({"max_cost": float("nan")}, "max_cost must be above 0, got nan. None sets no bound."),
    (
        {"lengths": [], "batch_size": -1},
        "There are no lengths, so there is nothing to make batches of. batch_size must be a whole "
        "number of at least 1, got -1.",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_wrong_arguments_are_told_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LengthBatchSampler(**{"lengths": [3, 4], "batch_size": 2, **arguments})
    assert str(caught.value) == message


# Lengths of data sets


def test_structures_are_read_once(complexes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    original = affinity_files.read_with_experiment
    monkeypatch.setattr(
        affinity_files, "read_with_experiment", lambda path: read.append(path) or original(path)
    )
    data = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs")
    assert lengths_of(Subset(data, [3])).tolist() == [6]
    assert len(read) == 1, "only those of the part"
    assert data.lengths.tolist() == [6, 6, 6, 6]
    data.check()
    assert len(read) == 4


def test_crops_count(complexes: Any) -> None:
    data = AffinityDataset.from_csv(complexes / "data.csv", complexes / "pdbs", max_length=4)
    assert lengths_of(data).tolist() == [4, 4, 4, 4] == [len(s.protein) for s in data]


def test_lengths_of_features(tmp_path: Any) -> None:
    (tmp_path / "data.csv").write_text("pdb_id,affinity\na,1\nb,2\n")
    np.savez(tmp_path / "a.npz", aatype=np.zeros(5, np.int64))
    np.savez(tmp_path / "b.npz", aatype=np.zeros(9, np.int64))
    for max_length, expected in ((None, [5, 9]), (6, [5, 6])):
        data = AffinityDataset.from_csv(
            tmp_path / "data.csv", features_dir=tmp_path, max_length=max_length
        )
        assert data.lengths.tolist() == expected


def test_parts_of_data_sets() -> None:
    data = SequenceDataset.from_list(["MK" * n for n in range(1, 21)], max_length=30)
    train, _, _ = DataSplitter.random(data)
    assert lengths_of(train).tolist() == [min(len(s), 30) for (s,) in train.sequences()]
    nested = Subset(Subset(data, range(10)), [9, 0])
    assert lengths_of(nested).tolist() == [20, 2]
    sampler = LengthBatchSampler.from_dataset(nested, batch_size=2)
    assert [sorted(batch) for batch in sampler] == [[0, 1]]


def test_a_data_set_without_lengths_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        LengthBatchSampler.from_dataset([1, 2], batch_size=2)
    assert str(caught.value) == (
        "list does not tell the lengths of its samples. Pass them: "
        "LengthBatchSampler(lengths=[...], ...)."
    )


def test_it_goes_into_a_loader() -> None:
    data = AffinityDataset.synthetic(5, length=7)
    loader = DataLoader(
        data,
        batch_sampler=molfun.LengthBatchSampler.from_dataset(data, batch_size=2),
        collate_fn=data.collate_fn,
    )
    assert len(loader) == 3
    assert sorted(name for batch in loader for name in batch.ids) == data.ids


def test_backbones_name_their_power() -> None:
    assert BACKBONES["openfold"].length_power == 3
    assert BACKBONES["esm2"].length_power == 1
