"""Stop a run between two batches on SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Raised when SIGINT or SIGTERM ended a fit, after its state was written.

    Attributes
    ----------
    exit_code
        128 plus the signal's number: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        # as shells report a process that a signal ended
        self.exit_code = 128 + number


class SignalWatch:
    """Record the first SIGINT or SIGTERM instead of ending the process; a second one ends it.

    Does nothing outside of the main thread, where Python cannot set handlers.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if previous is not None:  # a handler set outside of Python cannot be restored
                    self._previous[number] = previous
                    signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self._restore()  # so that a second Ctrl-C works if a batch takes minutes

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __exit__(self, *exc: object) -> None:
        self._restore()
