"""Damaged and hostile files of time series: read, or refused by a MolfunError that names them."""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.data import TimeSeriesDataset, open_timeseries
from molfun.errors import DataError, MolfunError, UnsafeFileError

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {"id": np.repeat(["a", "b", "c"], 4), "time": np.tile([0, 1, 2, 4.5], 3),
     "hr": RNG.normal(size=12), "bp": RNG.integers(0, 9, 12), "target": np.repeat([1, 2, 3], 4)}
)  # fmt: skip
WIDE = "id,hr_0,hr_1,hr_2,bp_0,bp_1,bp_2,target\na,1,,3,4,5,6,0.5\nb,1,2,?,3,3,,1.5\n"
TS = "@problemName demo\n@univariate false\n@classLabel true up down\n@data\n1,?,3:4,5,6:up\n"
STAMPED = "@timestamps true\n@targetLabel true\n@data\n(0,1),(1,2):(0,3),(2.5,?):0.5\n(0,7):(1,2):?"


def packed(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **values)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    FRAME.to_parquet(buffer)
    return buffer.getvalue()


VALUES = RNG.normal(size=(2, 3, 2)).astype("f4")
FILES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a.csv": (FRAME.to_csv(index=False).encode(), {}),
    "b.tsv": (FRAME.to_csv(index=False, sep="\t").encode(), {"labels": "class"}),
    "c.csv": (WIDE.encode(), {"layout": "wide"}),
    "d.csv.gz": (gzip.compress(FRAME.to_csv(index=False).encode(), mtime=0), {}),
    "e.ts": (TS.encode(), {}),
    "f.ts": (STAMPED.encode(), {}),
    "g.ts.gz": (gzip.compress(STAMPED.encode(), mtime=0), {}),
    "h.npy": (npy(VALUES), {}),
    "i.npz": (packed({"timeseries": VALUES, "label": [1, 2], "length": [3, 2], "id": ["a", "b"],
                      "mask": np.ones((2, 3, 2), bool)}), {}),
    "j.parquet": (parquet(), {}),
}  # fmt: skip
TOKENS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b",", b":", b"(", b")", b"?", b'"', b"nan",
    b"inf", b"-0", b"1e400", b"1e-400", b"99999999999999999999", b"9" * 400,
    b"2024-05-01", b"9999-12-31", b"0001-01-01", b"@", b"@data\n", b"@dimension 99999999999\n",
    b"@seriesLength 9999999999\n",
    b"@classLabel true\n", b"\x1f\x8b", b"PK\x03\x04", b"(1,2)", b"NA", b"True", b"_",
    "\u0661".encode(), "\u202e".encode(), b"hr_1", b"id", b"time", b"target", b"group",
]  # fmt: skip
EDIT = st.tuples(
    st.sampled_from(["put", "drop", "copy", "flip"]), st.integers(0, 10_000), st.integers(1, 40),
    st.sampled_from(TOKENS),
)  # fmt: skip


def edited(content: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """The content with pieces put in, dropped, copied or changed."""
    for kind, place, size, token in edits:
        at = place % (len(content) + 1)
        piece = content[at : at + size]
        if kind == "put":
            content = content[:at] + token + content[at:]
        elif kind == "drop":
            content = content[:at] + content[at + size :]
        elif kind == "copy":
            content = content[:at] + piece + content[at:]
        elif piece:
            content = content[:at] + bytes([piece[0] ^ (1 << size % 8)]) + content[at + 1 :]
    return content


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_read(tmp_path: Path, name: str) -> None:
    content, options = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert len(open_timeseries(tmp_path / name, **options)) >= 1


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(EDIT, min_size=1, max_size=6), cut=st.none() | st.integers(0, 2000))
def test_edited_files(tmp_path: Path, name: str, edits: Any, cut: int | None) -> None:
    content, options = FILES[name]
    (tmp_path / name).write_bytes(edited(content, edits)[:cut])
    try:
        data = open_timeseries(tmp_path / name, **options)
    except MolfunError as error:
        if name not in str(error):
            raise AssertionError("the error does not name the file") from error
        return
    for sample in data:
        values, mask = sample.features["timeseries"], sample.features["mask"]
        assert np.isfinite(values).all()
        assert mask.any()


# What takes memory or time beyond the size of the file


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(2**40, 3, 2), (2**62, 2**62, 4), (10**6, 10**6, 0), (1, 2, -3)])
def test_headers_that_declare_more_than_there_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.npy").write_bytes(header(shape) + bytes(64))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("timeseries.npy", header(shape) + bytes(64))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match=name):
            open_timeseries(tmp_path / name)


def test_an_archive_of_zeros(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("timeseries.npy", header((4, 2**20, 4)) + bytes(2**26))
    with pytest.raises(UnsafeFileError, match=r"MOLFUN_MAX_SERIES_RATIO=\d"):
        open_timeseries(tmp_path / "a.npz")


def test_limits_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", timeseries=VALUES)
    np.save(tmp_path / "a.npy", VALUES)
    for name in ("a.npz", "a.npy"):
        monkeypatch.setenv("MOLFUN_MAX_SERIES_BYTES", "40")
        with pytest.raises(UnsafeFileError, match=r"MOLFUN_MAX_SERIES_BYTES=\d+\."):
            open_timeseries(tmp_path / name)
        monkeypatch.setenv("MOLFUN_MAX_SERIES_BYTES", "1K")
        assert len(open_timeseries(tmp_path / name)) == 2


def test_stamps_of_many_dimensions(tmp_path: Path) -> None:
    """Each dimension has a time of its own, and all would be put on all times."""
    line = ":".join(f"({i},1)" for i in range(20_000))
    (tmp_path / "a.ts").write_text(f"@timestamps true\n@data\n{line}\n")
    with pytest.raises(UnsafeFileError, match=r"a\.ts, line 3: 400,000,000 values in one series"):
        open_timeseries(tmp_path / "a.ts")


def test_wide_columns_that_share_no_time(tmp_path: Path) -> None:
    names = ",".join(f"f{i}_{i}" for i in range(20_000))
    cells = ",".join("1" for _ in range(20_000))
    (tmp_path / "a.csv").write_text(f"id,target,{names}\na,1,{cells}\n")
    with pytest.raises(DataError, match=r"and 399,979,990 more \(399,980,000 in all\)"):
        TimeSeriesDataset.from_csv(tmp_path / "a.csv", layout="wide")


def test_frames_of_a_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    md = pytest.importorskip("MDAnalysis")
    from molfun.data import observables

    universe = md.Universe.empty(
        2, n_residues=2, atom_resindex=[0, 1], trajectory=True
    )  # two CA atoms in one frame
    universe.add_TopologyAttr("names", ["CA", "CA"])
    universe.add_TopologyAttr("resnames", ["ALA", "ALA"])
    universe.add_TopologyAttr("masses", [12.0, 12.0])
    monkeypatch.setenv("MOLFUN_MAX_SERIES_VALUES", "0")
    with pytest.raises(UnsafeFileError, match="MOLFUN_MAX_SERIES_VALUES=1"):
        observables(universe, observe=["rg"])


def test_a_damaged_footer_does_not_end_the_process(tmp_path: Path) -> None:
    """Statistics of a column, where pyarrow's metadata aborts and its reader raises."""
    path = tmp_path / "a.parquet"
    FRAME[["hr"]].to_parquet(path, index=False)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    start = len(content) - 8 - length
    end = content.find(b"pandas", start)  # what follows is text about the frame
    for place in range(start, end if end > 0 else start + length):
        for kind in ("copy", "flip"):
            path.write_bytes(edited(content, [(kind, place, 1, b"")]))
            with contextlib.suppress(MolfunError):
                TimeSeriesDataset.from_parquet(path, target_column=None)
