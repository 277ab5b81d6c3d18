"""Folds: every sample is tested once, and nothing that belongs together is separated."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from molfun.data.clusters import cluster_sequences
from molfun.data.folds import Fold
from molfun.data.grouping import same_value, similar, together
from molfun.data.splits import DataSplitter
from molfun.errors import ConfigError, DataError

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSG"


class Rows(SimpleNamespace):
    """A data set of chains and columns, for splits alone."""

    def __init__(self, chains: list[tuple[str, ...]], **columns: list[Any]) -> None:
        n = len(chains)
        super().__init__(
            chains=chains,
            ids=[f"s{i}" for i in range(n)],
            metadata=pd.DataFrame(columns, index=range(n)),
        )

    def __len__(self) -> int:
        return len(self.chains)

    def sequences(self) -> list[tuple[str, ...]]:
        return self.chains


def of_letters(letters: str, **columns: list[Any]) -> Rows:
    return Rows([(letter * 5,) for letter in letters], **columns)


def parts_of(fold: Fold) -> list[np.ndarray]:
    return [fold.train, fold.val, fold.test]


def assert_sound(folds: list[Fold], n: int, groups: list[list[int]]) -> None:
    """Each repeat tests every row once, and no group is in two parts of any fold."""
    for repeat in {fold.repeat for fold in folds}:
        tested = np.concatenate([fold.test for fold in folds if fold.repeat == repeat])
        assert sorted(tested.tolist()) == list(range(n))
    for fold in folds:
        rows = np.concatenate(parts_of(fold))
        assert sorted(rows.tolist()) == list(range(n))
        assert len(fold.train)
        assert len(fold.test)
        for group in groups:
            assert sum(bool(np.isin(group, part).any()) for part in parts_of(fold)) == 1


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("ACDEFGHIKLMN"), st.integers(0, 6)), min_size=6, max_size=40
    ),
    n_folds=st.integers(3, 5),
    repeats=st.integers(1, 3),
    val_frac=st.sampled_from([0, 0.1, 0.3]),
    seed=st.integers(0, 1000),
    stratify=st.booleans(),
)
def test_no_group_and_no_sequence_is_in_two_parts(rows, n_folds, repeats, val_frac, seed, stratify):
    data = of_letters("".join(row[0] for row in rows), family=[row[1] for row in rows])
    data.targets = [("a", "b", None)[row[1] % 3] for row in rows]
    options = {"repeats": repeats, "val_frac": val_frac, "seed": seed, "stratify": stratify}
    identical = together([[sequence] for sequence in data.chains])
    # each of the other folds has a group at least: with three, one trains and one validates
    assume(len(identical) >= n_folds)
    assert_sound(DataSplitter.k_fold(data, n_folds, **options), len(data), identical)
    families = same_value(data, "family")
    assume(len(families) >= n_folds)
    folds = DataSplitter.group_k_fold(data, "family", n_folds, **options)
    assert_sound(folds, len(data), families)
    assert len(folds) == n_folds * repeats


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 7), min_size=12, max_size=24),
    mutated=st.lists(st.integers(0, 49), min_size=24, max_size=24),
    seed=st.integers(0, 100),
    stratify=st.booleans(),
)
def test_no_cluster_is_in_two_parts(kinds, mutated, seed, stratify):
    rng = np.random.default_rng(0)
    ancestors = ["".join(rng.permutation(list(PROTEIN))) for _ in range(8)]
    chains = []
    for kind, place in zip(kinds, mutated, strict=False):
        text = list(ancestors[kind])
        text[place] = "W"
        chains.append(("".join(text),))
    clusters = cluster_sequences([chain for (chain,) in chains], 0.5)
    groups = together([[clusters.of[chain]] for (chain,) in chains])
    assume(len(groups) > 4)
    data = Rows(chains)
    data.targets = [float(place % 2) for place in mutated[: len(chains)]]
    assert groups == similar(data, 0.5)
    folds = DataSplitter.identity_k_fold(data, 3, threshold=0.5, seed=seed, stratify=stratify)
    assert_sound(folds, len(data), groups)


@settings(max_examples=30, deadline=None)
@given(
    letters=st.text("ACDEFGHIKLMNPQRS", min_size=12, max_size=40),
    n_folds=st.integers(3, 5),
    seed=st.integers(0, 1000),
)
def test_inner_folds_never_see_the_outer_test(letters, n_folds, seed):
    data = of_letters(letters)
    groups = together([[sequence] for sequence in data.chains])
    assume(len(groups) >= n_folds)
    # with as many inner folds as an unequal division leaves groups for
    for nested in DataSplitter.nested(data, n_folds, n_folds - 1, val_frac=0, seed=seed):
        rest = np.setdiff1d(np.arange(len(data)), nested.outer.test)
        tested = np.concatenate([fold.test for fold in nested.inner])
        assert sorted(tested.tolist()) == rest.tolist()
        for fold in nested.inner:
            assert sorted(np.concatenate(parts_of(fold)).tolist()) == rest.tolist()
            seen = [{data.chains[i] for i in part} for part in parts_of(fold)]
            assert not any(left & right for left, right in combinations(seen, 2))


def test_folds_are_balanced_and_repeats_differ():
    data = of_letters("AAAACCDEFGHIKLMN")
    folds = DataSplitter.k_fold(data, 4, repeats=2)
    assert [len(fold.test) for fold in folds] == [4] * 8
    assert [fold.name for fold in folds[3:5]] == ["repeat_1_fold_4", "repeat_2_fold_1"]
    tests = [frozenset(fold.test.tolist()) for fold in folds]
    assert len(set(tests)) > 4
    again = DataSplitter.k_fold(data, 4, repeats=2)
    assert [frozenset(fold.test.tolist()) for fold in again] == tests
    other = DataSplitter.k_fold(data, 4, repeats=2, seed=1)
    assert [frozenset(fold.test.tolist()) for fold in other] != tests


@pytest.mark.parametrize("whole", [False, True])
def test_stratified_folds_test_the_classes_in_their_shares(whole, caplog):
    rng = np.random.default_rng(0)
    chains = [("".join(rng.choice(list("ACDEFGHIKL"), 12)),) for _ in range(60)]
    data = Rows(chains, family=[i // 2 if whole else i for i in range(60)])
    # 6 of 60: by chance one fold of five has none in half of the seeds
    data.targets = ["rare" if i % 20 < 2 else "common" for i in range(60)]
    for seed in range(5):
        folds = DataSplitter.group_k_fold(data, "family", 3, seed=seed, stratify=True)
        assert_sound(folds, 60, same_value(data, "family"))
        rare = [sum(data.targets[i] == "rare" for i in fold.test) for fold in folds]
        assert rare == [2, 2, 2]
        assert [len(fold.test) for fold in folds] == [20] * 3
    assert not caplog.text
    folds = DataSplitter.k_fold(data, 10, stratify=True)
    assert "The rarest class has 6 samples for 10 folds: some folds test none" in caplog.text
    assert max(sum(data.targets[i] == "rare" for i in fold.test) for fold in folds) == 1


def test_stratified_folds_need_classes():
    data = of_letters("ACDEFG")
    data.targets = [0.5, 1.5, 2.0, 3.0, 4.0, 5.0]
    with pytest.raises(ConfigError, match="these labels are not one class per sample"):
        DataSplitter.k_fold(data, 2, stratify=True)
    # one sample of each class: nothing to stratify, and still folds
    data.targets = list("abcdef")
    assert_sound(DataSplitter.k_fold(data, 3, stratify=True), 6, [[i] for i in range(6)])


def test_nested_keeps_clusters_and_columns_together():
    data = of_letters("ACDEFGHIKLMN", family=list("aabbccddeeff"))
    for nested in DataSplitter.nested(data, 3, 2, column="family", val_frac=0):
        for fold in (nested.outer, *nested.inner):
            families = [set(data.metadata["family"].iloc[part]) for part in parts_of(fold)]
            assert not families[0] & families[2]
    with pytest.raises(ConfigError, match="by column or by threshold: leave one out"):
        DataSplitter.nested(data, column="family", threshold=0.5)


def test_a_column_names_published_folds(caplog):
    data = of_letters("ACDEFGHHIK", fold=list("0011221122"))
    folds = DataSplitter.column_folds(data, "fold", val_frac=0.3)
    assert [data.metadata["fold"].iloc[fold.test].unique().tolist() for fold in folds] == [
        ["0"], ["1"], ["2"],
    ]  # fmt: skip
    assert all(len(fold.val) == 2 for fold in folds)
    assert not caplog.text
    leaky = of_letters("AACD", fold=[0, 1, 0, 1])
    DataSplitter.column_folds(leaky, "fold", val_frac=0)
    assert "2 samples with the same sequence in two parts of the split" in caplog.text
    with pytest.raises(DataError, match="'fold' names one fold, '1'; at least 2 are needed"):
        DataSplitter.column_folds(of_letters("AC", fold=[1, 1]), "fold")
    with pytest.raises(DataError, match=r"'fold' names parts of the data \(test, train\), and no"):
        DataSplitter.column_folds(of_letters("AC", fold=["train", "Test"]), "fold")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_folds": 1}, "at least 2 folds, got 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"val_frac": 1}, "val_frac must be at least 0 and below 1, got 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_numbers_out_of_range(options, text):
    with pytest.raises(ConfigError, match=text):
        DataSplitter.k_fold(of_letters("ACDEFG"), **options)


def test_too_few_groups():
    with pytest.raises(DataError, match="Cannot divide 2 groups of distinct samples into 3 folds"):
        DataSplitter.k_fold(of_letters("AAAC"), 3)
    with pytest.raises(DataError, match="validation takes the last one"):
        DataSplitter.k_fold(of_letters("AAAC"), 2)
    assert len(DataSplitter.k_fold(of_letters("AAAC"), 2, val_frac=0)) == 2
