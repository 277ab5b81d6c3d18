"""What is no table is named with what to do; what a spreadsheet writes is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.data import SequenceDataset
from molfun.data.cells import read_cells
from molfun.data.tables import read_table
from molfun.errors import MolfunError, TableError, UnsafeFileError

CSV = "pdb_id,affinity\n1a4w,6.52\n3htb,8.1\n"


def zipped(*names: str, first: str = "") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        if first:
            archive.writestr(zipfile.ZipInfo("mimetype"), first)
        for name in names:
            archive.writestr(name, CSV)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.csv"), io.BytesIO(b""))
    return content.getvalue()


def database(path) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (id text)")
    connection.close()
    return path.read_bytes()


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
ODS = "application/vnd.oasis.opendocument.spreadsheet"
FOREIGN = {
    "a.xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook. Save it a"),
    "b.csv": (zipped("xl/worksheets/sheet1.xml"), "is an Excel workbook. Save it as CSV (in Excel"),
    "a.ods": (zipped("content.xml", first=ODS), "is an OpenDocument spreadsheet (.ods). Open it"),
    "a.numbers": (zipped("Index/Document.iwa"), "is an Apple Numbers spreadsheet. Export it as"),
    "a.docx": (zipped("word/document.xml"), "is a Word document. Save the table in it as CSV"),
    "c.csv": (zipped("data/a.csv"), "is a zip archive of 'data/a.csv'. Unpack it and give the CSV"),
    "cut.csv": (zipped("data/a.csv")[:60], "is a zip archive. Unpack it"),
    "a.xls": (OLE, "is an old or encrypted Excel workbook. Open it in a spreadsheet program"),
    "html.xls": (b"<html xmlns:x='excel'><table><tr><td>1</td>", "is an HTML page; a download"),
    "e.csv": (b"\n<!DOCTYPE html>\n<title>404</title>", "is an HTML page"),
    "f.csv": ("<table><tr><td>id".encode("utf-16"), "is an HTML page"),
    "g.xls": (b'<?xml version="1.0"?>\n<Workbook xmlns="schemas-microsoft-com:office:spreadsheet">',
              "is an Excel workbook in XML. Open it"),
    "h.csv": (b'<?xml version="1.0"?><data/>', "is XML. Give a CSV file"),
    "i.csv": (b'[{"pdb_id": "1a4w", "affinity": 6.5}]', "is JSON. Write it as CSV"),
    "j.csv": (b'{"pdb_id": "1a4w"}\n{"pdb_id": "3htb"}', "is JSON. Write it as CSV"),
    "k.tsv": (tarred(), "is a tar archive. Unpack it"),
    "l.csv": (gzip.compress(tarred()), "is a tar archive. Unpack it"),
    "m.csv": (bz2.compress(CSV.encode()), "is packed with bzip2. Unpack it, or pack it with gzip"),
    "n.csv.xz": (lzma.compress(CSV.encode()), "is packed with xz"),
    "o.csv": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    "p.csv": (b"%PDF-1.7\n", "is a PDF document"),
    "q.csv": (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
    "r.csv": (gzip.compress(gzip.compress(CSV.encode())), "is packed with gzip, twice"),
    "s.csv": (CSV.encode() + bytes(9), ", line 4: a NUL byte. The file is damaged or binary"),
    "t.parquet": (CSV.encode(), "is text under a Parquet name. Rename it to .csv"),
    "u.parquet": (zipped("xl/workbook.xml"), "is an Excel workbook"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_table_is_named_with_what_to_do(write, name, caplog):
    content, expected = FOREIGN[name]
    path = write(name, content)
    with pytest.raises(TableError) as caught:
        read_table(path)
    text = str(caught.value)
    assert text.startswith(f"{path}")
    assert expected in text
    assert "\n" not in text
    assert text.isprintable()
    assert not caplog.records


def test_databases_and_parquet_under_a_csv_name(tmp_path, write):
    with pytest.raises(TableError, match=r"is an SQLite database. Export the table you need"):
        read_table(write("a.csv", database(tmp_path / "a.db")))
    frame = pd.DataFrame({"pdb_id": ["1a4w"], "affinity": [6.5]})
    frame.to_parquet(tmp_path / "b.csv")
    with pytest.raises(TableError, match=r"is a Parquet file under another name. Rename it to"):
        read_table(tmp_path / "b.csv")


@pytest.mark.parametrize("header", ["PAR1", "CDF", "FEA1", "BZh", "PK", "ARROW1", "<5"])
def test_column_names_are_no_signatures(write, header):
    table = read_table(write("a.csv", f"{header},pdb_id,affinity\n1,1a4w,6.5\n"))
    assert table.metadata[header].tolist() == [1]


def test_gzip_is_known_by_its_content(write):
    assert read_table(write("a.csv", gzip.compress(CSV.encode()))).ids == ["1a4w", "3htb"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\r\n', "SEP=;\r", "\nsep=;\n"])
def test_the_delimiter_that_excel_names_is_used(write, encoding, first):
    text = f'{first}affinity;"a, b";pdb_id\r\n6.52;x;1a4w\r\nbad;y;3htb\r\n'
    path = write("a.csv", text.encode(encoding))
    with pytest.raises(TableError, match=f"line {4 + (first[0] == chr(10))}, column .*'bad'"):
        read_table(path)
    table = read_table(write("a.csv", text.replace("bad", "7").encode(encoding)))
    assert table.ids == ["1a4w", "3htb"]
    assert table.metadata["a, b"].tolist() == ["x", "y"]


def test_a_delimiter_that_is_not_known_is_named(write):
    with pytest.raises(TableError, match=r"line 1: the delimiter '\^' is none of ',', "):
        read_table(write("a.csv", "sep=^\npdb_id^affinity\n1a4w^1\n"))


def test_quoted_headers_do_not_hide_the_delimiter(write):
    path = write("a.csv", '"name, long, of, it";"pdb_id";affinity\nx;1a4w;6.5\n')
    assert read_table(path).metadata["name, long, of, it"].tolist() == ["x"]


def test_comments_before_the_header_are_left_out(write, caplog):
    caplog.set_level("INFO")
    text = f"# Accession: urn:mavedb:00000001-a-1\n# Licence, of data: CC0\n{CSV}x,bad\n"
    with pytest.raises(TableError, match="line 6, column affinity: 'bad'"):
        read_table(write("a.csv", text))
    assert "2 comment lines before the header left out" in caplog.text
    table = read_table(write("b.csv", "#pdb_id,affinity\n1a4w,1\n"), id_column="#pdb_id")
    assert table.ids == ["1a4w"]
    with pytest.raises(TableError, match=r"no column 'pdb_id'; found '#pdb_id', 'affinity'"):
        read_table(write("c.csv", "#pdb_id,affinity\n1a4w,1\n"))


def test_a_long_cell_is_no_fault(write):
    before = csv.field_size_limit()
    labels = " ".join(["0.5"] * 50_000)
    path = write("a.csv", f"sequence,target\n{'A' * 50_000},{labels}\n")
    data = SequenceDataset.from_csv(path, level="residue")
    assert len(data.targets[0]) == 50_000
    assert csv.field_size_limit() == before


# Limits


def test_cells_and_bytes_have_named_limits(write, monkeypatch):
    path = write("a.csv", CSV + "x,1\n" * 9)
    monkeypatch.setenv("MOLFUN_MAX_TABLE_CELLS", "20")
    with pytest.raises(UnsafeFileError, match=r"24 cells are more than .*MAX_TABLE_CELLS=24"):
        read_table(path)
    monkeypatch.setenv("MOLFUN_MAX_TABLE_CELLS", "24")
    assert len(read_table(path)) == 3
    monkeypatch.setenv("MOLFUN_MAX_CELL_CHARACTERS", "5")
    before = csv.field_size_limit()
    with pytest.raises(UnsafeFileError, match=r"line 1: .*MOLFUN_MAX_CELL_CHARACTERS="):
        read_table(path)
    assert csv.field_size_limit() == before
    monkeypatch.setenv("MOLFUN_MAX_TABLE_BYTES", "20")
    with pytest.raises(UnsafeFileError, match="MOLFUN_MAX_TABLE_BYTES="):
        read_table(path)


def test_a_packed_table_is_not_unpacked_beyond_the_limit(write, monkeypatch):
    monkeypatch.setenv("MOLFUN_MAX_TABLE_BYTES", "1M")
    path = write("bomb.csv.gz", gzip.compress(b"pdb_id,affinity\n" + bytes(2**24)))
    with pytest.raises(UnsafeFileError, match="more than the 1,048,576 bytes allowed"):
        read_table(path)


def test_parquet_that_inflates_is_refused_before_it_does(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    rows = 200_000
    table = pa.table({"pdb_id": pa.DictionaryArray.from_arrays(np.zeros(rows, int), ["x" * 9999])})
    pa.parquet.write_table(table, path)
    # 2 GB as plain text; one text that all rows share here
    assert len(read_cells(path, "pdb_id")) == rows
    monkeypatch.setenv("MOLFUN_MAX_TABLE_CELLS", "100k")
    with pytest.raises(UnsafeFileError, match="200,000 cells are more than the 102,400 allowed"):
        read_cells(path, "pdb_id")
    monkeypatch.setenv("MOLFUN_MAX_TABLE_BYTES", "1k")
    monkeypatch.delenv("MOLFUN_MAX_TABLE_CELLS")
    with pytest.raises(UnsafeFileError, match="MOLFUN_MAX_TABLE_BYTES="):
        read_cells(path, "pdb_id")


def test_parquet_bytes_are_text_and_dates_without_a_value_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"pdb_id": pa.array([b"1a4w", b"\xc3\xa9"], pa.binary()), "affinity": [1.0, 2.0]}
    pa.parquet.write_table(pa.table(columns), path)
    assert read_table(path).ids == ["1a4w", "é"]
    columns["when"] = pa.array([2**62, 0], pa.timestamp("us"))
    pa.parquet.write_table(pa.table(columns), path)
    with pytest.raises(TableError, match="cannot be read as Parquet"):
        read_table(path)


# Anything


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "a.parquet"
    frame = pd.DataFrame({"pdb_id": ["a", "b"] * 20, "affinity": [1.0, 2.0] * 20, "n": range(40)})
    frame.to_parquet(path)
    return path.read_bytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.integers(0, 10**4),
    change=st.binary(min_size=1, max_size=6),
    cut=st.integers(0, 200),
)
def test_damaged_parquet_gives_a_table_or_an_error_of_ours(write, packed, place, change, cut):
    raw = bytearray(packed)
    place %= len(raw)
    raw[place : place + len(change)] = change
    try:
        read_table(write("fuzz.parquet", bytes(raw[: len(raw) - (cut if cut > 150 else 0)])))
    except MolfunError:
        return


STARTS = st.sampled_from([content for content, _ in FOREIGN.values()])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(start=STARTS, length=st.integers(0, 400), rest=st.binary(max_size=60))
def test_cut_and_mixed_formats_give_a_table_or_an_error_of_ours(write, start, length, rest):
    for name in ("fuzz.csv", "fuzz.parquet", "fuzz.csv.gz"):
        try:
            read_table(write(name, start[:length] + rest))
        except MolfunError:
            continue
