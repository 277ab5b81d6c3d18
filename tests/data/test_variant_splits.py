"""Splits of variants keep their positions, numbers of mutations and labels apart."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molfun.data import SequenceDataset, VariantSplitter
from molfun.data.variant_tables import mutated_places, read_wild_type
from molfun.errors import ConfigError, DataError, TableError
from molfun.protein import AMINO_ACIDS

WILD_TYPE = "MKTAYIAKQRQISFVK"


def library(n: int, *, most: int, seed: int, with_wild_type: bool = True) -> SequenceDataset:
    """Random variants with one to `most` mutations, and labels."""
    rng = np.random.default_rng(seed)
    sequences = [WILD_TYPE] if with_wild_type else []
    while len(sequences) < n:
        letters = list(WILD_TYPE)
        for place in rng.choice(len(letters), rng.integers(1, most + 1), replace=False):
            letters[place] = rng.choice([a for a in AMINO_ACIDS if a != letters[place]])
        sequences.append("".join(letters))
    return SequenceDataset.from_list([(s, float(rng.normal())) for s in sequences])


def sites(dataset: Any) -> set[int]:
    return set().union(*mutated_places(dataset, WILD_TYPE)) if len(dataset) else set()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["position", "contiguous", "modulo"]),
    st.integers(30, 80),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_later_parts_have_positions_that_no_earlier_part_has(
    scheme: str, n: int, most: int, seed: int
) -> None:
    data = library(n, most=most, seed=seed)
    about = {} if scheme == "modulo" else {"seed": seed}
    split: Any = getattr(VariantSplitter, scheme)
    train, val, test = split(data, wild_type=WILD_TYPE, val_frac=0.2, test_frac=0.2, **about)
    assert sorted([*train.ids, *val.ids, *test.ids]) == sorted(data.ids)
    assert min(len(train), len(val), len(test)) > 0
    assert WILD_TYPE in [s for (s,) in train.sequences()]
    for mutated in mutated_places(val, WILD_TYPE):
        assert mutated - sites(train)
    for mutated in mutated_places(test, WILD_TYPE):
        assert mutated - sites(train) - sites(val)
    if most == 1:
        assert not sites(train) & sites(test)
        assert not sites(val) & sites(test)
    again = split(data, wild_type=WILD_TYPE, val_frac=0.2, test_frac=0.2, **about)
    assert [part.ids for part in again] == [train.ids, val.ids, test.ids]


def test_stretches_are_stretches() -> None:
    data = library(300, most=1, seed=1)
    for seed in range(8):
        _, val, test = VariantSplitter.contiguous(data, wild_type=WILD_TYPE, seed=seed)
        for part in (val, test):
            places = sorted(sites(part))
            gaps = sum(b - a > 1 for a, b in itertools.pairwise(places))
            # around the end of the sequence a stretch goes on at its beginning
            assert gaps <= 1


def test_modulo_counts_mutated_positions() -> None:
    rows = [(WILD_TYPE[:i] + "W" + WILD_TYPE[i + 1 :], 1.0) for i in (0, 2, 5, 6, 9, 12, 13)]
    data = SequenceDataset.from_list(rows)
    train, val, test = VariantSplitter.modulo(
        data, wild_type=WILD_TYPE, val_frac=1 / 3, test_frac=1 / 3
    )
    assert (sites(test), sites(val), sites(train)) == ({5, 12}, {2, 9}, {0, 6, 13})


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 60), st.integers(1, 2), st.integers(0, 1000))
def test_few_mutations_train_and_more_test(n: int, train_mutations: int, seed: int) -> None:
    data = library(n, most=4, seed=seed)
    parts = VariantSplitter.n_mutations(
        data, wild_type=WILD_TYPE, train_mutations=train_mutations, seed=seed
    )
    counts = [[len(m) for m in mutated_places(part, WILD_TYPE)] for part in parts]
    assert max(counts[0] + counts[1]) <= train_mutations < min(counts[2])
    assert sum(map(len, counts)) == n


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 60), st.integers(0, 1000))
def test_low_labels_train_and_high_ones_test(n: int, seed: int) -> None:
    data = library(n, most=2, seed=seed)
    own = float(data.targets[0])
    if not (data.targets < own).sum() > 5:
        own = 0.0
    train, val, test = VariantSplitter.low_to_high(data, threshold=own, seed=seed)
    assert max([*train.targets, *val.targets]) < own <= min(test.targets)
    assert len(train) + len(val) + len(test) == n


def test_the_threshold_is_the_wild_type_s_label() -> None:
    rows = [
        (WILD_TYPE, 1.0),
        (WILD_TYPE, 3.0),
        *((f"W{WILD_TYPE[1:]}", float(i)) for i in range(5)),
    ]
    data = SequenceDataset.from_list(rows)
    _, _, test = VariantSplitter.low_to_high(data, wild_type=WILD_TYPE)
    assert sorted(test.targets) == [2.0, 3.0, 3.0, 4.0]
    with pytest.raises(DataError, match="No sample is the wild type with a label"):
        VariantSplitter.low_to_high(data, wild_type="A" * 16)


@pytest.mark.parametrize("scheme", ["position", "contiguous", "modulo"])
def test_folds_test_every_variant_once_and_share_no_position(scheme: str) -> None:
    data = library(120, most=1, seed=3)
    folds = VariantSplitter.folds(data, scheme, 4, wild_type=WILD_TYPE, seed=1)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(120))
    for fold in folds:
        parts = [sites(data.subset(part)) for part in (fold.train, fold.val, fold.test)]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert not parts[0] & parts[1]
        assert sorted([*fold.train, *fold.val, *fold.test]) == list(range(120))
        assert len(fold.val)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda d: VariantSplitter.position(d), "This split compares sequences with the wild type"),
        (
            lambda d: VariantSplitter.position(d, wild_type="MKT"),
            "40 sequences of another length than the wild type's 3 residues",
        ),
        (
            lambda d: VariantSplitter.folds(d, "position", 4, wild_type=WILD_TYPE),
            "are mutated in positions of several folds",
        ),
        (
            lambda d: VariantSplitter.folds(d, "position", 40, wild_type=WILD_TYPE),
            "16 mutated positions for 40 folds: too few.",
        ),
        (
            lambda d: VariantSplitter.n_mutations(d, wild_type=WILD_TYPE, train_mutations=9),
            "All 40 samples are variants with at most 9 mutations (3 at most): nothing is left",
        ),
        (
            lambda d: VariantSplitter.low_to_high(d, threshold=-99.0),
            "There are no labels below -99: nothing is left to train on.",
        ),
        (
            lambda d: VariantSplitter.position(d.subset([0]), wild_type=WILD_TYPE),
            "Cannot split 1 samples",
        ),
    ],
)
def test_what_cannot_be_split(call: Any, text: str) -> None:
    with pytest.raises(DataError) as caught:
        call(library(40, most=3, seed=0))
    assert text in str(caught.value)


def test_an_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match="Unknown scheme 'postion'"):
        VariantSplitter.folds(library(40, most=1, seed=0), "postion", wild_type=WILD_TYPE)


# --- tables of mutations -------------------------------------------------------------------------


def test_a_table_of_mutations(tmp_path: Path) -> None:
    (tmp_path / "wt.fasta").write_text(">mine\nMKTA\nYIAK\n")
    (tmp_path / "v.csv").write_text(
        "mutant,fitness,assay\nM24A,0.5,x\np.Lys25Glu:T26G,1.5,y\nWT,1.0,x\n"
    )
    data = SequenceDataset.from_variants(
        tmp_path / "v.csv", str(tmp_path / "wt.fasta"), target_column="fitness", offset=23
    )
    assert data.ids == ["M24A", "K25E:T26G", "WT"]
    assert [s for (s,) in data.sequences()] == ["AKTAYIAK", "MEGAYIAK", "MKTAYIAK"]
    assert data.targets.tolist() == [0.5, 1.5, 1.0]
    assert data.metadata["assay"].tolist() == ["x", "y", "x"]
    assert data.metadata["mutant"].tolist() == ["M24A", "p.Lys25Glu:T26G", "WT"]
    assert data.wild_type == "MKTAYIAK"
    assert mutated_places(data) == [{0}, {1, 2}, set()]
    assert mutated_places(data.subset([1])) == [{1, 2}]


def test_replicates_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("mutant,target\nM1A,0.5\nM1A,0.7\n")
    data = SequenceDataset.from_variants(tmp_path / "v.csv", "MKTA")
    assert data.ids == ["seq_1", "seq_2"]


def test_bad_rows_are_all_listed(tmp_path: Path) -> None:
    """Variants, labels and ids in one error, not in three runs."""
    (tmp_path / "v.csv").write_text(
        "name,mutant,target\na,M1A,0.5\nb,C1A,1\nc,K2del,x\na,,3\na/b,K2A,4\n,K2R,y\n"
    )
    with pytest.raises(TableError) as caught:
        SequenceDataset.from_variants(tmp_path / "v.csv", "MKTA", id_column="name")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("v.csv has 8 bad rows:")
    for part in (
        "line 3, column mutant: 'C1A': residue 1 of the wild type is M, not C.",
        "line 4, column mutant: 'K2del': it is",
        "line 5, column mutant: the variant is blank; write WT for the wild type.",
        "line 4, column target: 'x' is not a number",
        "line 7, column target: 'y' is not a number",
        "line 5, column name: 'a' stands on line 2 already",
        "line 6, column name: 'a/b' is a path, not an id; write the name alone",
        "line 7, column name: '' is blank; fill it in or remove the row",
    ):
        assert sum(line.startswith(f"  {part}") for line in lines) == 1, part
    with pytest.raises(TableError, match="mutations"):
        SequenceDataset.from_variants(tmp_path / "v.csv", "MKTA", mutant_column="mutations")


def test_a_wrong_offset_is_one_line(tmp_path: Path) -> None:
    rows = "".join(f"{'MKTAY'[i]}{i + 11}G,{i}\n" for i in range(5)) + "Y15del,1\n"
    (tmp_path / "v.csv").write_text("mutant,target\n" + rows)
    with pytest.raises(TableError) as caught:
        SequenceDataset.from_variants(tmp_path / "v.csv", "MKTAY")
    first, single, many = str(caught.value).splitlines()
    assert first.endswith("has 6 bad rows:")
    assert single.startswith("  line 7, column mutant: 'Y15del': it is")
    assert many.startswith("  5 of 6 rows, as line 2, column mutant: 'M11G': there is no residue")
    assert many.endswith("(then line 3 'K12G', line 4 'T13G')")
    assert len(caught.value.problems) == 6


def test_a_wild_type_is_one_record(tmp_path: Path) -> None:
    (tmp_path / "two.fasta").write_text(">a\nMK\n>b\nMV\n")
    with pytest.raises(DataError, match=r"has 2 records \(a, b\): give a file with the wild type"):
        read_wild_type(str(tmp_path / "two.fasta"))
    with pytest.raises(DataError, match=r"No such file: none\.fasta"):
        read_wild_type("none.fasta")


@pytest.mark.parametrize("seed", range(4))
def test_the_position_with_most_variants_trains_where_there_are_few(seed: int) -> None:
    wild = "MKV"
    texts = [wild[:i] + a + wild[i + 1 :] for i, n in enumerate((3, 18, 6))
             for a in "ACDEFGHILNPQRSTWYM"[:n]]  # fmt: skip
    data = SequenceDataset.from_list([t for t in texts if t != wild])
    train, val, test = VariantSplitter.position(data, wild_type=wild, seed=seed)
    assert len(train) >= 17
    assert {len(val), len(test)} == {3, 6}
