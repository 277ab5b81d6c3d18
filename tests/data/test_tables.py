"""Tables: every bad row is found before anything starts, ids stay what they are."""

from __future__ import annotations

import contextlib
import logging
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.data.columns import filter_rows
from molfun.data.tables import read_table
from molfun.errors import ConfigError, MolfunError, TableError, UnsafeFileError

HEADER = "pdb_id,affinity\n"


def refused(path, **options) -> str:
    with pytest.raises(TableError) as caught:
        read_table(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_minimal_table_of_the_guide(write):
    table = read_table(write("a.csv", HEADER + "1a4w,6.52\n3htb,8.10\n2xys,4.30\n"))
    assert table.ids == ["1a4w", "3htb", "2xys"]
    assert table.targets.tolist() == [6.52, 8.10, 4.30]
    assert table.targets.dtype == np.float64
    assert table.lines == [2, 3, 4]
    assert table.metadata.shape == (3, 0)


def test_ids_are_text(write):
    ids = ["1e10", "0001", "NA", "nan", "1A4w", "123", "None", "protein é", "-x"]
    text = HEADER + "".join(f"{name},{i}\n" for i, name in enumerate(ids))
    assert read_table(write("a.csv", text)).ids == ids


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_newlines_delimiters(write, encoding, newline, delimiter):
    lines = ["pdb_id,affinity,note", "1a4w,6.52,é", "3htb,8.1,x"]
    text = newline.join(line.replace(",", delimiter) for line in lines)
    table = read_table(write("a.txt", text.encode(encoding)))
    assert table.ids == ["1a4w", "3htb"]
    assert table.metadata["note"].tolist() == ["é", "x"]


def test_latin_1_is_told(write, caplog):
    table = read_table(write("a.csv", "pdb_id,affinity,note\n1a4w,6.5,é\n".encode("latin-1")))
    assert table.metadata["note"].tolist() == ["é"]
    assert "is not UTF-8; it is read as Latin-1" in caplog.text


def test_blanks_quotes_and_empty_lines(write):
    text = ' pdb_id , affinity,note \n\n "1a4w",6.5,"two\nlines, one cell"\n,,\n3htb, 8.1 ,\n'
    table = read_table(write("a.csv", text.replace(' "1a4w"', '"1a4w"')))
    assert table.ids == ["1a4w", "3htb"]
    assert table.lines == [3, 6]
    assert table.metadata["note"].tolist() == ["two\nlines, one cell", ""]


def test_parquet_and_csv_agree(tmp_path, write):
    frame = pd.DataFrame({"pdb_id": ["0001", "x"], "affinity": [6.52, 8.0], "year": [2015, None]})
    frame.to_parquet(tmp_path / "a.parquet")
    from_parquet = read_table(tmp_path / "a.parquet")
    from_csv = read_table(write("a.csv", "pdb_id,affinity,year\n0001,6.52,2015\nx,8,\n"))
    assert from_parquet.ids == from_csv.ids
    assert from_parquet.targets.tolist() == from_csv.targets.tolist()
    assert from_parquet.lines == [1, 2]
    assert from_parquet.metadata["year"].tolist()[0] == 2015


def test_damaged_parquet(write):
    assert "cannot be read as Parquet" in refused(write("a.parquet", b"PAR1 nonsense"))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("nan", "is not a finite number"),
        ("NaN", "is not a finite number"),
        ("inf", "is not a finite number"),
        ("-inf", "is not a finite number"),
        ("", "is blank; fill it in or remove the row"),
        ("  ", "is blank"),
        ("high", "is not a number"),
        ("1_000", "is not a number"),
        ("٣", "is not a number"),
        ('"6,52"', "has a decimal comma; write 6.52"),
        ('"1,000"', "has a comma; write 1000 or 1.000"),
        (">10", "is a bound, not a value"),
        ("<5", "is a bound, not a value"),
        ("~7", "is a bound, not a value"),
        ("1e30", "overflows the loss; check the unit"),
        ("1e999", "overflows the loss"),
        ("6.5 uM", "is not a number"),
    ],
)
def test_bad_labels(write, cell, reason):
    text = refused(write("a.csv", HEADER + f"1a4w,6.5\n3htb,{cell}\n"))
    assert "has 1 bad row:" in text
    assert "line 3, column affinity: " in text
    assert reason in text


@pytest.mark.parametrize("cell", ["6", "-6.5", "+6.5", ".5", "6.", "6.5e-1", "1E3"])
def test_good_labels(write, cell):
    assert read_table(write("a.csv", HEADER + f"1a4w,{cell}\n")).targets[0] == float(cell)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "is blank"),
        ("../x", "is a path, not an id"),
        ("/etc/passwd", "is a path, not an id"),
        ("..\\x", "is a path, not an id"),
        ("..", "is a path, not an id"),
        ("a\x01b", "holds control characters"),
        ('"a\nb"', "holds control characters"),
        ("x" * 201, "longer than 200 bytes"),
    ],
)
def test_bad_ids(write, cell, reason):
    text = refused(write("a.csv", HEADER + f"1a4w,6.5\n{cell},7\n"))
    assert "line 3, column pdb_id: " in text
    assert reason in text


def test_all_bad_rows_are_counted_and_ten_are_shown(write):
    rows = "".join(f"x{i},{'bad' if i % 2 else i}\n" for i in range(2000))
    text = refused(write("a.csv", HEADER + rows))
    assert "has 1,000 bad rows:" in text
    assert text.count("is not a number") == 10
    assert "... and 990 more (1000 in all)" in text


def test_bad_ids_labels_and_duplicates_come_in_one_error(write):
    text = refused(write("a.csv", HEADER + "../x,1\na,high\nb,1\nb,2\n"))
    assert "has 3 bad rows" in text
    assert "line 5: 'b' has the label 2, and 1 on line 4; keep one of them" in text


def test_duplicates_with_the_same_label_are_dropped(write, caplog):
    table = read_table(write("a.csv", HEADER + "a,1\nb,2\na,1.0\n"))
    assert table.ids == ["a", "b"]
    assert (
        "repeats 1 row (same id, same label); the first of each is kept: a (line 4)" in caplog.text
    )


def test_ids_that_differ_only_in_case_are_told(write, caplog):
    assert len(read_table(write("a.csv", HEADER + "1A4W,1\n1a4w,2\n"))) == 2
    assert "differ from another one only in case (1A4W, 1a4w)" in caplog.text


def test_missing_column_names_what_is_there(write):
    text = refused(write("a.csv", "PDB_ID,Affinty,year\n1a4w,6.5,2015\n"))
    assert "has no column 'pdb_id' and 'affinity'; found 'PDB_ID', 'Affinty', 'year'." in text
    assert "Did you mean 'PDB_ID' for 'pdb_id'?" in text
    assert "Did you mean 'Affinty' for 'affinity'?" in text


def test_column_names_are_arguments(write):
    path = write("a.csv", "name,pKd\n1a4w,6.5\n")
    assert read_table(path, id_column="name", target_column="pKd").ids == ["1a4w"]


def test_repeated_column(write):
    path = write("a.csv", "pdb_id,affinity,affinity\n1a4w,6.5,7\n")
    assert "has the column 'affinity' more than once" in refused(path)


def test_column_without_a_name(write):
    table = read_table(write("a.csv", ",pdb_id,affinity\n0,1a4w,6.5\n"))
    assert table.metadata["column_1"].tolist() == [0]


def test_empty_and_header_only(write, tmp_path):
    assert "is empty" in refused(write("a.csv", ""))
    assert "is empty" in refused(write("b.csv", " \n\n"))
    assert "has a header but no rows" in refused(write("c.csv", HEADER))
    assert "does not exist" in refused(tmp_path / "absent.csv")
    assert "is a folder" in refused(tmp_path)


def test_ragged_rows_and_stray_quotes(write):
    text = refused(write("a.csv", HEADER + "a,6,52\nb,6.5\nc\n"))
    assert "line 2: 3 cells where the header has 2" in text
    assert "line 4: 1 cell where the header has 2" in text
    assert "line 3" in refused(write("b.csv", HEADER + 'a,1\nb,"2\nc,3\n'))


def test_ragged_rows_come_with_the_other_faults(write):
    text = refused(write("a.csv", HEADER + "a,6,52\n../b,6.5\nc,high\n"))
    assert "has 3 bad rows:" in text
    assert "has 1 bad row:" in refused(write("b.csv", HEADER + "a,6,52\n"))


def test_damaged_utf16(write):
    assert "damaged UTF-16" in refused(write("a.csv", b"\xff\xfea"))


def test_target_may_be_absent_for_prediction(write, caplog):
    table = read_table(write("a.csv", "pdb_id\n1a4w\n"), require_target=False)
    assert np.isnan(table.targets).all()
    table = read_table(write("b.csv", HEADER + "1a4w,\n3htb,7\n"), require_target=False)
    assert np.isnan(table.targets[0])
    assert table.targets[1] == 7
    assert not caplog.messages
    table = read_table(write("c.csv", HEADER + "1a4w,high\n3htb,7\n"), require_target=False)
    assert np.isnan(table.targets[0])
    assert "c.csv: 1 label not used:\n  line 2, column affinity: 'high' is not a" in caplog.text


def test_constant_labels_are_told(write, caplog):
    read_table(write("a.csv", HEADER + "a,5\nb,5\n"))
    assert "all 2 values of 'affinity' are 5, so there is nothing to learn" in caplog.text


def test_outlier_is_told(write, caplog):
    rows = "".join(f"x{i},{5 + i / 10}\n" for i in range(20))
    read_table(write("a.csv", HEADER + rows + "far,5e6\n"))
    assert "1 value of 'affinity' far from the rest (far has 5e+06" in caplog.text


def test_honest_labels_say_nothing(write, caplog):
    caplog.set_level(logging.INFO)
    rng = np.random.default_rng(0)
    rows = "".join(f"x{i},{v:.2f}\n" for i, v in enumerate(rng.normal(6.5, 2, 500)))
    read_table(write("a.csv", HEADER + rows))
    assert not caplog.text


def test_columns_are_typed(write):
    text = "pdb_id,affinity,year,resolution,code,blank,part\n"
    text += "a,1,2015,1.9,007,,\nb,2,2016,,x,,3\n"
    metadata = read_table(write("a.csv", text)).metadata
    assert metadata["year"].tolist() == [2015, 2016]
    assert metadata["year"].dtype == "int64"
    assert metadata["resolution"].iloc[0] == 1.9
    assert np.isnan(metadata["resolution"].iloc[1])
    assert metadata["code"].tolist() == ["007", "x"]
    assert metadata["blank"].tolist() == ["", ""]
    assert metadata["part"].dtype == "Int64"


def test_leading_zeros_stay_text(write):
    text = "pdb_id,affinity,code\na,1,0012\nb,2,0013\n"
    metadata = read_table(write("a.csv", text)).metadata
    assert metadata["code"].astype(str).tolist() == ["0012", "0013"]


@pytest.fixture
def metadata() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "year": pd.Series([2012, 2015, None], dtype="Int64"),
            "resolution": [1.9, np.nan, 3.0],
            "family": pd.Series(["a", "b", ""], dtype=object),
        }
    )


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({}, [0, 1, 2]),
        ({"min_year": 2015}, [1]),
        ({"max_year": 2015}, [0, 1]),
        ({"max_resolution": 2.5}, [0]),
        ({"year": 2012}, [0]),
        ({"year": [2012, 2015]}, [0, 1]),
        ({"family": "b"}, [1]),
        ({"family": {"a", "b"}, "min_year": 2013}, [1]),
    ],
)
def test_filter_rows(metadata, conditions, kept):
    assert filter_rows(metadata, conditions).tolist() == kept


def test_filter_names_the_nearest_column(metadata):
    with pytest.raises(ConfigError, match=r"Unknown filter 'min_yaer'.*Did you mean 'min_year'\?"):
        filter_rows(metadata, {"min_yaer": 2015})
    with pytest.raises(
        ConfigError, match="min_family needs numbers, and column 'family' holds text"
    ):
        filter_rows(metadata, {"min_family": 1})
    with pytest.raises(ConfigError, match="min_year must be a number, got 'old'"):
        filter_rows(metadata, {"min_year": "old"})
    with pytest.raises(ConfigError, match="no columns to filter by"):
        filter_rows(pd.DataFrame(index=range(2)), {"year": 1})


def test_time_grows_with_the_rows_and_no_faster(write):
    def seconds(n: int) -> float:
        rows = "".join(f"x{i},{i % 97 / 10},{1990 + i % 30},name{i}\n" for i in range(n))
        path = write("a.csv", "pdb_id,affinity,year,note\n" + rows)
        start = time.process_time()
        assert len(read_table(path)) == n
        return time.process_time() - start

    assert seconds(100_000) < 40 * min(seconds(10_000) for _ in range(3))


CELLS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["6.5", "1a4w", "nan", '"', ",", ";", "\n", "\r", "\0", "../x", "", " "]),
    st.floats().map(str),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=4).map(",".join), max_size=5),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
    with_header=st.booleans(),
)
def test_any_text_gives_a_table_or_an_error_of_ours(write, rows, encoding, with_header):
    text = "\n".join(["pdb_id,affinity", *rows] if with_header else rows)
    path = write("fuzz.csv", text.encode(encoding, "surrogatepass"))
    try:
        table = read_table(path)
    except MolfunError:
        return
    assert np.isfinite(table.targets).all()
    assert len(set(table.ids)) == len(table.ids) > 0


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_a_table_or_an_error_of_ours(write, raw):
    for name in ("fuzz.csv", "fuzz.parquet"):
        with contextlib.suppress(MolfunError):
            read_table(write(name, raw))


def test_packed_tables(tmp_path, monkeypatch):
    import gzip

    from molfun.data import SequenceDataset

    path = tmp_path / "data.csv.gz"
    path.write_bytes(gzip.compress(b"sequence,target\nMKV,1\nACD,2\n"))
    assert SequenceDataset.from_csv(path).targets.tolist() == [1.0, 2.0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    with pytest.raises(TableError, match=r"data\.csv\.gz is truncated gzip"):
        SequenceDataset.from_csv(path)
    path.write_bytes(whole)
    monkeypatch.setenv("MOLFUN_MAX_TABLE_BYTES", "10")
    with pytest.raises(UnsafeFileError, match="raise the limit: MOLFUN_MAX_TABLE_BYTES="):
        SequenceDataset.from_csv(path)
