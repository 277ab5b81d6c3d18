"""Splits: sizes, no leaks, and clear words where there are too few samples."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molfun.data import clusters
from molfun.data.affinity import AffinityDataset
from molfun.data.affinity_files import Parsed, Source
from molfun.data.clusters import cluster_by_alignment, cluster_sequences
from molfun.data.splits import DataSplitter
from molfun.data.tables import Table
from molfun.errors import ConfigError, DataError, RunError
from molfun.protein import Protein

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def dataset_of(chains: list[tuple[str, ...]], **columns: list) -> AffinityDataset:
    """A data set with these chains in memory."""
    ids = [f"s{i:03d}" for i in range(len(chains))]
    source = Source()
    for name, parts in zip(ids, chains, strict=True):
        protein = Protein.from_sequence("".join(parts), name=name)
        source.parsed[name] = Parsed(protein=protein, chains=parts)
    metadata = pd.DataFrame(
        {name: pd.Series(values, dtype=object if isinstance(values[0], str) else None)
         for name, values in columns.items()},
        index=range(len(ids)),
    )  # fmt: skip
    table = Table(
        path=Path("memory"),
        ids=ids,
        targets=np.arange(len(ids), dtype=np.float64),
        metadata=metadata,
        lines=list(range(len(ids))),
    )
    return AffinityDataset(table, source)


def random_sequence(rng: random.Random, length: int = 60) -> str:
    return "".join(rng.choice(AMINO_ACIDS) for _ in range(length))


def mutate(rng: random.Random, sequence: str, identity: float) -> str:
    """Keep exactly this fraction of the residues, at places spread at random."""
    n = len(sequence)
    kept = set(rng.sample(range(n), round(identity * n)))
    return "".join(
        c if i in kept else rng.choice(AMINO_ACIDS.replace(c, "")) for i, c in enumerate(sequence)
    )


def distinct(n: int, **columns: list) -> AffinityDataset:
    rng = random.Random(0)
    return dataset_of([(random_sequence(rng),) for _ in range(n)], **columns)


def assert_partition(dataset: AffinityDataset, parts) -> None:
    ids = [name for part in parts for name in part.ids]
    assert sorted(ids) == sorted(dataset.ids)
    for part in parts:
        assert part.ids == sorted(part.ids)


def assert_no_shared_sequences(parts) -> None:
    seen = [{tuple(sorted(chains)) for chains in part.sequences()} for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


# Random


@pytest.mark.parametrize(
    ("n", "val_frac", "test_frac", "sizes"),
    [
        (3, 0.1, 0.1, [1, 1, 1]),
        (4, 0.1, 0.1, [2, 1, 1]),
        (8, 0.25, 0, [6, 2, 0]),
        (10, 0.1, 0.1, [8, 1, 1]),
        (14, 0.1, 0.1, [12, 1, 1]),
        (15, 0.1, 0.1, [11, 2, 2]),
        (48, 0.1, 0.2, [33, 5, 10]),
        (5, 0, 0, [5, 0, 0]),
        (2, 0, 0.5, [1, 0, 1]),
        (1, 0, 0, [1, 0, 0]),
    ],
)
def test_random_sizes(n, val_frac, test_frac, sizes):
    dataset = distinct(n)
    parts = DataSplitter.random(dataset, val_frac=val_frac, test_frac=test_frac)
    assert [len(part) for part in parts] == sizes
    assert_partition(dataset, parts)


def test_random_depends_on_the_seed_alone():
    dataset = distinct(30)
    first, again, other = (
        [part.ids for part in DataSplitter.random(dataset, seed=seed)] for seed in (42, 42, 7)
    )
    assert first == again
    assert first != other


def test_random_keeps_identical_sequences_together():
    rng = random.Random(1)
    repeated = random_sequence(rng)
    chains = [(random_sequence(rng),) for _ in range(16)] + [(repeated,)] * 4
    for seed in range(20):
        assert_no_shared_sequences(DataSplitter.random(dataset_of(chains), seed=seed))


def test_order_of_chains_does_not_hide_a_repeat():
    rng = random.Random(1)
    a, b = random_sequence(rng), random_sequence(rng)
    chains = [(random_sequence(rng),) for _ in range(6)] + [(a, b), (b, a)]
    for seed in range(10):
        assert_no_shared_sequences(DataSplitter.random(dataset_of(chains), seed=seed))


def test_too_few_samples():
    with pytest.raises(DataError) as caught:
        DataSplitter.random(distinct(2))
    assert "Cannot split 2 samples into train, validation, test: at least 3 are needed" in str(
        caught.value
    )
    assert "val_frac=0 or test_frac=0" in str(caught.value)


def test_too_few_distinct_sequences():
    same = dataset_of([("ACDEFGHIKL",)] * 9)
    with pytest.raises(DataError, match="Cannot split 1 groups of distinct samples into"):
        DataSplitter.random(same)
    assert [len(part) for part in DataSplitter.random(same, val_frac=0, test_frac=0)] == [9, 0, 0]


def test_largest_group_goes_to_train():
    rng = random.Random(3)
    chains = [(random_sequence(rng),)] * 8 + [(random_sequence(rng),) for _ in range(4)]
    for seed in range(10):
        parts = DataSplitter.random(dataset_of(chains), val_frac=0.1, test_frac=0.1, seed=seed)
        assert [len(part) for part in parts] == [10, 1, 1]


@pytest.mark.parametrize(
    ("fractions", "reason"),
    [
        ({"val_frac": -0.1}, "val_frac must be at least 0 and below 1, got -0.1"),
        ({"test_frac": 1.0}, "test_frac must be at least 0 and below 1"),
        ({"val_frac": float("nan")}, "val_frac must be at least 0"),
        ({"val_frac": 0.5, "test_frac": 0.5}, "nothing would be left for training"),
    ],
)
def test_fractions(fractions, reason):
    with pytest.raises(ConfigError, match=reason):
        DataSplitter.random(distinct(10), **fractions)


@settings(max_examples=60, deadline=None)
@given(
    letters=st.lists(st.sampled_from("ACDEFGHIKL"), min_size=1, max_size=40),
    val_frac=st.sampled_from([0, 0.05, 0.1, 0.3]),
    test_frac=st.sampled_from([0, 0.1, 0.4]),
    seed=st.integers(0, 1000),
)
def test_random_splits_never_leak(letters, val_frac, test_frac, seed):
    dataset = dataset_of([(letter * 5,) for letter in letters])
    try:
        parts = DataSplitter.random(dataset, val_frac=val_frac, test_frac=test_frac, seed=seed)
    except DataError:
        assert len(set(letters)) < 3 or len(letters) < 3
        return
    assert_partition(dataset, parts)
    assert_no_shared_sequences(parts)
    assert len(parts[0]) > 0
    assert (len(parts[1]) > 0) == (val_frac > 0)
    assert (len(parts[2]) > 0) == (test_frac > 0)


# Temporal


def test_temporal_oldest_train_newest_test():
    years = [2019, 2001, 2015, 2020, 2003, 2018, 2007, 2009, 2011, 2013]
    train, val, test = DataSplitter.temporal(distinct(10, year=years), val_frac=0.2, test_frac=0.1)
    assert val.metadata["year"].tolist() == [2019, 2018]
    assert test.metadata["year"].tolist() == [2020]
    assert train.metadata["year"].max() <= val.metadata["year"].min()


def test_temporal_by_dates():
    days = ["2020-01-02", "2019-12-31", "2020-01-01", "2018-05-05"]
    parts = DataSplitter.temporal(distinct(4, released=days), year_column="released")
    assert [part.metadata["released"].tolist() for part in parts][1:] == [[days[2]], [days[0]]]


def test_temporal_moves_repeats_to_the_earlier_part(caplog):
    rng = random.Random(0)
    chains = [(random_sequence(rng),) for _ in range(10)]
    chains[9] = chains[0]
    dataset = dataset_of(chains, year=list(range(2000, 2010)))
    train, val, test = DataSplitter.temporal(dataset, val_frac=0.2, test_frac=0.2)
    assert "s009" in train.ids
    assert test.ids == ["s008"]
    assert_no_shared_sequences((train, val, test))
    assert "1 sample moved to an earlier part" in caplog.text


def test_temporal_part_of_repeats_only():
    rng = random.Random(0)
    chains = [(random_sequence(rng),) for _ in range(5)]
    chains[4] = chains[0]
    with pytest.raises(DataError, match="The test part would be empty: its 1 newest samples"):
        DataSplitter.temporal(dataset_of(chains, year=list(range(5))))


def test_temporal_needs_the_column():
    dataset = distinct(10, yaer=list(range(10)), note=["x"] * 10)
    with pytest.raises(DataError) as caught:
        DataSplitter.temporal(dataset)
    assert "no column 'year' to split by; columns that could serve: yaer" in str(caught.value)
    assert "Did you mean 'yaer'?" in str(caught.value)
    with pytest.raises(DataError, match="'note' holds neither numbers nor dates"):
        DataSplitter.temporal(dataset, year_column="note")
    blank = distinct(4, year=[2000.0, np.nan, 2002.0, np.nan])
    with pytest.raises(DataError, match=r"'year' is blank for 2 of 4 samples:\n  s001\n  s003"):
        DataSplitter.temporal(blank)


# Groups


def test_by_group():
    families = ["a", "b", "c", "d", "e"] * 4
    dataset = distinct(20, family=families)
    parts = DataSplitter.by_group(dataset, "family", val_frac=0.2, test_frac=0.2)
    assert [len(part) for part in parts] == [12, 4, 4]
    assert_partition(dataset, parts)
    found = [set(part.metadata["family"]) for part in parts]
    assert sum(map(len, found)) == 5


def test_by_group_joins_groups_with_a_common_sequence():
    rng = random.Random(0)
    chains = [(random_sequence(rng),) for _ in range(6)]
    chains[5] = chains[0]
    dataset = dataset_of(chains, family=["a", "a", "b", "b", "c", "c"])
    with pytest.raises(DataError, match="Cannot split 2 groups of 'family' into"):
        DataSplitter.by_group(dataset, "family")
    for seed in range(5):
        parts = DataSplitter.by_group(dataset, "family", val_frac=0, test_frac=0.3, seed=seed)
        assert_no_shared_sequences(parts)


def test_by_group_needs_the_column():
    with pytest.raises(DataError, match="no column 'fold' to split by; columns that could serve: "):
        DataSplitter.by_group(distinct(5, family=["a"] * 5), "fold")
    with pytest.raises(DataError, match="'family' is blank for 1 of 5 samples"):
        DataSplitter.by_group(distinct(5, family=["a", "", "b", "c", "d"]), "family")


# Identity


@pytest.fixture
def no_mmseqs(monkeypatch):
    monkeypatch.setattr(clusters.shutil, "which", lambda name: None)


def families(n: int, members: int, identity: float, length: int = 120) -> list[list[str]]:
    rng = random.Random(5)
    return [
        [mutate(rng, root, identity) for _ in range(members)]
        for root in [random_sequence(rng, length) for _ in range(n)]
    ]


def test_identity_keeps_families_together(no_mmseqs, caplog):
    caplog.set_level(logging.INFO)
    found = families(12, 3, 0.8)
    dataset = dataset_of([(s,) for family in found for s in family], family=np.repeat(range(12), 3))
    parts = DataSplitter.by_identity(dataset, threshold=0.4, val_frac=0.2, test_frac=0.2)
    assert [len(part) for part in parts] == [24, 6, 6]
    assert_partition(dataset, parts)
    assert sum(part.metadata["family"].nunique() for part in parts) == 12
    assert "mmseqs is not on the PATH; clustering 36 sequences by alignment" in caplog.text
    assert (
        "k-mers and alignment: 36 chains in 12 clusters at 40% identity; 12 groups" in caplog.text
    )


def test_complexes_that_share_one_similar_chain_stay_together(no_mmseqs):
    rng = random.Random(0)
    antigen = random_sequence(rng, 100)
    chains = [(random_sequence(rng, 100), mutate(rng, antigen, 0.9)) for _ in range(4)]
    chains += [(random_sequence(rng, 100), random_sequence(rng, 100)) for _ in range(4)]
    for seed in range(5):
        parts = DataSplitter.by_identity(dataset_of(chains), seed=seed)
        assert sum(any(name in part.ids for name in dataset_ids(4)) for part in parts) == 1


def dataset_ids(n: int) -> list[str]:
    return [f"s{i:03d}" for i in range(n)]


def test_identity_needs_several_clusters(no_mmseqs):
    dataset = dataset_of([(s,) for s in families(1, 9, 0.9)[0]])
    with pytest.raises(DataError, match="Cannot split 1 clusters at 40% identity into train"):
        DataSplitter.by_identity(dataset)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_threshold(threshold):
    with pytest.raises(ConfigError, match="threshold must be above 0 and at most 1"):
        DataSplitter.by_identity(distinct(5), threshold=threshold)


@pytest.mark.parametrize(
    ("threshold", "identity", "recall"), [(0.4, 0.42, 0.9), (0.4, 0.5, 0.98), (0.3, 0.4, 0.98)]
)
def test_recall_that_the_docstring_states(threshold, identity, recall):
    rng = random.Random(2)
    roots = [random_sequence(rng, 200) for _ in range(40)]
    pairs = [(root, mutate(rng, root, identity)) for root in roots]
    found = cluster_by_alignment([s for pair in pairs for s in pair], threshold)
    assert np.mean([found[a] == found[b] for a, b in pairs]) >= recall
    assert len({found[root] for root in roots}) == 40


def test_dissimilar_pairs_are_not_joined():
    rng = random.Random(4)
    root = random_sequence(rng, 200)
    other = mutate(rng, root, 0.6)
    assert len(set(cluster_by_alignment([root, other], 0.8).values())) == 2
    assert len(set(cluster_by_alignment([root, other], 0.5).values())) == 1


def test_fragment_is_joined_to_its_protein():
    rng = random.Random(4)
    root = random_sequence(rng, 200)
    found = cluster_by_alignment([root, mutate(rng, root[50:110], 0.9), root[150:162]], 0.4)
    assert len(set(found.values())) == 1


def test_short_peptides_do_not_join_everything():
    rng = random.Random(4)
    peptides = [random_sequence(rng, 9) for _ in range(20)]
    proteins = [random_sequence(rng, 200) for _ in range(20)]
    assert len(set(cluster_by_alignment(peptides + proteins, 0.4).values())) == 40


@pytest.mark.parametrize("odd", ["", "A", "XXXXXXXX", "UOBZJ" * 12, "é" * 50])
def test_odd_sequences(odd):
    protein = random_sequence(random.Random(4), 80)
    found = cluster_by_alignment([protein, odd], 0.4)
    assert found[protein] != found[odd]


def test_no_sequences():
    assert cluster_by_alignment([], 0.4) == {}


def test_many_pairs_are_told(monkeypatch, caplog):
    monkeypatch.setattr(clusters, "MANY_PAIRS", 0)
    cluster_by_alignment(["ACDEFGHIKL", "ACDEFGHIKM"], 0.4)
    assert (
        "1 pair may have to be aligned; with mmseqs2 on the PATH this takes seconds" in caplog.text
    )


def fake_mmseqs(folder: Path, body: str) -> str:
    path = folder / "mmseqs"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_mmseqs_is_used_where_it_is(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    # joins sequence 0 with 1 and leaves 2 alone; $3 is the prefix of the result
    fake_mmseqs(tmp_path, 'echo "$@" > "$(dirname "$0")/log"; '
                          "printf '0\\t0\\n0\\t1\\n2\\t2\\n' > \"$3_cluster.tsv\"")  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = cluster_sequences(["AAA", "CCC", "DDD", "AAA"], 0.35)
    assert found.method == "mmseqs2"
    assert found.of == {"AAA": 0, "CCC": 0, "DDD": 2}
    command = (tmp_path / "log").read_text()
    assert "--min-seq-id 0.3500 --seq-id-mode 1" in command
    assert "--cluster-mode 1" in command
    assert f"Clustering 3 sequences with {tmp_path / 'mmseqs'}" in caplog.text


def test_mmseqs_that_fails_is_an_error_not_another_method(tmp_path, monkeypatch):
    fake_mmseqs(tmp_path, "echo starting; echo no space left >&2; exit 3")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RunError, match=r"failed \(no space left\)\. Repair it, or take it off"):
        cluster_sequences(["AAA", "CCC"], 0.4)


@pytest.mark.skipif(shutil.which("mmseqs") is None, reason="mmseqs is not on the PATH")
def test_real_mmseqs_agrees_with_alignment():
    found = families(10, 3, 0.8)
    sequences = [s for family in found for s in family]
    by_mmseqs = cluster_sequences(sequences, 0.4).of
    by_alignment = cluster_by_alignment(sorted(sequences), 0.4)
    for family in found:
        assert len({by_mmseqs[s] for s in family}) == len({by_alignment[s] for s in family}) == 1
    assert len(set(by_mmseqs.values())) == len(set(by_alignment.values())) == 10


def test_real_complexes_respect_the_published_clusters(real_data, no_mmseqs):
    folder = real_data / "ppi_affinity"
    dataset = AffinityDataset.from_csv(folder / "affinity.csv", folder / "pdbs")
    parts = DataSplitter.by_identity(dataset, threshold=0.4)
    assert_partition(dataset, parts)
    assert_no_shared_sequences(parts)
    assert all(len(part) > 0 for part in parts)


def test_case_and_masked_residues_hide_nothing(no_mmseqs):
    from molfun.data.sequences import SequenceDataset

    members = families(6, 6, 0.95)
    texts = [text for family in members for text in family]
    upper = SequenceDataset.from_list(texts)
    expected = [part.ids for part in DataSplitter.by_identity(upper, threshold=0.4)]
    for change in (str.lower, lambda s: s[:60].lower() + s[60:]):
        other = SequenceDataset.from_list([change(s) for s in texts])
        found = [part.ids for part in DataSplitter.by_identity(other, threshold=0.4)]
        assert found == expected
    mixed = SequenceDataset.from_list([s.lower() if i % 2 else s for i, s in enumerate(texts)])
    parts = DataSplitter.by_identity(mixed, threshold=0.4)
    family = {text: i for i, family in enumerate(members) for text in family}
    kept = [{family[s.upper()] for (s,) in part.sequences()} for part in parts]
    assert not kept[0] & kept[1]
    assert not kept[0] & kept[2]
    assert not kept[1] & kept[2]
    twice = SequenceDataset.from_list([s for text in texts[:10] for s in (text, text.lower())])
    for part in DataSplitter.random(twice, val_frac=0.2, test_frac=0.2):
        assert all(sum(s.upper() == t.upper() for (t,) in part.sequences()) == 2
                   for (s,) in part.sequences())  # fmt: skip
    short = SequenceDataset.from_list(["MK<mask>VLAAGG", "mkkvlaagg", "PPPPPPPPPP", "wwwwwww"])
    assert sum(map(len, DataSplitter.by_identity(short, val_frac=0.25, test_frac=0.25))) == 4
