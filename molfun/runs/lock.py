"""Lock that keeps two processes out of one run folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, ClassVar

from molfun._io import disk_errors
from molfun.errors import RunError


class DirectoryLock:
    """Context that holds the lock of a run folder.

    The lock is the kernel's (``lockf``, POSIX record locks). It ends with the process in whatever
    way that ends, and forked loader workers do not inherit it, unlike ``flock``. A lock file left
    by a dead process is taken over.
    """

    _taken: ClassVar[set[str]] = set()

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / ".lock"
        self._place = os.path.realpath(self.path)  # unlike Path.resolve, no error on link loops
        self._file: IO[str] | None = None

    def __enter__(self) -> DirectoryLock:
        folder = self.path.parent
        if os.path.lexists(folder) and not os.path.isdir(folder):  # noqa: PTH112  # no error on loops
            raise RunError(f"{folder} is not a folder. Choose another output folder.")
        if self._place in self._taken:
            # a POSIX lock does not exclude its own process, and closing any handle would release it
            raise self._in_use(os.getpid())
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # "a+" keeps the content: it names the holder, should the lock be taken
            file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise self._in_use(holder) from None
        # the file stays when the lock ends: removing it could remove that of the next holder
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        self._taken.add(self._place)
        return self

    def _in_use(self, holder: int | str) -> RunError:
        return RunError(
            f"{self.path.parent} is in use by process {holder}. Wait for it, stop it, or choose "
            f"another output folder."
        )

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._taken.discard(self._place)
            self._file.close()
            self._file = None
