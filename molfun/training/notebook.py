"""Progress of a fit in a notebook: a bar and the table of epochs, without ipywidgets.

rich and tqdm draw bars in a notebook through ipywidgets, which many do not have; IPython alone can
replace what a cell has shown.
"""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History, Row

SECONDS = 0.5
"""Least time between two updates; the browser draws each of them."""


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    Examples
    --------
    >>> in_notebook()
    False
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # a shell in a terminal has none
    return getattr(shell, "kernel", None) is not None


class NotebookProgress(Callback):
    """Show a bar and the epochs so far in the output of a cell, and at the end the epochs alone.

    `MolfunStructureModel.fit` adds it in notebooks.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._plan = FitPlan(epochs=0, batches_per_epoch=0, steps_per_epoch=0, total_steps=0)
        self._history = History()
        self._updated_at = 0.0

    def on_fit_start(self, plan: FitPlan, history: History) -> None:
        """Show the bar."""
        from IPython.display import display

        self._plan = plan
        # the epochs of a resumed run are shown as well
        self._history = History(history)
        bundle = self._bundle(len(history) * plan.batches_per_epoch, "")
        self._handle = display(bundle, raw=True, display_id=True)

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        """Advance the bar."""
        if time.monotonic() - self._updated_at >= SECONDS:
            self._updated_at = time.monotonic()
            done = (epoch - 1) * self._plan.batches_per_epoch + batch
            self._update(done, f"epoch {epoch}/{self._plan.epochs}, loss {loss:.3g}")

    def on_epoch_end(self, row: Row, improved: bool) -> None:  # noqa: ARG002
        """Add the row of the epoch."""
        self._history.append(row)
        self._update(row["epoch"] * self._plan.batches_per_epoch, f"epoch {row['epoch']}")

    def on_fit_end(self, history: History) -> None:
        """Replace the bar by the table of the epochs."""
        if self._handle is not None:
            self._handle.update(_html(history._repr_html_()), raw=True)

    def _update(self, done: int, text: str) -> None:
        if self._handle is not None:
            self._handle.update(self._bundle(done, text), raw=True)

    def _bundle(self, done: int, text: str) -> dict[str, str]:
        total = max(1, self._plan.epochs * self._plan.batches_per_epoch)
        bar = f'<progress value="{done}" max="{total}" style="width: 20em"></progress>'
        table = self._history._repr_html_() if self._history else ""
        return _html(f"<div>{bar} {escape(text)}</div>{table}")


def _html(text: str) -> dict[str, str]:
    # no text of its own: where no HTML is shown, the log says the same
    return {"text/html": text, "text/plain": ""}
