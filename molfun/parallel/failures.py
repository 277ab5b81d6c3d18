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
"""Seconds in which a process on GPUs may end by itself after another has ended: there it may wait
in a message for ever. On CPUs the message fails at once."""
ROLL_CALL = 3.0
"""Seconds in which processes that are still there answer."""
EVERY = 1.0
"""Seconds between two looks at the other processes."""
_SENDERS = ("gloo", "nccl", "c10d", "socket")
"""Words in the text of an error of a message between processes, as it names its source file."""
_SIGNS = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out")
"""Words in it if a process is not there any more."""
_ending = threading.Event()


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
        how = "does not answer" if "timed out" in str(error).lower() else "ended"
        raise RunError(
            f"Process {who} of {ranks.size} (from 0) {how}, and the others end with it; its own "
            f"output says why, unless it was killed. {advice}"
        ) from error


def _is_of_message(error: RuntimeError) -> bool:
    text = str(error).lower()
    of_sender = any(word in text for word in _SENDERS)
    known = getattr(distributed, "DistError", ())
    return isinstance(error, known) or (of_sender and any(sign in text for sign in _SIGNS))


def let_end() -> None:
    """Note that this process waits for no other any more, and may take its time to end."""
    _ending.set()


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
    # of all machines: those of one follow each other
    first = int(os.environ.get("NODE_RANK", "0")) * (len(children) + 1)

    def watch() -> None:
        while True:
            time.sleep(EVERY)
            codes = [child.poll() for child in children]
            failed = [index for index, code in enumerate(codes, start=1) if code]
            if not failed:
                continue
            joined = distributed.is_initialized()
            if not joined or _hangs():
                when = "" if joined else " before it had joined"
                who, code = first + failed[0], codes[failed[0] - 1]
                _tell(f"Process {who} ended with code {code}{when}; the others too.")
                _end_all(children, at_once=joined)
            return

    threading.Thread(target=watch, daemon=True, name="molfun-children").start()


def _end_all(children: Sequence[subprocess.Popen[bytes]], *, at_once: bool) -> None:
    """End the children and this process; `at_once` if it hangs, so that nothing can hold it."""
    for child in children:
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL) if at_once else os._exit(1)


def _hangs() -> bool:
    """Wait for a while, and return whether this process may still wait for one that is gone."""
    time.sleep(GRACE)  # it may have noticed, and say more about it
    return not _ending.is_set() and distributed.get_backend() != "gloo"


def watch_parent(parent: int) -> None:
    """End this process if the one that started it, by its number in the system, has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        if distributed.is_initialized():
            time.sleep(GRACE)
        _tell("The process that started this one ended; this one too.")
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="molfun-parent").start()


def _tell(text: str) -> None:
    # the logger's handlers may be held by a thread that hangs
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
