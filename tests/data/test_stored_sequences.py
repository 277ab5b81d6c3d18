"""Sequences that stay in Arrow and Parquet files: what is read, refused, split and held."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from molfun import DataSplitter, SequenceDataset
from molfun.data import arrow_files
from molfun.data.part_sizes import fill_by_code
from molfun.errors import ConfigError, DataError, UnsafeFileError

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def proteins(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), rng.integers(5, 40))) for _ in range(n)]


def arrow(path: Path, *, rows: int = 4, kind: Any = None, **columns: list[Any]) -> Path:
    """Write an Arrow file in batches of a few rows."""
    kind = kind or pyarrow.string()
    table = pyarrow.table({name: pyarrow.array(v, kind) for name, v in columns.items()})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=rows)
    return path


def refused(call: Callable[..., Any], *given: Any, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        call(*given, **options)
    return str(caught.value)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy even the smallest Parquet file."""
    monkeypatch.setattr(arrow_files, "IN_MEMORY", 0)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_rows_are_those_of_the_file(tmp_path: Path, kind: Any) -> None:
    texts = proteins(11)
    path = arrow(tmp_path / "a.arrow", kind=kind, name=[f"p{i}" for i in range(11)], sequence=texts)
    data = SequenceDataset.from_arrow(path, id_column="name", max_length=20)
    assert [data[i].sequence for i in range(11)] == texts
    assert list(data.ids) == [f"p{i}" for i in range(11)]
    assert data[-1].id == "p10"
    assert data[6].origin == "a.arrow, row 7"
    assert data.lengths.tolist() == [min(len(t), 20) for t in texts]
    assert data.sequences()[3] == (texts[3],)
    assert np.isnan(data.targets).all()
    assert data[2].target is None
    part = data.subset([9, 0, -2]).subset([True, False, True])
    assert [sample.sequence for sample in map(part.__getitem__, range(2))] == [texts[9], texts[9]]
    assert part.digests() == SequenceDataset.from_list([texts[9]] * 2, max_length=20).digests()
    with pytest.raises(IndexError):
        data[11]
    again = pickle.loads(pickle.dumps(part))
    assert list(again.ids) == list(part.ids) == ["p9", "p9"]
    assert again.fingerprint() == part.fingerprint() != data.fingerprint()


def test_masks_and_letters_count_as_the_model_counts_them(tmp_path: Path) -> None:
    texts = ["MK<mask>V", "<mask><mask>", "MKÄ"]
    data = SequenceDataset.from_arrow(arrow(tmp_path / "a.arrow", sequence=texts))
    assert data.lengths.tolist() == SequenceDataset.from_list(texts).lengths.tolist() == [4, 2, 3]
    assert [data[i].sequence for i in range(3)] == texts


def test_a_folder_is_one_data_set(tmp_path: Path) -> None:
    texts = proteins(9)
    arrow(tmp_path / "b.arrow", sequence=texts[5:])
    arrow(tmp_path / "a.arrow", sequence=texts[:5])
    (tmp_path / "_SUCCESS").touch()
    data = SequenceDataset.from_arrow(tmp_path)
    assert [data[i].sequence for i in range(9)] == texts
    assert (data[5].id, data[5].origin) == ("seq_6", "b.arrow, row 1")
    assert data.lengths.tolist() == list(map(len, texts))
    some = SequenceDataset.from_arrow([tmp_path / "b.arrow"])
    assert len(some) == 4
    names = [f"p{i % 5}" for i in range(9)]
    arrow(tmp_path / "a.arrow", sequence=texts[:5], name=names[:5])
    arrow(tmp_path / "b.arrow", sequence=texts[5:], name=names[5:])
    said = refused(SequenceDataset.from_arrow, tmp_path, id_column="name")
    assert "has 4 bad ids in column 'name':\n  the id 'p0' comes more than once" in said
    assert said.endswith("Leave id_column out to number the rows.")


def test_a_stream_of_hugging_face(tmp_path: Path) -> None:
    """`datasets` writes streams; one that was cut off between two batches is refused."""
    table = pyarrow.table({"sequence": proteins(8)})
    path = tmp_path / "data-00000-of-00001.arrow"
    with (
        pyarrow.OSFile(str(path), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as file,
    ):
        ends = []
        for batch in table.to_batches(max_chunksize=4):
            file.write_batch(batch)
            ends.append(sink.tell())
    data = SequenceDataset.from_arrow(tmp_path)
    assert [data[i].sequence for i in range(8)] == table["sequence"].to_pylist()
    path.write_bytes(path.read_bytes()[: ends[0]])
    assert refused(SequenceDataset.from_arrow, path) == (
        f"{path} is cut off: an Arrow stream has a mark at its end. Copy it again."
    )


@pytest.mark.usefixtures("copies")
def test_parquet_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = proteins(50)
    path = tmp_path / "a.parquet"
    table = pyarrow.table(
        {"id": np.arange(50), "sequence": pyarrow.array(texts).dictionary_encode()}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    data = SequenceDataset.from_parquet(path, id_column="id", cache_dir=tmp_path / "cache")
    assert [data[i].sequence for i in range(50)] == texts
    assert data[7].id == "7"
    assert data[7].origin == "a.parquet, row 8"
    (copy,) = (tmp_path / "cache").glob("*.arrow")
    with monkeypatch.context() as patch:
        patch.setattr(arrow_files, "_write_copy", None)
        again = SequenceDataset.from_parquet(path, id_column="id", cache_dir=tmp_path / "cache")
    assert again.fingerprint() == data.fingerprint()
    pyarrow.parquet.write_table(table.slice(1), path)
    changed = SequenceDataset.from_parquet(path, cache_dir=tmp_path / "cache")
    assert changed[0].sequence == texts[1]
    arrow(copy, id=["1"], sequence=["MKV"])  # not what was written
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    found = SequenceDataset.from_parquet(path, id_column="id")
    assert len(found) == 50
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()].count(".molfun") == 1


@pytest.mark.usefixtures("copies")
def test_a_copy_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sequence": proteins(9)}), path)
    SequenceDataset.from_parquet(path)
    (copy,) = (tmp_path / ".molfun").glob("*.arrow")
    arrow(copy, sequence=["MKV"])
    assert refused(SequenceDataset.from_parquet, path) == (
        f"{copy} is no whole copy of {path}. Delete it; it is made again."
    )


def test_small_parquet_is_not_copied(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.parquet", proteins(9)
    pyarrow.parquet.write_table(pyarrow.table({"sequence": texts}), path)
    data = SequenceDataset.from_parquet(path)
    assert [data[i].sequence for i in range(9)] == texts
    assert list(tmp_path.iterdir()) == [path]
    assert pickle.loads(pickle.dumps(data))[4].sequence == texts[4]


def test_compressed_arrow_is_unpacked(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.feather", proteins(20_000)
    pyarrow.feather.write_feather(pyarrow.table({"sequence": texts}), path, compression="lz4")
    data = SequenceDataset.from_arrow(path)
    assert [data[i].sequence for i in range(0, 20_000, 999)] == texts[::999]
    assert len(list((tmp_path / ".molfun").glob("a-*.arrow"))) == 1


@pytest.mark.usefixtures("copies")
def test_two_processes_write_one_copy(tmp_path: Path) -> None:
    """Both see all rows; the one that comes second waits and finds the copy."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sequence": proteins(3000)}), path)
    code = (
        "import sys; from molfun.data import arrow_files; from molfun import SequenceDataset\n"
        "arrow_files.IN_MEMORY, written = 0, []\n"
        "write = arrow_files._write_copy\n"
        "arrow_files._write_copy = lambda *a: (written.append(1), write(*a))\n"
        "data = SequenceDataset.from_parquet(sys.argv[1])\n"
        "print(len(written), data.fingerprint())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=120)[0].split() for run in runs]
    assert sorted(n for n, _ in said) == ["0", "1"]
    assert said[0][1] == said[1][1] == SequenceDataset.from_parquet(path).fingerprint()
    assert not list((tmp_path / ".molfun").glob("*.tmp"))


@pytest.mark.parametrize(
    ("columns", "options", "text"),
    [
        ({"seq": ["MKV"]}, {}, "has no column 'sequence'; found 'seq'. Rename the column, or say "
         "what yours is called: sequence_column=... (--sequence-column)."),
        ({"sequence": ["MKV"]}, {"id_column": "name"}, "say what yours is called: id_column=... "
         "(--id-column)."),
        ({"sequence": ["MKV", None, "AC", ""]}, {}, "has 2 bad rows:\n  row 2, column sequence: is "
         "blank; fill it in or remove the row\n  row 4, column sequence: is blank"),
        ({"sequence": [None] * 30}, {}, "has 30 bad rows:\n  row 1, "),
        ({"sequence": [None] * 30}, {}, "row 10, column sequence: is blank; fill it in or remove "
         "the row\n  and 20 more"),
        ({"sequence": ["MKV", "AC"], "id": ["a", ""]}, {"id_column": "id"}, "has 1 bad row:\n  row "
         "2, column id: is blank"),
        ({"sequence": ["MKV", "AC", "GG"], "id": ["a", "b", "a"]}, {"id_column": "id"},
         "has 1 bad id in column 'id':\n  the id 'a' comes more than once\nLeave id_column out"),
        ({"sequence": ["MKV"]}, {"id_column": "sequence"},
         "'sequence' cannot be the column of both ids and sequences."),
        ({"sequence": []}, {}, "has no rows. Write one row per sequence."),
        ({"sequence": ["MKV"]}, {"max_length": 0}, "max_length must be at least 1, got 0."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["arrow", "parquet", "copied"])
def test_bad_files_give_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    columns: dict[str, Any],
    options: dict[str, Any],
    text: str,
) -> None:
    table = pyarrow.table({n: pyarrow.array(v, pyarrow.string()) for n, v in columns.items()})
    path = tmp_path / ("a.arrow" if form == "arrow" else "a.parquet")
    if form == "arrow":
        pyarrow.feather.write_feather(table, path, compression="uncompressed")
        assert text in refused(SequenceDataset.from_arrow, path, **options)
        return
    if form == "copied":
        monkeypatch.setattr(arrow_files, "IN_MEMORY", -1)
    pyarrow.parquet.write_table(table, path)
    assert text in refused(SequenceDataset.from_parquet, path, **options)


def test_files_that_are_none(tmp_path: Path) -> None:
    read, parquet = SequenceDataset.from_arrow, SequenceDataset.from_parquet
    good = arrow(tmp_path / "a.arrow", sequence=proteins(50))
    cut = tmp_path / "cut.arrow"
    cut.write_bytes(good.read_bytes()[:-100])
    assert refused(read, cut).startswith(f"{cut} cannot be read as Arrow (")
    assert refused(read, cut).endswith("It is damaged or cut off: write or copy it again.")
    whole = tmp_path / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sequence": proteins(50)}), whole)
    (half := tmp_path / "half.parquet").write_bytes(whole.read_bytes()[:-50])
    assert refused(parquet, half).startswith(f"{half} cannot be read as Parquet (")
    (empty := tmp_path / "empty.arrow").touch()
    assert "cannot be read as Arrow" in refused(read, empty)
    (text := tmp_path / "text.parquet").write_text("sequence\nMKV\n")
    assert "cannot be read as Parquet" in refused(parquet, text)
    (other := tmp_path / "other.arrow").write_bytes(whole.read_bytes())
    assert "is a Parquet file under another name" in refused(read, other)
    numbers = tmp_path / "numbers.arrow"
    pyarrow.feather.write_feather(
        pyarrow.table({"sequence": [1.5]}), numbers, compression="uncompressed"
    )
    assert refused(read, numbers) == (
        f"{numbers}, column sequence: holds double, and texts are needed. Say which column has "
        f"them: sequence_column=... (--sequence-column)."
    )
    assert refused(read, tmp_path / "no.arrow") == (
        f"{tmp_path}/no.arrow does not exist. Give a file, or a folder of them."
    )
    assert refused(read, whole) == f"{whole} does not end in .arrow or .feather or .ipc. Rename it."
    (folder := tmp_path / "none").mkdir()
    assert refused(parquet, folder) == f"{folder} holds no file that ends in .parquet or .pq."
    assert refused(read, []) == "There are no files in the list. Give one at least."


def test_offsets_that_are_none_are_refused(tmp_path: Path) -> None:
    """Arrow reads beyond its buffers if the places of texts are wrong."""
    texts = ["A" * 100, "C" * 100, "D" * 100]
    path = arrow(tmp_path / "a.arrow", sequence=texts)
    raw, ends = path.read_bytes(), np.array([0, 100, 200, 300], "<i4").tobytes()
    assert raw.count(ends) == 1
    path.write_bytes(raw.replace(ends, np.array([0, 100, 50, 300], "<i4").tobytes()))
    assert refused(SequenceDataset.from_arrow, path) == (
        f"{path} is damaged (column sequence). Write or copy it again."
    )


def test_a_text_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arrow(tmp_path / "a.arrow", sequence=["M" * 200])
    monkeypatch.setenv("MOLFUN_MAX_CELL_CHARACTERS", "100")
    with pytest.raises(UnsafeFileError, match="column sequence: a text of 200 bytes"):
        SequenceDataset.from_arrow(path)


def test_a_file_that_is_cut_off_while_it_is_used(tmp_path: Path) -> None:
    path = arrow(tmp_path / "a.arrow", rows=100, sequence=["M" * 10_000] * 30)
    data = SequenceDataset.from_arrow(path)
    with path.open("r+b") as file:
        file.truncate(200_000)
    assert data[0].sequence == "M" * 10_000
    assert refused(data.__getitem__, 29) == (
        f"{path} was cut off while it was used. Write it again."
    )


def test_warnings_are_those_of_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = arrow(tmp_path / "a.arrow", id=["a", "b"], sequence=["ACGT" * 20, "ACGT" * 5])
    with caplog.at_level(logging.WARNING):
        SequenceDataset.from_arrow(path)
    assert "the rows are called seq_1, seq_2 ..., and predictions leave its column" in caplog.text
    assert "Are these nucleotides?" in caplog.text


def test_a_split_keeps_equal_sequences_together(tmp_path: Path) -> None:
    texts = proteins(400)
    texts = [*texts, *map(str.lower, texts[:50])]
    data = SequenceDataset.from_arrow(arrow(tmp_path / "a.arrow", rows=37, sequence=texts))
    train, val, test = DataSplitter.random(data, val_frac=0.1, test_frac=0.2, seed=3)
    seen = [{s.upper() for (s,) in part.sequences()} for part in (train, val, test)]
    assert len(train) + len(val) + len(test) == 450
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert 40 <= len(val) <= 45
    assert 85 <= len(test) <= 90
    again = DataSplitter.random(data, val_frac=0.1, test_frac=0.2, seed=3)[1]
    other = DataSplitter.random(data, val_frac=0.1, test_frac=0.2, seed=4)[1]
    assert list(again.ids) == list(val.ids) != list(other.ids)


def test_a_split_of_few_distinct_sequences() -> None:
    part = fill_by_code(np.array([1, 1, 1, 2, 2], np.uint32), (4, 1, 0), seed=0)
    assert part.tolist() in ([0, 0, 0, 1, 1], [1, 1, 1, 0, 0])
    with pytest.raises(DataError) as caught:
        fill_by_code(np.array([7, 7, 7], np.uint32), (2, 1, 0), seed=0)
    assert str(caught.value) == (
        "Cannot split 1 groups of distinct samples into train, validation: at least 2 are needed. "
        "Add samples, or leave a part out with val_frac=0 or test_frac=0."
    )


HELD = """
import re, sys
import numpy as np
from torch.utils.data import DataLoader
from molfun import DataSplitter, SequenceDataset
from molfun.training.batches import EpochBatches

def held():
    text = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+)", text)[1]) / 1024

def use(path):
    data = SequenceDataset.from_arrow(path, max_length=100)
    assert data.has_only(b"ACDEFGHIKLMNPQRSTVWY")
    train, val, _ = DataSplitter.random(data, val_frac=0.01, test_frac=0.0)
    train.fingerprint(), int(train.lengths.sum())
    loader = DataLoader(train, 16, shuffle=True, collate_fn=train.collate_fn)
    for _, batch in zip(range(300), EpochBatches(loader, 0).epoch(0)):
        pass

use(sys.argv[1])
before = held()
use(sys.argv[2])
print(held() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 480 MB, with all checks, a split and a shuffled epoch, takes a tenth of it."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(LETTERS.encode(), np.uint8)
    for name, n_batches in (("small", 1), ("large", 16)):
        raw = letters[rng.integers(0, 20, 30_000_000, dtype=np.uint8)]
        ends = np.arange(0, 30_000_001, 300, dtype=np.int32)
        buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(raw)]
        batch = pyarrow.record_batch(
            [pyarrow.Array.from_buffers(pyarrow.string(), 100_000, buffers)], names=["sequence"]
        )
        path = str(tmp_path / f"{name}.arrow")
        with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_file(sink, batch.schema) as file:
            for _ in range(n_batches):
                file.write_batch(batch)
    paths = [str(tmp_path / f"{name}.arrow") for name in ("small", "large")]
    done = subprocess.run(
        [sys.executable, "-c", HELD, *paths], capture_output=True, text=True, check=True
    )
    grown = float(done.stdout.split()[-1])
    assert grown < 200, f"{grown} MB for a file of 480 MB"
