"""Locks by which processes share a study: the kernel's, which end with their process.

POSIX record locks (``lockf``) work between machines on network file systems that support locks
(NFS 4, or NFS 3 with lockd), and after ``kill -9`` nothing is left that anyone must wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from molfun._io import disk_errors

_ALONE = 0
"""Byte that one process holds while it takes or ends a trial; those of the trials follow."""


class Claims:
    """Claims on the trials of a study, as locks on single bytes of a file.

    A trial that is running in storage and claimed by nobody was left by a process that died.

    Parameters
    ----------
    path
        The file; it stays empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Claims:
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._file is not None
        self._file.close()  # which ends all locks of this process on the file
        self._file = None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process take or end a trial for a ``with`` block."""
        self._lock(fcntl.LOCK_EX, _ALONE)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _ALONE)

    def take(self, number: int) -> bool:
        """Claim a trial; return whether nobody else has."""
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, number + 1)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def drop(self, number: int) -> None:
        """Give up the claim on a trial."""
        self._lock(fcntl.LOCK_UN, number + 1)

    def _lock(self, how: int, byte: int) -> None:
        assert self._file is not None
        fcntl.lockf(self._file, how, 1, byte)


class FileLock:
    """Lock on a whole file, for a ``with`` block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> None:
        self._file = self._path.open("ab")
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
