"""A plain table that C code reads is what Python reads cell by cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from molfun.data import cells
from molfun.data.cell_columns import ArrowColumn
from molfun.errors import TableError

CELLS = st.one_of(
    st.sampled_from(
        [
            "1",
            "-3",
            "007",
            "0",
            "1.5",
            ".5",
            "1e5",
            "+2",
            "nan",
            "inf",
            "NA",
            "1_0",
            "'=x",
            "=x",
            "../x",
            ".",
            "x\\y",
            "é",
            "-0",
            "-007",
        ]
    ),
    st.sampled_from(["", " 1", "a b", "\u00a0", "1e400", "9" * 18, "9" * 19]),
    st.text("ab'=+- .0123456789eE", max_size=6),
    st.text('",ab1\n', max_size=5),
)
TABLES = st.integers(1, 3).flatmap(
    lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=5)
)


def content(path: Path) -> object:
    try:
        read = cells.read_cells(path, "id")
    except TableError as error:
        return str(error)
    columns = [column.typed() for column in read.columns]
    return (
        read.header,
        [column.texts for column in read.columns],
        list(read.lines),
        read.problems,
        [(str(column.dtype), column.astype(object).map(repr).tolist()) for column in columns],
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=TABLES,
    end=st.sampled_from(["\n", "\r\n"]),
    quotes=st.sampled_from(["none", "all", "raw"]),
    last=st.booleans(),
    mark=st.booleans(),
)
@example(rows=[["a", "1"], ["b", "2.5"]], end="\n", quotes="none", last=False, mark=True)
@example(rows=[["a,c", "1"], ["b", "2.5"]], end="\n", quotes="all", last=True, mark=False)
# each quote of ,",", both opens and closes
@example(rows=[['",""+1"', ".5"]], end="\n", quotes="raw", last=True, mark=False)
@example(rows=[["a", "1"], ['b"', '"2']], end="\n", quotes="raw", last=True, mark=False)
@example(rows=[['"a', '"b"', 'x"']], end="\n", quotes="raw", last=True, mark=False)
@example(rows=[['"', '"'], ['"a"b', "2.5"]], end="\n", quotes="raw", last=True, mark=False)
def test_a_plain_table_is_what_its_rows_are(
    rows: list[list[str]],
    end: str,
    quotes: str,
    last: bool,
    mark: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if quotes != "raw":
        rows = [[cell.replace('"', "") for cell in row] for row in rows]
    if quotes == "all":
        rows = [[f'"{cell}"' for cell in row] for row in rows]
    lines = [",".join(["id", "b", "c"][: len(rows[0])]), *map(",".join, rows)]
    path = tmp_path / "t.csv"
    path.write_bytes((end.join(lines) + end * last).encode("utf-8-sig" if mark else "utf-8"))
    quick = content(path)
    with monkeypatch.context() as patch:
        patch.setattr(cells, "plain_columns", lambda *_, **__: None)
        assert content(path) == quick


def test_numbers_come_from_c_code_and_equal_those_of_python(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,target\na,0.1\nb,-2e-3\nc,123456789.123456789\n")
    column = cells.read_cells(path, "id").columns[1]
    assert isinstance(column, ArrowColumn)
    assert column.numbers is not None
    assert column.numbers.tolist() == [0.1, -2e-3, 123456789.123456789]
    assert column.typed().equals(pd.Series([0.1, -2e-3, 123456789.123456789]))
    path.write_text("id,target\na,0.1\nb,nan\n")
    assert cells.read_cells(path, "id").columns[1].numbers is None
