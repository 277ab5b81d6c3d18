"""Stop a run between two batches on a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPS = tuple(
    int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""Signals that end a run after its state was written; SLURM sends the last before time is up."""


class Interrupted(KeyboardInterrupt):
    """Raised when a signal ended a fit, after its state was written.

    Attributes
    ----------
    exit_code
        128 plus the signal's number: 130 for SIGINT, 138 for SIGUSR1, 143 for SIGTERM.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        # as shells report a process that a signal ended
        self.exit_code = 128 + number

    @classmethod
    def of(cls, number: int, *, epoch: int, steps: int, kept: bool) -> Interrupted:
        """Return the error of a fit that a signal stopped, and say whether its state is on disk."""
        hint = "Resume to go on." if kept else "No output_dir: nothing was kept."
        return cls(
            number,
            f"Stopped by signal {number} in epoch {epoch} after {steps} optimizer steps. {hint}",
        )


@dataclass(frozen=True)
class Asked:
    """Requests of the processes of a run between two optimizer steps.

    Parameters
    ----------
    late
        Whether the state on disk is old.
    stop
        Signal that one of them received; None for none.

    Examples
    --------
    >>> one, other = Asked(stop=15).numbers(), Asked(late=True).numbers()
    >>> Asked.of([a + b for a, b in zip(one, other)])
    Asked(late=True, stop=15)
    """

    late: bool = False
    stop: int | None = None

    def numbers(self) -> list[float]:
        """Return one number for each wish, which can be added up over processes."""
        return [float(self.late), *(float(self.stop == number) for number in STOPS)]

    @classmethod
    def of(cls, sums: Sequence[float]) -> Asked:
        """Return what any process asks for, from the sums of their `numbers`."""
        late, *signals = sums
        received = (number for number, n in zip(STOPS, signals, strict=True) if n)
        return cls(late > 0, next(received, None))


class SignalWatch:
    """Record the first signal of `STOPS` instead of ending the process; a second one ends it.

    Does nothing outside of the main thread, where Python cannot set handlers.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
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
