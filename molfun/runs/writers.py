"""Lock of a folder into which all processes of a command write."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from molfun.errors import RunError
from molfun.parallel.ranks import Ranks
from molfun.runs.folder import DirectoryLock

WRITERS = ".writers"
"""File that the further processes of a command lock together while they write into a folder."""
_LINGERS = 90.0
"""Seconds in which processes end whose command was killed, see `molfun.parallel.failures`."""


@contextlib.contextmanager
def held_by_all(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the lock of a folder in the first process of a command, for others that write as well.

    When the first is killed, its lock ends at once, and the others end some seconds later. Whoever
    takes the folder next waits for them, or they could remove what it has written.

    Raises
    ------
    RunError
        If the folder is in use.
    """
    if not ranks.is_first:
        ranks.wait()
        with (folder / WRITERS).open("a+") as file:
            fcntl.lockf(file, fcntl.LOCK_SH)
            yield
        return
    with DirectoryLock(folder):
        _wait_for_writers(folder / WRITERS)
        ranks.wait()
        yield


def _wait_for_writers(path: Path) -> None:
    if not path.exists():
        return
    end = time.monotonic() + _LINGERS
    with path.open("a+") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() > end:
                    raise RunError(
                        f"{path.parent} is in use by further processes of a stopped command. Stop "
                        f"them, or choose another output folder."
                    ) from None
                time.sleep(0.2)
            else:
                return
