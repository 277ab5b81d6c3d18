"""Names of files that are being written, and what remains of them when a writer is killed.

A name tells who writes: ``.state.pt.<machine>-<pid>-<start>.<random>.tmp``. So another process can
see that the writer is gone and remove its leftover, and never takes the file of a live one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 86400.0
"""Age at which a file of a process on another machine, which nobody here can look for, counts as
left over."""
_LONGEST_NAME = 150
"""Bytes of the final name that are part of the temporary one; file systems allow 255 in all."""
_NAME = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)\.[a-z0-9_]{8}\.tmp"
)


def new_file(path: Path) -> Path:
    """Make an empty temporary file beside `path`."""
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
    os.close(handle)
    return Path(name)


def new_folder(path: Path) -> Path:
    """Make an empty temporary folder beside `path`."""
    return Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))


def sweep(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Remove what killed writers left in `folder`.

    Parameters
    ----------
    folder
        Where to look; its sub-folders are left alone.
    name
        Final name of the files to look for; None takes all.
    alone
        Whether the caller holds the lock of the folder, so that nobody else can be writing there.
    """
    for path, match in _temporary(folder):
        if name is not None and match["name"] != _short(name):
            continue
        with contextlib.suppress(OSError):  # another process swept it, or finished it
            if (alone and not _is_own(match)) or _is_left(path, match):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def final(path: Path) -> Path:
    """The path without temporary names, as a user knows it."""
    names = [match["name"] if (match := _NAME.fullmatch(part)) else part for part in path.parts]
    return Path(*names)


def _temporary(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    try:
        entries = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".tmp")]
    except OSError:
        return  # not there, or not to be read
    for entry in sorted(entries):
        match = _NAME.fullmatch(entry)
        if match is not None:
            yield folder / entry, match


def _short(name: str) -> str:
    """The part of a final name that fits into a temporary one."""
    return os.fsencode(name)[:_LONGEST_NAME].decode("utf-8", "ignore")


def _prefix(path: Path) -> str:
    return f".{_short(path.name)}.{_machine()}-{os.getpid()}-{_start_of(os.getpid())}."


def _is_own(match: re.Match[str]) -> bool:
    return match["machine"] == _machine() and int(match["pid"]) == os.getpid()


def _is_left(path: Path, match: re.Match[str]) -> bool:
    """Return whether the writer of a temporary file is gone."""
    if match["machine"] != _machine():
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    started = _start_of(int(match["pid"]))
    return started is None or started != int(match["start"])


@functools.cache
def _machine() -> str:
    """Short digest of what process numbers are counted in: this boot, this container."""
    parts = [os.uname().nodename]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks; None if there is none; 0 where nobody tells."""
    if not Path("/proc/self").is_dir():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    try:
        # the name in brackets may hold anything; the start is the 20th field after it
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
