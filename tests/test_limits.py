"""Caps of readers: checked before memory is taken, named, raised by the user."""

from __future__ import annotations

import bz2
import gzip
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from molfun._limits import Limit, read_bytes
from molfun.data.atoms_files import read_frames
from molfun.data.feature_files import read_features
from molfun.data.sequences import SequenceDataset
from molfun.data.series.dataset import TimeSeriesDataset
from molfun.errors import ConfigError, TableError, UnsafeFileError

LIMIT = Limit("TEST_BYTES", 1000)
RATIO = Limit("TEST_RATIO", 10, "unpacked bytes per packed byte")


@pytest.mark.parametrize(
    ("text", "value"),
    [("", 1000), (" ", 1000), ("5", 5), ("2_000", 2000), ("4k", 4096), ("3 MB", 3 * 2**20),
     ("1GiB", 2**30), ("0", 0)],
)  # fmt: skip
def test_the_variable_sets_the_cap(monkeypatch, text, value):
    monkeypatch.setenv("MOLFUN_MAX_TEST_BYTES", text)
    assert LIMIT.value == value


@pytest.mark.parametrize("text", ["many", "-1", "1.5G", "nan", "0x10", "٣", "9" * 99])
def test_a_variable_that_is_no_number_is_named(monkeypatch, text):
    monkeypatch.setenv("MOLFUN_MAX_TEST_BYTES", text)
    with pytest.raises(ConfigError, match=r"MOLFUN_MAX_TEST_BYTES is .*whole number of bytes"):
        LIMIT.check(1, "a.txt")


def test_the_error_names_file_sizes_and_variable():
    LIMIT.check(1000, "a.txt")
    with pytest.raises(UnsafeFileError) as caught:
        LIMIT.check(1_001, "a.txt", advice="Cut it.")
    assert str(caught.value) == (
        "Refused a.txt: 1,001 bytes are more than the 1,000 allowed. Cut it. If you trust the "
        "file and have the memory, raise the limit: MOLFUN_MAX_TEST_BYTES=1001."
    )


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "renamed"])
def test_a_file_is_read_up_to_the_cap(tmp_path, monkeypatch, name):
    path = tmp_path / name
    pack = bytes if name == "a.txt" else gzip.compress
    path.write_bytes(pack(b"x" * 1000))
    assert read_bytes(path, LIMIT) == b"x" * 1000
    path.write_bytes(pack(b"x" * 1001))
    with pytest.raises(UnsafeFileError, match=r"Refused .*MOLFUN_MAX_TEST_BYTES="):
        read_bytes(path, LIMIT)
    monkeypatch.setenv("MOLFUN_MAX_TEST_BYTES", "1001")
    assert len(read_bytes(path, LIMIT)) == 1001


def test_a_file_that_packs_too_well_is_refused(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(2**24)))
    assert len(read_bytes(path, Limit("TEST_MORE", 2**26), ratio=RATIO)) == 2**24
    path.write_bytes(gzip.compress(bytes(2**24 + 1)))
    with pytest.raises(UnsafeFileError, match=r"per packed byte are more .*MOLFUN_MAX_TEST_RATIO="):
        read_bytes(path, Limit("TEST_MORE", 2**26), ratio=RATIO)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain", "is not gzip or damaged"),
        (gzip.compress(b"x" * 99, mtime=0)[:-9], "is truncated gzip"),
        (b"\x1f\x8b\x08" + b"\xff" * 40, "is (not gzip or damaged|truncated gzip)"),
    ],
)
def test_damaged_gzip_has_the_kind_of_error_asked_for(tmp_path, content, reason):
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(TableError, match=reason):
        read_bytes(path, LIMIT, error=TableError)


def test_every_limit_is_in_the_docs():
    root = Path(__file__).parents[1]
    code = "".join(path.read_text(encoding="utf-8") for path in (root / "molfun").rglob("*.py"))
    names = set(re.findall(r'^\w+ = Limit\(\s*"(\w+)"', code, re.MULTILINE))
    table = (root / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert "STRUCTURE_BYTES" in names
    assert [name for name in sorted(names) if f"| `MOLFUN_MAX_{name}` |" not in table] == []


def _frames_bz2(path: Path) -> None:
    path.write_bytes(bz2.compress(b"1\n\nH 0 0 0\n"))


@pytest.mark.parametrize(
    ("name", "variable", "write", "read"),
    [
        (
            "r.npz", "REPRESENTATION_BYTES",
            lambda path: np.savez(path, ids=["seq_1"], embeddings=np.ones((1, 4))),
            lambda path: SequenceDataset.from_list([("MKV", 1.0)]).with_representations(path),
        ),
        ("f.npz", "FEATURE_BYTES", lambda path: np.savez(path, a=np.zeros(3)), read_features),
        (
            "f.pkl", "PICKLE_INSTRUCTIONS",
            lambda path: path.write_bytes(pickle.dumps({"a": np.zeros(3)})), read_features,
        ),
        (
            "s.npy", "SERIES_BYTES",
            lambda path: np.save(path, np.zeros((2, 3, 1))), TimeSeriesDataset.from_numpy,
        ),
        (
            "t.parquet", "TABLE_BYTES",
            lambda path: pd.DataFrame({"sequence": ["MKV"], "target": [1.0]}).to_parquet(path),
            SequenceDataset.from_csv,
        ),
        ("a.xyz.bz2", "ATOMS_BYTES", _frames_bz2, read_frames),
    ],
)  # fmt: skip
def test_a_variable_that_is_no_number_damages_no_file(
    tmp_path, monkeypatch, name, variable, write, read
):
    write(tmp_path / name)
    read(tmp_path / name)  # the file is whole
    monkeypatch.setenv(f"MOLFUN_MAX_{variable}", "abc")
    with pytest.raises(ConfigError, match=f"^MOLFUN_MAX_{variable} is 'abc'; give a whole number"):
        read(tmp_path / name)
