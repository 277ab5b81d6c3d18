"""Tables of several chains, and splits that keep partners apart."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from molfun import MolfunStructureModel
from molfun.data import DataSplitter, PairSplitter, SequenceDataset, SequencePairDataset
from molfun.data.pair_splits import pair_classes
from molfun.errors import ConfigError, DataError, TableError
from molfun.models.cross_validation import cross_validate
from molfun.sample import Sample

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
TABLE = """name,heavy,light,kd,assay
a,MKVLA,ACDEF,8.1,spr
b,MKVLA,GGSGG,7.5,itc
c,WYWYF,ACDEF,,spr
"""


def test_chains_of_two_columns(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(TABLE)
    data = SequencePairDataset.from_csv(
        tmp_path / "pairs.csv",
        sequence_columns=["heavy", "light"],
        target_column="kd",
        id_column="name",
        require_target="column",
    )
    assert data.ids == ["a", "b", "c"]
    assert data.sequences()[0] == ("MKVLA", "ACDEF")
    assert data[1].chains == ("MKVLA", "GGSGG")
    assert data[2].target is None
    assert data[1].metadata == {"assay": "itc"}
    assert data.subset([2, 0]).ids == ["c", "a"]
    assert data.input_settings["sequence_column"] == ["heavy", "light"]


def test_one_column_of_several_chains_is_the_same_samples(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("a,b,target\nMKV,ACD,1\nMKV,GGS,2\n")
    (tmp_path / "one.csv").write_text("sequence,target\nMKV:ACD,1\nMKV:GGS,2\n")
    two = SequenceDataset.from_csv(tmp_path / "two.csv", sequence_column="a,b")
    one = SequencePairDataset.from_csv(tmp_path / "one.csv", sequence_columns="sequence")
    assert [s.content_key() for s in one] == [s.content_key() for s in two]
    assert one.sequences() == two.sequences()


def test_each_chain_is_cropped_by_itself() -> None:
    data = SequencePairDataset.from_list([("MKVLA:ACD", 1.0), ("MK:AC", 2.0)], max_length=4)
    assert data.lengths.tolist() == [7, 4]
    assert [chain.max_length for chain in data[0].by_chain()] == [4, 4]


def test_chains_with_letters_of_their_structures() -> None:
    sample = Sample(id="x", sequence="MKV:AC", structure_letters="ddv:pp")
    assert [c.structure_letters for c in sample.by_chain()] == ["ddv", "pp"]
    with pytest.raises(DataError, match="x has 2 chains, and letters of the structures of 1"):
        Sample(id="x", sequence="MKV:AC", structure_letters="ddvpp").by_chain()


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a,b,target\nMKV,,1\n", ["a", "b"], "line 2, column b: is blank"),
        ("a,b,target\nMKV,A:C,1\n", ["a", "b"], "column b: holds ':'; each column has one chain"),
        ("a,target\nMKV,1\n", ["a", "b"], "'b'"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, columns: list[str], message: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(TableError, match=message):
        SequencePairDataset.from_csv(tmp_path / "pairs.csv", sequence_columns=columns)


def test_what_makes_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a,target\nMKV:AC,1\nMKV,2\n")
    with pytest.raises(DataError, match=r"1 sample of one chain alone:\n +seq_2 \(.*line 3\)"):
        SequencePairDataset.from_csv(tmp_path / "pairs.csv", sequence_columns="a")
    with pytest.raises(ConfigError, match=r"must name different columns, got \[\]"):
        SequenceDataset.from_csv(tmp_path / "pairs.csv", sequence_column=[])
    with pytest.raises(ConfigError, match="must name different columns, got 'a,a'"):
        SequenceDataset.from_csv(tmp_path / "pairs.csv", sequence_column="a,a")
    (tmp_path / "pairs.csv").write_text("a,b,target\nMKV,AC,1 2 3\n")
    with pytest.raises(ConfigError, match="level='residue' takes one sequence per row"):
        SequenceDataset.from_csv(tmp_path / "pairs.csv", sequence_column="a,b", level="residue")


# Splits


def network(seed: int, n_proteins: int = 20, n: int = 120) -> SequencePairDataset:
    """Pairs of proteins of several families, each with a few changes."""
    rng = random.Random(seed)
    families = ["".join(rng.choices(LETTERS, k=60)) for _ in range(n_proteins)]

    def member() -> str:
        letters = list(rng.choice(families))
        for place in rng.sample(range(60), 6):
            letters[place] = rng.choice(LETTERS)
        return "".join(letters)

    return SequencePairDataset.from_list([((member(), member()), float(i)) for i in range(n)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["c1", "c2", "c3"])
def test_held_out_pairs_are_of_the_named_class(name: str, seed: int) -> None:
    data = network(seed)
    parts = getattr(PairSplitter, name)(data, val_frac=0.1, test_frac=0.15, seed=seed)
    train, val, test = parts
    assert min(map(len, parts)) > 0
    for held_out in (val, test):
        assert set(pair_classes(train, held_out)) == {name.upper()}
    if name != "c1":  # validation chooses the epoch: it must not know the test proteins better
        assert "C1" not in pair_classes(val, test)
    ids = [i for part in parts for i in part.ids]
    assert len(ids) == len(set(ids)) <= len(data)
    if name == "c1":
        assert len(ids) == len(data)
        assert (len(val), len(test)) == (12, 18)


def test_a_split_names_what_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    data = network(0)
    parts = PairSplitter.c3(data, seed=1)
    left_out = len(data) - sum(map(len, parts))
    assert left_out > 0
    assert f"The split c3 leaves out {left_out} of 120 samples" in caplog.text
    again = PairSplitter.c3(data, seed=1)
    assert [p.ids for p in again] == [p.ids for p in parts]


def test_families_that_share_no_protein_are_kept_whole(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(0)
    pairs = [["".join(rng.choices(LETTERS, k=50)) for _ in range(2)] for _ in range(20)]
    data = SequencePairDataset.from_list([":".join(p) for p in pairs])
    parts = PairSplitter.c3(data)
    assert [len(part) for part in parts] == [16, 2, 2]
    assert "leaves out" not in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_new_proteins_are_as_many_as_asked_for_and_few_pairs_are_lost(seed: int) -> None:
    rng = random.Random(seed)
    proteins = ["".join(rng.choices(LETTERS, k=60)) for _ in range(100)]
    drawn = [f"{rng.choice(proteins)}:{rng.choice(proteins)}" for _ in range(100)]
    train, val, test = PairSplitter.c3(SequencePairDataset.from_list(drawn), seed=seed)
    kept = len(train) + len(val) + len(test)
    assert kept > 70
    assert 0.05 * kept <= len(val) <= 0.15 * kept
    assert 0.05 * kept <= len(test) <= 0.15 * kept


def test_items_that_are_no_pairs() -> None:
    for item, message in (
        (("MKV:ACD",), r"A sample is \(chains, label\), or the chains alone; got"),
        (None, "got None"),
        ((("MKV", None), 1.0), r"Chains are a list of sequences, one each; got \('MKV', None\)"),
        ((("MKV:A", "ACD"), 1.0), "one each; got"),
        (("MKV", "binder"), "1 sample of one chain alone"),
        ("MKV:", "1 sample with an empty chain"),
    ):
        with pytest.raises(DataError, match=message):
            SequencePairDataset.from_list([item])


# Folds


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=12, max_size=60),
    st.sampled_from(["C1", "C2", "C3"]),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.15]),
    st.integers(0, 99),
)
def test_folds_test_pairs_of_their_class(
    drawn: list[tuple[int, int]], name: str, n_folds: int, val_frac: float, seed: int
) -> None:
    data = SequencePairDataset.from_list([f"{APART[a]}:{APART[b]}" for a, b in drawn])
    asked = {"val_frac": val_frac, "seed": seed}
    try:
        found = PairSplitter.folds(data, name, n_folds, **asked)  # type: ignore[arg-type]
    except DataError:  # too few pairs of the class
        assume(False)
    tested = np.concatenate([fold.test for fold in found])
    assert len(np.unique(tested)) == len(tested)  # at most once
    for fold in found:
        parts = [data.subset(rows) for rows in (fold.train, fold.val, fold.test)]
        rows = np.concatenate([fold.train, fold.val, fold.test])
        assert len(np.unique(rows)) == len(rows)
        assert all(np.array_equal(np.sort(one), one) for one in (fold.train, fold.val, fold.test))
        assert set(pair_classes(parts[0], parts[2])) == {name}
        if val_frac:
            assert set(pair_classes(parts[0], parts[1])) == {name}
        known = {a for row in fold.train for a in drawn[row]}
        new = [sum(a not in known for a in drawn[row]) for row in fold.test]
        if name == "C3":
            assert set(new) == {2}
        if name != "C1":  # neither does the choice of the epoch know a new protein
            seen = {a for row in (*fold.train, *fold.val) for a in drawn[row]}
            assert all(not set(drawn[row]) <= seen for row in fold.test)
    again = PairSplitter.folds(data, name.lower(), n_folds, **asked)  # type: ignore[arg-type]
    assert all(np.array_equal(a.test, b.test) for a, b in zip(found, again, strict=True))


APART = ["".join(random.Random(i).choices(LETTERS, k=40)) for i in range(10)]


@pytest.mark.parametrize("name", ["C1", "C2", "C3"])
def test_folds_know_similar_proteins_for_one(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data = network(2)
    found = PairSplitter.folds(data, name, 4)  # type: ignore[arg-type]
    for fold in found:
        assert set(pair_classes(data.subset(fold.train), data.subset(fold.test))) == {name}
    n = sum(len(fold.test) for fold in found)
    assert n > (33 if name == "C3" else 90)
    lost = f"{120 - n} of 120 samples are tested in no fold of {name}: "
    assert (lost in caplog.text) == (n < 120)


def test_families_of_pairs_are_all_tested(caplog: pytest.LogCaptureFixture) -> None:
    """Where whole families fit into the folds, none of C3 is lost."""
    drawn = [(a, b) for a in range(0, 9, 2) for b in (a, a + 1) for _ in range(3)]
    data = SequencePairDataset.from_list([f"{APART[a]}:{APART[b]}" for a, b in drawn])
    found = PairSplitter.folds(data, "C3", 5)
    assert sorted(len(fold.test) for fold in found) == [6] * 5
    assert "tested in no fold" not in caplog.text
    # validation cuts a family in two
    assert [len(fold.train) + len(fold.val) for fold in found] == [21] * 5
    assert "A fold of C3 uses 27 of 30 samples; the others" in caplog.text


def test_what_cannot_be_folds_of_pairs() -> None:
    data = network(0)
    with pytest.raises(ConfigError, match=r"Unknown class of pairs 'C4'; known: C1, C2, C3"):
        PairSplitter.folds(data, "c4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 2 folds, got 1"):
        PairSplitter.folds(data, "C2", 1)
    with pytest.raises(DataError, match="Cannot divide 20 clusters of similar proteins into 30"):
        PairSplitter.folds(data, "C3", 30)
    with pytest.raises(DataError, match="samples of several chains, and these have one each"):
        PairSplitter.folds(SequenceDataset.from_list(["MKV", "ACD", "GGS"]), "C3")
    one = SequencePairDataset.from_list([f"{APART[0]}:{APART[i]}" for i in range(1, 5)])
    with pytest.raises(DataError, match=r"would train on no sample. The folds are of the class C3"):
        PairSplitter.folds(one, "C3", 2, val_frac=0)


def test_baselines_of_folds_learn_from_pairs_that_none_tests() -> None:
    data = network(3, n=60)
    found = PairSplitter.folds(data, "C3", 3)
    result = cross_validate(
        lambda: MolfunStructureModel("esm2_tiny", head="pair_mlp", device="cpu"),
        data, found, strategy="head_only", epochs=1,
    )  # fmt: skip
    n = len(result.tested)
    assert n == sum(len(fold.test) for fold in found) < 60
    assert result.out_of_fold()["ids"] == [data.ids[i] for i in result.tested]
    judged = result.judge(data)[""]
    assert f" on {n} out-of-fold rows of 3 folds" in judged.verdict
    # the mean of all that trained, those that no fold tests among them
    targets = np.asarray(data.targets)
    means = {i: targets[fold.train].mean() for fold in found for i in fold.test.tolist()}
    error = np.array([means[i] - targets[i] for i in result.tested])
    (part,) = judged.parts.values()
    rmse = part.baselines["mean"].metrics["rmse"].value
    assert rmse == pytest.approx(float(np.sqrt((error**2).mean())))
    with pytest.raises(ConfigError, match="do not test each of 60 samples once"):
        cross_validate(
            lambda: MolfunStructureModel("esm2_tiny", head="pair_mlp", device="cpu"),
            data, [found[0], replace(found[0], name="again")], epochs=1,
        )  # fmt: skip


def test_classes_of_a_random_split_are_counted() -> None:
    train, _, test = DataSplitter.random(network(1), test_frac=0.2)
    assert set(Counter(pair_classes(train, test))) == {"C1"}


def test_what_cannot_be_split() -> None:
    with pytest.raises(DataError, match="samples of several chains, and these have one each"):
        PairSplitter.c2(SequenceDataset.from_list(["MKV", "ACD", "GGS"]))
    alone = SequencePairDataset.from_list(["MKVLAAGICWMKVLAAGICW:DDEEPPNNHHDDEEPPNNHH"] * 4)
    for name in ("c1", "c2", "c3"):
        with pytest.raises(DataError, match=r"The \w+ part would be empty: too few samples"):
            getattr(PairSplitter, name)(alone)
    with pytest.raises(ConfigError, match="threshold must be above 0"):
        PairSplitter.c1(alone, threshold=0)
