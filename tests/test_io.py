"""Files that survive a crash and cannot bite."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from molfun import _io
from molfun.errors import CheckpointError, MolfunError, RunError, UnsafeFileError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Writing


def test_text_and_json_are_written_and_folders_made(tmp_path):
    _io.write_text(tmp_path / "deep" / "er" / "ünï.txt", "größe\n")
    assert (tmp_path / "deep" / "er" / "ünï.txt").read_text(encoding="utf-8") == "größe\n"
    _io.write_json(tmp_path / "a.json", {"b": 1, "a": [Path("x")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": ["x"], "b": 1}


def test_written_files_have_the_usual_rights(tmp_path):
    _io.write_text(tmp_path / "file", "x")
    with _io.atomic_directory(tmp_path / "folder"):
        pass
    (tmp_path / "plain").touch()
    (tmp_path / "plain_folder").mkdir()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    folders = (tmp_path / "folder", tmp_path / "plain_folder")
    assert len({f.stat().st_mode for f in folders}) == 1


def test_an_error_in_the_middle_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with _io.atomic_path(path) as temporary:
            temporary.write_text("half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_error_in_the_middle_keeps_the_old_folder(tmp_path):
    path = tmp_path / "folder"
    with _io.atomic_directory(path) as temporary:
        (temporary / "a").write_text("old")

    def write_half() -> None:
        with _io.atomic_directory(path) as temporary:
            (temporary / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("with_exchange", [True, False])
def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path, monkeypatch, with_exchange):
    if not with_exchange:

        class NoSuchCall:
            pass

        monkeypatch.setattr(_io.ctypes, "CDLL", lambda *_, **__: NoSuchCall())
    path = tmp_path / "folder"
    for text in ("one", "two", "three"):
        with _io.atomic_directory(path) as temporary:
            (temporary / text).write_text(text)
        assert names(path) == [text]
        with _io.atomic_directory(path) as temporary:
            (temporary / text).write_text(text)
    assert names(tmp_path) == ["folder"]


def test_what_killed_processes_left_is_swept(tmp_path):
    left = tmp_path / ".folder.abc123.tmp"
    left.mkdir()
    (left / "half").write_text("x")
    other = tmp_path / ".another.abc.tmp"
    other.mkdir()
    with _io.atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("x")
    assert names(tmp_path) == [".another.abc.tmp", "folder"]


WRITE_FOREVER = """
import sys
from molfun._io import write_text
print("ready", flush=True)
n = 0
while True:
    n += 1
    write_text(sys.argv[1], f"{n}\\n" * 20000)
"""


def test_kill_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not path.exists():
                time.sleep(0.01)
            time.sleep(random.Random(0).uniform(0.02, 0.1))
            writer.send_signal(signal.SIGKILL)
        lines = path.read_text().splitlines()
        assert len(lines) == 20000
        assert len(set(lines)) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_one_clear_error(tmp_path, code):
    path = tmp_path / "not" / "there" / "yet"
    with (
        pytest.raises(RunError, match=r"Disk full while writing .*yet \(\d+ MB free\)\. Free some"),
        _io.disk_errors(path),
    ):
        raise OSError(code, "whatever the system says")


@pytest.mark.parametrize("text", ["unexpected pos 64", "file write failed", "iostream error"])
def test_torchs_own_words_for_a_full_disk_are_known(tmp_path, text):
    with pytest.raises(RunError, match="Disk full while writing"), _io.disk_errors(tmp_path):
        raise RuntimeError(text)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_without_rights_is_one_clear_error(tmp_path, code):
    with (
        pytest.raises(
            RunError, match=r"Cannot write .*file: .*\. Choose a folder you may write to"
        ),
        _io.disk_errors(tmp_path / "file"),
    ):
        raise OSError(code, os.strerror(code))


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(OSError, match="Input/output"), _io.disk_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(RuntimeError, match="something else"), _io.disk_errors(tmp_path):
        raise RuntimeError("something else")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((_io.os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(RunError, match="Disk full"):
        _io.write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


# Reading


def test_torch_files_round_trip(tmp_path):
    content = {"a": torch.arange(3), "b": [1, 2.5, None, "x", True], "c": {"d": (1, 2)}}
    _io.save_torch(tmp_path / "x.pt", content)
    read = _io.load_torch(tmp_path / "x.pt")
    assert torch.equal(read.pop("a"), content.pop("a"))
    assert read == content


def test_safetensors_round_trip_from_any_layout(tmp_path):
    shared = torch.randn(4, 6)
    tensors = {"transposed": shared.T, "row": shared[1], "half": shared.half()}
    _io.save_safetensors(tmp_path / "x.safetensors", tensors, {"by": "test"})
    read = _io.load_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], tensors[k]) for k in tensors)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"No such file: .*x\.pt\."):
        _io.load_torch(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"No such file: .*x\.safetensors\."):
        _io.load_safetensors(tmp_path / "x.safetensors")


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused(tmp_path, zipped):
    torch.save(
        {"x": Canary(tmp_path / "canary")},
        tmp_path / "x.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UnsafeFileError, match=r"Refused .*x\.pt: it holds more than tensors") as e:
        _io.load_torch(tmp_path / "x.pt")
    assert "weights_only" not in str(e.value)
    assert names(tmp_path) == ["x.pt"]


def test_a_file_of_foreign_objects_is_refused(tmp_path):
    torch.save({"x": Path("y")}, tmp_path / "x.pt")
    with pytest.raises(UnsafeFileError, match="it holds more than tensors and plain values"):
        _io.load_torch(tmp_path / "x.pt")


def test_a_file_that_inflates_is_refused_before_it_is_read(tmp_path):
    torch.save({"x": torch.zeros(2**24)}, tmp_path / "flat.pt")
    with (
        zipfile.ZipFile(tmp_path / "flat.pt") as flat,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in flat.namelist():
            bomb.writestr(entry, flat.read(entry))
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20
    with pytest.raises(UnsafeFileError, match=r"bytes on disk unpack to 67,\d+,\d+\. torch\.save"):
        _io.load_torch(tmp_path / "bomb.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_happens_to_a_torch_file_the_error_is_ours(tmp_path, zipped):
    path = tmp_path / "x.pt"
    torch.save(
        {"a": torch.zeros(3, 4), "b": {"c": [1, 2.0, "x", None]}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    whole = path.read_bytes()
    rng = random.Random(0)
    texts = []
    for i in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if i % 5 == 0 else content)
        try:
            _io.load_torch(path)
        except MolfunError as error:
            texts.append(str(error))
    assert len(texts) > 100
    assert all(str(path) in text and "weights_only" not in text for text in texts)


def test_whatever_happens_to_a_safetensors_file_the_error_is_ours(tmp_path):
    path = tmp_path / "x.safetensors"
    _io.save_safetensors(path, {"a": torch.zeros(3, 4), "b": torch.ones(2)})
    whole = path.read_bytes()
    rng = random.Random(0)
    texts = []
    for i in range(400):
        content = bytearray(whole)
        content[rng.randrange(160)] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if i % 5 == 0 else content)
        try:
            _io.load_safetensors(path)
        except MolfunError as error:
            texts.append(str(error))
    assert len(texts) > 100
    assert all(str(path) in text for text in texts)


# Locks


HOLD = """
import sys, time
from molfun._io import DirectoryLock
with DirectoryLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_and_a_dead_one_is_not_waited_for(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=f"is in use by process {holder.pid}. Wait for it, stop"),
            _io.DirectoryLock(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with _io.DirectoryLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_can_be_taken_again_by_its_holder_and_after_it(tmp_path):
    with _io.DirectoryLock(tmp_path), _io.DirectoryLock(tmp_path / ".." / tmp_path.name):
        pass
    with _io.DirectoryLock(tmp_path):
        pass
