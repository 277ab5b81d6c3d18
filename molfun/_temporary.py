"""Temporary names of files that are being written, and removal of what killed writers left.

A name identifies its writer: ``.state.pt.<machine>-<pid>-<start>.<random>.tmp``. So another process
can tell that the writer is gone and remove the file, and never removes that of a live writer.
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
"""Age at which a file from another machine counts as a leftover.

Whether its writer lives cannot be checked from here.
"""
_LONGEST_NAME = 150
"""Bytes of the final name that are kept in the temporary one; file systems allow 255 in all."""
_NAME = re.compile(
    r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)\.[a-z0-9_]{8}\.tmp"
)


def new_file(path: Path) -> Path:
    """Make an empty temporary file next to `path`."""
    # in the same folder, since a rename is atomic only within one file system
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
    os.close(handle)
    return Path(name)


def new_folder(path: Path) -> Path:
    """Make an empty temporary folder next to `path`."""
    return Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))


def sweep(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Remove temporary files of killed writers from `folder`.

    Parameters
    ----------
    folder
        Folder to search; its sub-folders are not searched.
    name
        Final name of the files to remove; None for all.
    alone
        Whether the caller holds the lock of the folder, so that no other process writes there.
    """
    for path, match in _temporary(folder):
        if name is not None and match["name"] != _short(name):
            continue
        with contextlib.suppress(OSError):  # another process swept it, or finished it
            if (alone and not _is_own(match)) or _is_left(path, match):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def final(path: Path) -> Path:
    """Return the path with final names in place of temporary ones, for messages."""
    names = [match["name"] if (match := _NAME.fullmatch(part)) else part for part in path.parts]
    return Path(*names)


def _temporary(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    try:
        entries = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".tmp")]
    except OSError:
        return  # missing, or not readable
    for entry in sorted(entries):
        match = _NAME.fullmatch(entry)
        if match is not None:
            yield folder / entry, match


def _short(name: str) -> str:
    """Return the part of a final name that fits into a temporary one."""
    return os.fsencode(name)[:_LONGEST_NAME].decode("utf-8", "ignore")


def _prefix(path: Path) -> str:
    return f".{_short(path.name)}.{_machine()}-{os.getpid()}-{_start_of(os.getpid())}."


def _is_own(match: re.Match[str]) -> bool:
    return match["machine"] == _machine() and int(match["pid"]) == os.getpid()


def _is_left(path: Path, match: re.Match[str]) -> bool:
    """Return whether the writer of a temporary file is gone.

    A process number alone is not enough: numbers are reused, so the start time must match as well.
    """
    if match["machine"] != _machine():
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    started = _start_of(int(match["pid"]))
    return started is None or started != int(match["start"])


@functools.cache
def _machine() -> str:
    """Return a short digest of the space of process numbers: host, boot and PID namespace.

    Two containers on one host both have a process 1, and numbers start again after a reboot.
    """
    parts = [os.uname().nodename]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def _start_of(pid: int) -> int | None:
    """Return the start time of a process in clock ticks; None if there is none, 0 if unknown."""
    if not Path("/proc/self").is_dir():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    try:
        # proc(5): the name in brackets may hold spaces and brackets; field 22 is the 20th after it
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
