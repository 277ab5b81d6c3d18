"""FASTA files of any origin: read, or named for what they are, within limits."""

from __future__ import annotations

import gzip
import io
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.data import SequenceDataset, read_fasta
from molfun.data.cells import read_cells
from molfun.errors import DataError, MolfunError, UnsafeFileError

FASTA = ">a first\nMKV\nAC\n>b\nGG\n"
RECORDS = [("a", "MKVAC"), ("b", "GG")]


def refused(path, error=DataError) -> str:
    with pytest.raises(error) as caught:
        list(read_fasta(path))
    assert str(caught.value).removeprefix("Refused ").startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.fasta", "a.fasta.gz", "renamed.fa"])
def test_encodings_line_ends_and_packing(write, name, encoding, newline):
    raw = FASTA.replace("\n", newline).encode(encoding)
    path = write(name, raw if name == "a.fasta" else gzip.compress(raw))
    assert list(read_fasta(path)) == RECORDS


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.fasta", FASTA)
    return content.getvalue()


FOREIGN = {
    "a.fasta": (zipped(), "is a zip archive of 'a.fasta'. Unpack it and give the FASTA file in it"),
    "b.fasta": (b"<!DOCTYPE html><title>404", "is an HTML page; a download failed"),
    "c.fasta": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "d.fasta": (b"\x00\x01\x02\x03", "holds NUL bytes: it is damaged or binary"),
    "e.fasta.gz": (gzip.compress(gzip.compress(FASTA.encode())), "is packed with gzip, twice"),
    "f.fasta": (FASTA.encode() + b"A" * 9000 + b"\0" * 9 + b"A\n", "the record 'b' holds NUL byte"),
    "g.fasta.gz": (FASTA.encode(), "cannot be read: Not a gzipped file"),
    "h.fasta": (b'[{"id": 1}]', "is JSON. Write it as FASTA"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_fasta_file_is_named(write, name):
    content, expected = FOREIGN[name]
    assert expected in refused(write(name, content))


def test_size_line_and_ratio_have_named_limits(write, monkeypatch):
    monkeypatch.setenv("MOLFUN_MAX_FASTA_LINE", "1M")
    one_line = gzip.compress(b">a\n" + b"A" * 2**22)
    assert "MOLFUN_MAX_FASTA_LINE=" in refused(write("a.fasta.gz", one_line), UnsafeFileError)
    monkeypatch.setenv("MOLFUN_MAX_FASTA_RECORD", "1G")
    many_lines = gzip.compress((b"A" * 99 + b"\n") * 200_000)
    path = write("b.fasta.gz", gzip.compress(b">a\n") + many_lines)
    monkeypatch.setenv("MOLFUN_MAX_FASTA_GZIP_RATIO", "100")
    assert "MOLFUN_MAX_FASTA_GZIP_RATIO=" in refused(path, UnsafeFileError)
    monkeypatch.setenv("MOLFUN_MAX_FASTA_GZIP_RATIO", "2000")
    assert len(next(read_fasta(path))[1]) == 99 * 200_000
    monkeypatch.setenv("MOLFUN_MAX_FASTA_BYTES", "1M")
    assert "MOLFUN_MAX_FASTA_BYTES=" in refused(path, UnsafeFileError)
    assert "MOLFUN_MAX_FASTA_BYTES=" in refused(
        write("c.fasta", ">a\n" + ("A" * 999 + "\n") * 1100), UnsafeFileError
    )


def test_variants_of_one_protein_pack_well_and_are_read(write):
    sequence = "MKVLAACDEFGHIKLMNPQRSTVWY" * 8
    text = "".join(f">v{i}\n{sequence[: i % 200]}W{sequence[i % 200 :]}\n" for i in range(90_000))
    path = write("a.fasta.gz", gzip.compress(text.encode()))
    assert sum(1 for _ in read_fasta(path)) == 90_000


def test_real_files_are_read_as_before(real_data):
    path = real_data / "sequences" / "valid_1000.fasta.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    text = gzip.decompress(path.read_bytes()).decode()
    expected = [record.split("\n", 1) for record in text.split(">")[1:]]
    assert list(read_fasta(path)) == [
        (header.split()[0], sequence.replace("\n", "")) for header, sequence in expected
    ]


PIECES = st.sampled_from([
    ">a\n", ">", "MKV\n", "\r", "\n", ";x\n", "\0", "\ufeff", " ", "1", "*", "<html>", "PK\x03\x04",
])  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(
        st.lists(PIECES, max_size=10).map(lambda parts: "".join(parts).encode()),
        st.binary(max_size=60),
        st.binary(max_size=30).map(gzip.compress),
    ),
    name=st.sampled_from(["f.fasta", "f.fa.gz"]),
)
def test_any_bytes_give_sequences_or_an_error_of_ours(write, content, name):
    try:
        data = SequenceDataset.from_fasta(write(name, content))
    except MolfunError:
        return
    assert all(data[i].sequence for i in range(len(data)))
    with pytest.raises(DataError):
        read_cells(write("f.csv", b""), "id")


def test_a_sequence_over_many_lines_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(">short\nMKV\n>long\n" + "MKVA\n" * 30)
    monkeypatch.setenv("MOLFUN_MAX_FASTA_RECORD", "100")
    text = r"line 29: the record 'long': it holds more than the 100 letters in one record allowed"
    with pytest.raises(UnsafeFileError, match=text):
        list(read_fasta(path))
    monkeypatch.setenv("MOLFUN_MAX_FASTA_RECORD", "120")
    assert [len(sequence) for _, sequence in read_fasta(path)] == [3, 120]
