"""End all processes of a run when one of them ends, and say which one it was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from torch import distributed

from molfun.errors import RunError
from molfun.parallel.ranks import Ranks

GRACE = 30.0
"""Seconds in which a process may end by itself after another has ended. On GPUs it may wait in a
message for ever; on CPUs the message fails at once."""
ROLL_CALL = 3.0
"""Seconds in which processes that are still there answer."""
EVERY = 1.0
"""Seconds between two looks at the other processes."""
_SIGNS = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out")
"""Words in the error of a message to a process that is not there any more."""


@contextlib.contextmanager
def named_failures(
    ranks: Ranks, advice: str = "A run with a folder goes on from its last state (--resume)."
) -> Iterator[None]:
    """Turn the failure of a message into one line that names the process that ended.

    Parameters
    ----------
    ranks
        This process among the others.
    advice
        What to do then, for the end of the line.

    Raises
    ------
    RunError
        If another process of the run ended.
    """
    if ranks.size == 1:
        yield
        return
    try:
        yield
    except RuntimeError as error:
        if not _is_of_message(error):
            raise
        ended = _not_there(ranks)
        who = ", ".join(map(str, ended)) or "unknown"
        raise RunError(
            f"Process {who} of {ranks.size} (from 0) ended, and the others with it; its own output "
            f"says why. {advice}"
        ) from error


def _is_of_message(error: RuntimeError) -> bool:
    known = getattr(distributed, "DistError", ())
    return isinstance(error, known) or any(sign in str(error).lower() for sign in _SIGNS)


def _not_there(ranks: Ranks) -> list[int]:
    """Return the processes that do not answer; the first one holds the store by which they do."""
    store = distributed.distributed_c10d._get_default_store()
    keys = {index: f"molfun/here/{index}" for index in range(ranks.size)}
    try:
        store.set(keys[ranks.index], "1")
        end = time.monotonic() + ROLL_CALL
        while True:
            missing = [index for index, key in keys.items() if not store.check([key])]
            if not missing or time.monotonic() > end:
                return missing
            time.sleep(0.1)
    except RuntimeError:
        return [0]


def watch_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process and all of its children if one fails and the others hang."""

    def watch() -> None:
        while True:
            time.sleep(EVERY)
            codes = [child.poll() for child in children]
            failed = [index for index, code in enumerate(codes, start=1) if code]
            if failed:
                time.sleep(GRACE)
                code = codes[failed[0] - 1]
                _tell(f"Process {failed[0]} ended with code {code}; the others too.")
                for child in children:
                    child.kill()
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="molfun-children").start()


def watch_parent() -> None:
    """End this process if the one that started it has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        time.sleep(GRACE)
        _tell("Process 0 ended; this one too.")
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="molfun-parent").start()


def _tell(text: str) -> None:
    # the logger's handlers may be held by a thread that hangs
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
