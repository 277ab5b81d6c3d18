"""Files that survive a crash and cannot bite."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import warm

from molfun import _io, _temporary
from molfun.errors import CheckpointError, MolfunError, RunError, UnsafeFileError
from molfun.runs.folder import DirectoryLock


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Writing


def test_text_and_json_are_written_and_folders_made(tmp_path):
    _io.write_text(tmp_path / "deep" / "er" / "ünï.txt", "größe\n")
    assert (tmp_path / "deep" / "er" / "ünï.txt").read_text(encoding="utf-8") == "größe\n"
    _io.write_json(tmp_path / "a.json", {"b": 1, "a": [Path("x")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": ["x"], "b": 1}
    numbers = {"a": [1.5, float("nan")], "b": {"c": (float("inf"), -float("inf"))}}
    _io.write_json(tmp_path / "a.json", numbers)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": [1.5, None], "b": {"c": [None, None]}}


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


DIE_IN_A_WRITE = """
import os, signal, sys
from pathlib import Path
from molfun import _io
writers = [w(Path(sys.argv[1]) / w.__name__) for w in (_io.atomic_path, _io.atomic_directory)]
for writer in writers:
    temporary = writer.__enter__()
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept_by_the_next_that_writes_there(tmp_path):
    subprocess.run([sys.executable, "-c", DIE_IN_A_WRITE, str(tmp_path)], check=False)
    assert len(names(tmp_path)) == 2
    assert all(name.endswith(".tmp") for name in names(tmp_path))
    _io.write_text(tmp_path / "atomic_path", "x")
    with _io.atomic_directory(tmp_path / "atomic_directory"):
        pass
    assert names(tmp_path) == ["atomic_directory", "atomic_path"]


def test_files_of_live_processes_of_other_machines_and_of_others_are_not_swept(tmp_path):
    with _io.atomic_path(tmp_path / "a") as own:
        live = own.name
        foreign = ".a.ffffffff-1-1.abcdefgh.tmp"
        others = [".a.abcdefgh.tmp", ".a.tmp", "a.tmp", ".a.txt.swp", f".b{live[2:]}"]
        for name in [foreign, *others]:
            (tmp_path / name).touch()
        _temporary.sweep(tmp_path)
        assert {live, foreign, *others} <= set(names(tmp_path))
        old = time.time() - _temporary.STALE_SECONDS - 1
        os.utime(tmp_path / foreign, (old, old))
        _temporary.sweep(tmp_path, "b")
        assert foreign in names(tmp_path)
        _temporary.sweep(tmp_path, "a")
        assert foreign not in names(tmp_path)
        (tmp_path / foreign).touch()
        _temporary.sweep(tmp_path, alone=True)  # nobody else can be writing there
        assert set(names(tmp_path)) == {live, *others}


def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path):
    machine = _temporary.new_file(tmp_path / "a").name.split(".")[2].split("-")[0]
    left = tmp_path / f".b.{machine}-{os.getpid()}-1.abcdefgh.tmp"
    left.touch()
    _temporary.sweep(tmp_path, "b")
    assert not left.exists()


@pytest.mark.parametrize("name", ["n" * 240, "ü" * 120, "a[b]*?.x", " .a", "a\nb"])
def test_names_that_are_allowed_can_be_written(tmp_path, name):
    _io.write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n" * 300, "File name too long. Choose a shorter name."),
        ("file/x", "Not a directory. Choose another folder."),
        ("loop/x", "A symbolic link leads back to itself"),
    ],
    ids=["long", "file", "loop"],
)
def test_places_that_cannot_be_are_one_clear_error(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunError, match=r"^Cannot write .*") as caught:
        _io.write_text(tmp_path / name, "x")
    assert reason in str(caught.value)
    with pytest.raises(RunError, match=r"^Cannot write "), DirectoryLock(tmp_path / name):
        pass


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


def test_a_full_disk_is_one_clear_error(tmp_path):
    path = tmp_path / "not" / "there" / "yet"
    with (
        pytest.raises(RunError, match=r"Disk full while writing .*yet \(\d+ MB free\)\. Free some"),
        _io.disk_errors(path),
    ):
        raise OSError(errno.ENOSPC, "whatever the system says")


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


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EIO, "Input/output error. The disk or network drive failed. The previous version"),
        (errno.EMFILE, "Too many open files. Choose another folder."),
    ],
)
def test_all_errors_of_the_system_are_of_our_family(tmp_path, code, text):
    with (
        pytest.raises(RunError, match=r"^Cannot write .*file: ") as e,
        _io.disk_errors(tmp_path / "file"),
    ):
        raise OSError(code, os.strerror(code))
    assert text in str(e.value)


def test_a_quota_is_no_full_disk(tmp_path):
    with pytest.raises(RunError, match="Your disk quota is used up"), _io.disk_errors(tmp_path):
        raise OSError(errno.EDQUOT, "whatever the system says")


def test_errors_that_are_not_the_disks_pass_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), _io.disk_errors(tmp_path):
        raise RuntimeError("something else")


WRITE_TOO_MUCH = """
import resource, sys, torch
from molfun import _io
from molfun.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
tensors = {"a": torch.ones(2**16)}
for write in (_io.save_torch, _io.save_safetensors, lambda p, _: _io.write_text(p, "x" * 2**17)):
    try:
        write(sys.argv[1], tensors)
    except RunError as error:
        print(error)
"""


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    done = warm.run("-c", WRITE_TOO_MUCH, path, check=True)
    assert done.stdout.splitlines() == 3 * [
        f"The file-size limit of 65,536 bytes (ulimit -f) does not allow a file as large as {path}."
        f" Raise the limit or choose another folder; the previous version is intact."
    ]
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(("code", "text"), [(errno.ENOSPC, "Disk full"), (errno.EIO, "Input/out")])
def test_a_failing_disk_keeps_the_old_file(tmp_path, monkeypatch, call, code, text):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((_io.os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(RunError, match=text):
        _io.write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


# Checksums


def write_torch(path: Path) -> None:
    _io.save_torch(path, {"a": torch.arange(12.0), "b": [1, "x"]})


def write_tensors(path: Path) -> None:
    _io.save_safetensors(path, {"a": torch.arange(12.0)}, {"made": "by", "a": "test"})


@pytest.mark.parametrize(
    ("write", "read"),
    [(write_torch, _io.load_torch), (write_tensors, _io.load_safetensors)],
)
def test_every_flipped_bit_is_found(tmp_path, write, read):
    path = tmp_path / "file"
    write(path)
    whole, right = path.read_bytes(), repr(read(path))
    passed = []
    for i in range(0, 8 * len(whole), 11):
        content = bytearray(whole)
        content[i // 8] ^= 1 << (i % 8)
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            assert repr(read(path)) == right, f"bit {i} changed the content"
            passed.append(i)
    # in the name of the checksum itself, or in blanks between header and data
    assert len(passed) < 20


def test_files_without_a_checksum_are_read_where_none_is_asked_for(tmp_path):
    from safetensors.torch import save_file

    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    assert not _io.is_sealed(tmp_path / "x.pt")
    assert torch.equal(_io.load_torch(tmp_path / "x.pt")["a"], torch.ones(2))
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    assert torch.equal(_io.load_safetensors(path)["a"], torch.ones(2))
    with pytest.raises(CheckpointError, match=r"is damaged \(checksum\): it carries none\. Copy"):
        _io.load_safetensors(path, sealed=True)


def test_a_file_under_the_name_of_another_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    _io.save_safetensors(path, {"a": torch.ones(2)}, key="one")
    assert torch.equal(_io.load_safetensors(path, key="one")["a"], torch.ones(2))
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged \(checksum\)"):
        _io.load_safetensors(path, key="two")


def test_others_read_what_carries_a_checksum(tmp_path):
    from safetensors.torch import load_file

    write_torch(tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True)["a"], torch.arange(12.0))
    write_tensors(tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.arange(12.0))


def test_equal_content_gives_equal_bytes(tmp_path):
    whole, text = torch.arange(12.0).reshape(3, 4), "".join(["t", "ext"])
    one = {"a": whole[1], "b": whole.T, "c": ["text", text], "d": OrderedDict(x=1)}
    two = {"a": torch.arange(4.0, 8), "b": whole.T.contiguous(), "c": ["text", "text"]}
    _io.save_torch(tmp_path / "one.pt", one)
    _io.save_torch(tmp_path / "two.pt", {**two, "d": {"x": 1}})
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    texts = {f"k{i}": str(i) for i in range(20)}
    # hashes of texts differ from those of another interpreter
    _io.save_safetensors(tmp_path / "one", {"a": torch.ones(2)}, texts)
    turned = json.dumps(dict(reversed(texts.items())))
    command = [sys.executable, "-c", WRITE_TEXTS, str(tmp_path / "two"), turned]
    subprocess.run(command, check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


WRITE_TEXTS = """
import json, sys, torch
from molfun import _io
_io.save_safetensors(sys.argv[1], {"a": torch.ones(2)}, json.loads(sys.argv[2]))
"""


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
from molfun.runs.folder import DirectoryLock
with DirectoryLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_and_a_dead_one_is_not_waited_for(tmp_path):
    with warm.Process("-c", HOLD, tmp_path, output=tmp_path / "said") as holder:
        while "held" not in holder.stdout():
            assert holder.poll() is None, holder.stderr()
            time.sleep(0.01)
        with (
            pytest.raises(RunError, match=f"is in use by process {holder.pid}. Wait for it, stop"),
            DirectoryLock(tmp_path),
        ):
            pass
        holder.kill()
    with DirectoryLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_taken_once_at_a_time_also_by_one_process(tmp_path):
    again = DirectoryLock(tmp_path / ".." / tmp_path.name)
    with DirectoryLock(tmp_path):
        with (
            pytest.raises(RunError, match=f"is in use by process {os.getpid()}. Wait for it, st"),
            again,
        ):
            pass
        # a refusal gives nothing free: other processes are still kept out
        other = warm.run("-c", HOLD, tmp_path)
        assert f"is in use by process {os.getpid()}" in other.stderr
    with again:
        pass
