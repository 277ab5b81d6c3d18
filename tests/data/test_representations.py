"""Files of representations: fitted to the samples, or refused before a head trains on them."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.data import SequenceDataset
from molfun.errors import DataError, MolfunError, UnsafeFileError

DATA = SequenceDataset.from_list([("MKV", 1.0), ("AC", 2.0)])
GOOD = {"ids": np.array(["seq_1", "seq_2"]), "embeddings": np.ones((2, 4), np.float32)}


def refused(tmp_path, error=DataError, **arrays) -> str:
    path = tmp_path / "a.npz"
    np.savez(path, **{**GOOD, **arrays})
    with pytest.raises(error) as caught:
        DATA.with_representations(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


WRONG = {
    "embeddings of another number": ({"embeddings": np.ones((3, 4))}, "2 ids for 3 embeddings"),
    "one dimension": ({"embeddings": np.ones(2)}, "embeddings of shape (2,) and type float64"),
    "text": ({"embeddings": np.array([["a"], ["b"]])}, "embeddings of shape (2, 1) and type <U1"),
    "NaN": ({"embeddings": np.full((2, 4), np.nan)}, "8 embeddings are NaN or infinite"),
    "offsets short": ({"offsets": np.array([0, 2])}, "2 ids and offsets of shape (2,)"),
    "offsets beyond": ({"offsets": np.array([0, 1, 9])}, "bad offsets"),
    "offsets back": ({"offsets": np.array([0, 5, 2])}, "bad offsets"),
    "offsets as text": ({"offsets": np.array(["0", "1", "2"])}, "offsets of shape (3,)"),
    "sequences": ({"sequences": np.array(["x"])}, "2 ids and sequences of shape (1,)"),
    "one id twice": ({"ids": np.array(["seq_1"] * 2), "embeddings": np.eye(2)},
                     "two different representations of 1 sample:\n  seq_1\nEmbed again"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_arrays_that_do_not_fit_are_named(tmp_path, what):
    changes, expected = WRONG[what]
    assert expected in refused(tmp_path, **changes)


def test_another_npz_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", emb=np.ones((2, 3)), label=np.ones(2))
    with pytest.raises(DataError, match="lacks ids and embeddings, and holds emb, label"):
        DATA.with_representations(tmp_path / "a.npz")


def test_the_same_twice_is_no_clash(tmp_path):
    np.savez(tmp_path / "a.npz", ids=["seq_1", "seq_2", "seq_1"], embeddings=np.ones((3, 4)))
    assert DATA.with_representations(tmp_path / "a.npz")[0].features["mean"].tolist() == [1.0] * 4


def test_archives_that_inflate_are_refused_before_they_do(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{**GOOD, "embeddings": np.zeros((2, 2**22), np.float32)})
    with pytest.raises(UnsafeFileError, match="MOLFUN_MAX_REPRESENTATION_RATIO="):
        DATA.with_representations(path)
    monkeypatch.setenv("MOLFUN_MAX_REPRESENTATION_RATIO", "5000")
    assert DATA.with_representations(path)[0].features["mean"].shape == (2**22,)
    monkeypatch.setenv("MOLFUN_MAX_REPRESENTATION_BYTES", "1M")
    with pytest.raises(UnsafeFileError, match="MOLFUN_MAX_REPRESENTATION_BYTES="):
        DATA.with_representations(path)


def _packed() -> bytes:
    content = io.BytesIO()
    np.savez(content, **GOOD, offsets=np.array([0, 1, 2]))
    return content.getvalue()


PACKED = _packed()


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(0, 255)), max_size=6),
    length=st.integers(0, len(PACKED)),
    whole=st.booleans(),
)
def test_any_damage_gives_arrays_or_an_error_of_ours(write, flips, length, whole):
    raw = bytearray(PACKED)
    for place, value in flips:
        raw[place] = value
    with contextlib.suppress(MolfunError):
        DATA.with_representations(write("fuzz.npz", bytes(raw if whole else raw[:length])))
