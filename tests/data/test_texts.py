"""Texts that are made when they are asked for are what a list of them would be."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from molfun.data.sequences import SequenceDataset
from molfun.data.texts import ArrowTexts, LazyTexts, are_distinct, listed

LETTERS = b"ACDEFGHIKLMNPQRSTVWY"


def of(*texts: str) -> ArrowTexts:
    """Return the texts as a part of a larger array, whose buffers hold more."""
    return ArrowTexts(pa.array(["before", *texts, "after"])[1:-1])


def test_texts_are_made_once() -> None:
    calls: list[int] = []
    texts = LazyTexts(2, lambda: calls.append(1) or ["MKV", "AC"])  # type: ignore[func-returns-value]
    assert len(texts) == 2
    assert not calls
    assert (texts[0], texts[-1], list(texts), texts[:1]) == ("MKV", "AC", ["MKV", "AC"], ["MKV"])
    assert texts == ["MKV", "AC"]
    assert repr(texts) == "['MKV', 'AC']"
    assert listed(texts) is listed(texts)
    assert len(calls) == 1
    assert pickle.loads(pickle.dumps(texts)) == ["MKV", "AC"]


@pytest.mark.parametrize(
    ("texts", "has_only"),
    [
        (("MKV", "AC"), True),
        (("MKV", ""), False),
        (("MKV", "AJ"), False),
        (("MK\u00e9",), False),
        (("MKV" * 200_000, "A" * 9 + "J"), False),  # in the last of several blocks
    ],
)
def test_letters_are_checked_together(texts: tuple[str, ...], has_only: bool) -> None:
    found = of(*texts)
    assert found.has_only(LETTERS) is has_only
    assert found.are_filled() is all(texts)
    assert found.first(1) == [texts[0]]
    listed(found)
    assert found.has_only(LETTERS) is False, "what is made is looked at by others"


@pytest.mark.parametrize(
    ("texts", "distinct"),
    [
        (("a", "b", "c"), True),
        (("a", "b", "a"), False),
        (("", "a", "aa"), True),
        (("", "a", ""), False),
        # equal in the first eight, sixteen bytes, and where a word ends
        (("abcdefgh", "abcdefgha", "abcdefghabcdefgh", "abcdefghabcdefghi"), True),
        (("abcdefghi", "b", "abcdefghi"), False),
        (("x" * 40, "x" * 41), True),  # too long for hashes
        (("x" * 40, "x" * 40), False),
    ],
)
def test_repeated_texts_are_found(texts: tuple[str, ...], distinct: bool) -> None:
    assert are_distinct(of(*texts)) is distinct
    assert are_distinct(list(texts)) is distinct


@pytest.mark.parametrize(
    ("texts", "one_case"), [(("1abc", "2x"), True), (("1ABC",), True), (("a", "B"), False)]
)
def test_ids_of_one_case_are_seen(texts: tuple[str, ...], one_case: bool) -> None:
    assert of(*texts).are_of_one_case() is one_case


def test_a_data_set_is_the_same_before_and_after(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("sequence,target,family\n" + "MKV,1,a\nAC,2,b\n" * 40)
    lazy, made = SequenceDataset.from_csv(path), SequenceDataset.from_csv(path)
    assert lazy.has_only(LETTERS)
    assert made.sequences()[1] == ("AC",)
    assert not made.has_only(LETTERS)
    for data in (pickle.loads(pickle.dumps(lazy)), lazy.subset([0, 1]), lazy):
        assert data[1].sequence == "AC"
        assert data.ids[:2] == ["seq_1", "seq_2"]
        assert data.digests()[:2] == made.digests()[:2]
    assert lazy.metadata.equals(made.metadata)
    assert lazy.metadata["family"].dtype == object
