"""Files of structures: what is read, what is named, what is refused before memory is taken."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun.data.atoms import AtomsDataset
from molfun.data.atoms_files import read_frames
from molfun.errors import DataError, MolfunError, UnsafeFileError

pytest.importorskip("ase")

Write = Callable[..., Path]
FRAME = '2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-7.5 pbc="F F F"\n'
ATOMS = "O 0 0 0 0.1 0 0\nO 1.2 0 0 -0.1 0 0\n"


def test_a_frame_is_what_ase_reads(write: Write) -> None:
    from ase.io import read

    path = write("x.xyz", (FRAME + ATOMS) * 3)
    frames = read_frames(path)
    assert len(frames) == 3
    for ours, theirs in zip(frames, read(path, ":"), strict=True):
        assert ours == theirs
        assert ours.get_potential_energy() == theirs.get_potential_energy()
        np.testing.assert_array_equal(ours.get_forces(), theirs.get_forces())


@pytest.mark.parametrize(
    "content",
    [
        (FRAME + ATOMS + "\n\n" + FRAME + ATOMS + "\n").encode(),
        (FRAME + ATOMS + FRAME + ATOMS).encode().replace(b"\n", b"\r\n"),
        (FRAME + ATOMS + FRAME + ATOMS).encode().replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + (FRAME + ATOMS + FRAME + ATOMS).encode().rstrip(),
    ],
    ids=["blank lines", "CRLF", "CR", "BOM and no last line end"],
)
def test_line_ends_and_blank_lines_lose_no_frame(write: Write, content: bytes) -> None:
    frames = read_frames(write("x.xyz", content))
    assert [len(a) for a in frames] == [2, 2]
    assert frames[1].get_potential_energy() == -7.5


@pytest.mark.parametrize(
    ("name", "pack"), [("x.xyz.gz", gzip.compress), ("x.xyz.bz2", bz2.compress),
                       ("x.extxyz.xz", lzma.compress)],
)  # fmt: skip
def test_packed_files_are_unpacked(write: Write, name: str, pack: Callable[..., bytes]) -> None:
    assert len(read_frames(write(name, pack((FRAME + ATOMS).encode())))) == 1
    damaged = write(name, pack((FRAME + ATOMS).encode() * 9)[:-12])
    with pytest.raises(DataError, match="Download or copy it again"):
        read_frames(damaged)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "x.xyz has no structure."),
        ("H 0 0 0\n", "structure 1, line 1: expected the number of atoms, found 'H 0 0 0'"),
        (FRAME + ATOMS + "O 0 0 0\n", "structure 2, line 5: expected the number of atoms"),
        ("-1\n\n", "expected the number of atoms, found '-1'"),
        ("5\n\nH 0 0 0\n", "line 1: 5 atoms announced, and the file ends after 1."),
        ("2\n\nH 0 0 0\nH 0 0\n", "line 4: 3 columns where Properties='species:S:1:pos:R:3' n"),
        ("1\n\nH 0 0 x\n", "structure 1, line 1: could not convert string to float: 'x'"),
        ("1\n\nXx 0 0 0\n", "structure 1, line 1: 'Xx' is no element"),
        ("1\nProperties=species:S:1:pos:R\nH 0 0 0\n", "is no list of NAME:TYPE:COLUMNS"),
        ("1\nProperties=species:S:1:pos:R:-3\nH 0 0 0\n", "is no list of NAME:TYPE:COLUMNS"),
        ("1\nenergy=1 energy=2\nH 0 0 0\n", "line 2: the key 'energy' is there twice. Keep one."),
        ("1\nstress=\"1 2 3\"\nH 0 0 0\n", "stress has 3 values; it takes 6 or 9 numbers."),
        ("1\nstress=\"1 2 3 4 5 6 7 8 9\"\nH 0 0 0\n", "line 2: stress is not symmetric. Correct"),
        (b"1\n\xe9\nH 0 0 0\n", "line 2: byte 1 is no UTF-8. Save the file as UTF-8."),
        (b"1\n\nH 0 0 0\0\n", "line 3 has NUL bytes: this is no text file."),
        ("1\n\nH 0 0 0\n".encode("utf-16"), "is text in UTF-16. Save it as UTF-8."),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_line(
    write: Write, content: str | bytes, text: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_frames(write("x.xyz", content))
    assert text in str(caught.value)
    assert "x.xyz" in str(caught.value)


def test_more_columns_than_a_line_has_are_refused_before_memory_is_taken(write: Write) -> None:
    path = write("x.xyz", "1\nProperties=species:S:2147483648:pos:R:3 energy=-1\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"line 3: 4 columns where Properties=.* names 2,147,483,6"):
        read_frames(path)


@pytest.mark.parametrize(
    ("content", "variable"),
    [
        ("999999999999\n\nH 0 0 0\n", "ATOMS_PER_STRUCTURE"),
        ("1\n" + 2**20 * "a" + "\nH 0 0 0\n", "ATOMS_LINE_BYTES"),
    ],
)
def test_what_is_too_large_is_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch, content: str, variable: str
) -> None:
    path = write("x.xyz", content)
    with pytest.raises(UnsafeFileError, match=f"MOLFUN_MAX_{variable}="):
        read_frames(path)
    monkeypatch.setenv(f"MOLFUN_MAX_{variable}", "10T")
    if variable == "ATOMS_LINE_BYTES":
        assert len(read_frames(path)) == 1
    else:
        with pytest.raises(DataError, match="999,999,999,999 atoms announced, and the file ends"):
            read_frames(path)


@pytest.mark.parametrize("name", ["x.xyz", "x.xyz.gz", "x.xyz.bz2", "x.cif", "x.cif.gz"])
def test_the_size_of_files_has_a_cap(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(name[-3:].strip("."), bytes)
    path = write(name, pack(b"1\n\nH 0 0 0\n" * 100))
    monkeypatch.setenv("MOLFUN_MAX_ATOMS_BYTES", "999")
    with pytest.raises(UnsafeFileError, match="MOLFUN_MAX_ATOMS_BYTES="):
        read_frames(path)


def test_the_number_of_structures_has_a_cap(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("x.xyz", "1\n\nH 0 0 0\n" * 4)
    monkeypatch.setenv("MOLFUN_MAX_ATOMS_STRUCTURES", "3")
    with pytest.raises(UnsafeFileError, match="4 structures are more than the 3 allowed"):
        read_frames(path)


def test_a_bomb_of_gzip_is_refused(write: Write) -> None:
    packed = gzip.compress(b"1\n\n" + b" " * 2**25 + b"\n")
    with pytest.raises(UnsafeFileError, match="MOLFUN_MAX_ATOMS_GZIP_RATIO="):
        read_frames(write("x.xyz.gz", packed))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "1\nenergy=1\nH 0 0 0 9 9 9\n" * 2,
            "lines of atoms have 7 columns in 2 structures, of which Properties names 4: the others"
            " are not read. Name them, for example Properties=species:S:1:pos:R:3:forces:R:3.",
        ),
        (
            "1\n-76.4\nH 0 0 0\n" * 3,
            "3 structures with a number that has no key, which is not read (line 2: -76.4). If it "
            "is an energy, write energy=-76.4.",
        ),
        (
            '1\nenergy=1 lattice="5 0 0 0 5 0 0 0 5"\nH 0 0 0\n',
            "'lattice' in 1 structure is not read; ASE's name is 'Lattice'.",
        ),
    ],
)
def test_what_ase_passes_over_is_said(
    write: Write, caplog: pytest.LogCaptureFixture, content: str, text: str
) -> None:
    with caplog.at_level(logging.WARNING):
        read_frames(write("x.xyz", content))
    assert [text in message for message in caplog.messages] == [True]


def test_ids_that_are_not_unique_are_said(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("x.xyz", "1\nid=a energy=1\nH 0 0 0\n" * 2)
    with caplog.at_level(logging.WARNING):
        assert AtomsDataset.from_files(path).ids == ["1", "2"]
    assert "ids are not unique ('a'), so structures are called by their number" in caplog.text


LINES = st.sampled_from(
    [
        "1", "2", "0", "-1", "3 ", "10" * 9, "", " ", "H 0 0 0", "O 0 0 0 1 2 3", "He 1e999 nan 0",
        "Properties=species:S:1:pos:R:3 energy=1", "Properties=pos:R:3:species:S:1:forces:R:3",
        'Lattice="1 0 0 0 1 0 0 0 1" pbc="T T F" stress="1 2 3 4 5 6"', "pbc=T Lattice=3 id=",
        'virial="1 0 0 0 1 0 0 0 1" stress=T energy="-3 eV"', "VEC1 1 0 0", "VEC2 0 1",
        "energy=1e400 forces=_JSON [[1,2],[3]]", "Properties=Z:I:1:pos:R:3 move_mask:L:1",
        '"energy"=3 e\\"=1 {a}=[b] F=', "\x85\u2028٣", "Properties=" + ":R:9" * 50,
    ]
)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(st.one_of(LINES, st.text(max_size=20)), max_size=12), cut=st.integers(0, 40))
def test_any_text_is_read_or_refused(tmp_path: Path, lines: list[str], cut: int) -> None:
    content = "\n".join(lines).encode("utf-8", "replace")
    _read_or_refuse(tmp_path / "x.xyz", content[: len(content) - cut])


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.integers(0, 2 * len(FRAME + ATOMS) - 1),
    piece=st.one_of(st.binary(max_size=3), LINES.map(str.encode)),
    gone=st.integers(0, 9),
    packed=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, place: int, piece: bytes, gone: int, packed: bool
) -> None:
    whole = ((FRAME + ATOMS) * 2).encode()
    whole = gzip.compress(whole, mtime=0) if packed else whole
    content = whole[:place] + piece + whole[place + gone :]
    _read_or_refuse(tmp_path / ("x.xyz.gz" if packed else "x.xyz"), content)


def _read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        AtomsDataset.from_files(path, require_target=False)
        AtomsDataset.from_files(path, virial_key="virial", optional=["virial"])
    except MolfunError as caught:
        error: MolfunError | None = caught
    else:
        error = None
    assert error is None or str(path) in str(error)
