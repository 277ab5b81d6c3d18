"""Locks by which processes share a study: the kernel's, which end with their process.

POSIX record locks (``lockf``) work between machines on network file systems that support locks
(NFS 4, or NFS 3 with lockd), and after ``kill -9`` nothing is left that anyone must wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, ClassVar

from molfun._io import disk_errors

_ALONE = 0
"""Byte that one process holds while it takes or ends a trial; those of the trials follow."""


@dataclass
class _Open:
    """A file as all claims of this process have it open.

    The kernel's locks belong to the process: they exclude none of its threads, and to close the
    file once would end them all.
    """

    file: IO[bytes]
    users: int = 0
    held: set[int] = field(default_factory=set)
    alone: threading.Lock = field(default_factory=threading.Lock)


class Claims:
    """Claims on the trials of a study, as locks on single bytes of a file.

    A trial that is running in storage and claimed by nobody was left by a process that died.

    Parameters
    ----------
    path
        The file; it stays empty.
    """

    _opened: ClassVar[dict[str, _Open]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = os.path.realpath(path)
        self._own: set[int] = set()

    def __enter__(self) -> Claims:
        with disk_errors(self._path), self._guard:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._place not in self._opened:
                self._opened[self._place] = _Open(self._path.open("ab"))
            self._file = self._opened[self._place]
            self._file.users += 1
        return self

    def __exit__(self, *exc: object) -> None:
        for number in list(self._own):
            self.drop(number)
        with self._guard:
            self._file.users -= 1
            if not self._file.users:
                self._opened.pop(self._place).file.close()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all others from taking or ending a trial during a ``with`` block."""
        with self._file.alone:
            self._lock(fcntl.LOCK_EX, _ALONE)
            try:
                yield
            finally:
                self._lock(fcntl.LOCK_UN, _ALONE)

    def take(self, number: int) -> bool:
        """Claim a trial; return whether nobody else has."""
        with self._guard:
            if number in self._file.held:
                return False
            try:
                self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, number + 1)
            except (BlockingIOError, PermissionError):
                return False
            self._file.held.add(number)
        self._own.add(number)
        return True

    def drop(self, number: int) -> None:
        """Give up the claim on a trial."""
        with self._guard:
            self._lock(fcntl.LOCK_UN, number + 1)
            self._file.held.discard(number)
        self._own.discard(number)

    def _lock(self, how: int, byte: int) -> None:
        fcntl.lockf(self._file.file, how, 1, byte)


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
