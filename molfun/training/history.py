"""History of a training run: one row per epoch."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molfun._lazy import require
from molfun.text import three_digits

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


class History(list[Row]):
    """List of rows with keys ``epoch``, ``train_loss``, ``val_loss``, ``lr``, ``val/rmse`` ...

    Losses are in the task's standardised units, metrics in the units of the labels. Undefined
    values are NaN.

    Attributes
    ----------
    stopped
        Reason why training ended: "epochs", "max_steps" or "early_stopping".
    monitor, higher_is_better
        Name of the value that decides which row is the `best`, and its direction.
    cache_report
        Time saved by the frozen-prefix cache, in one sentence; empty if it was not used.

    Examples
    --------
    >>> history = History([{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "val_loss": 1.0}])
    >>> history.best["epoch"]
    2
    """

    stopped: str = "epochs"
    monitor: str = "val/loss"
    higher_is_better: bool = False
    cache_report: str = ""

    @property
    def best(self) -> Row:
        """Row with the best value of `monitor`; the last row if no row defines it."""
        # NaN compares false with everything, so min and max would depend on the order of rows
        scored = [row for row in self if math.isfinite(monitored(row, self.monitor))]
        pick = max if self.higher_is_better else min
        return pick(scored, key=lambda row: monitored(row, self.monitor)) if scored else self[-1]

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a table."""
        import pandas as pd

        return pd.DataFrame(list(self))

    def _repr_html_(self) -> str:
        """Return the rows as an HTML table in three digits, as notebooks show it."""
        if not self:
            return "<p>No epoch has ended.</p>"
        table = self.to_pandas().to_html(
            index=False, float_format=three_digits, na_rep="undefined", border=0
        )
        return f"<p>Best epoch: {self.best['epoch']} ({escape(self.monitor)})</p>{table}"

    def plot(self, path: str | Path) -> None:
        """Draw the training and validation loss over the epochs into an image file.

        Parameters
        ----------
        path
            File to write; its ending chooses the format (``.png``, ``.svg``, ``.pdf``).

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        """
        # Figure and not pyplot, which would choose a backend and keep the figure alive
        pyplot = require("matplotlib.figure", "pip install matplotlib")
        figure = pyplot.Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        epochs = [row["epoch"] for row in self]
        for key in ("train_loss", "val_loss"):
            axes.plot(epochs, [row.get(key, math.nan) for row in self], marker="o", label=key)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (standardised units)")
        axes.legend()
        figure.savefig(path)


def monitored(row: Row, monitor: str) -> float:
    """Return the value of a monitored quantity in a row; NaN if the row has none.

    Examples
    --------
    >>> monitored({"val_loss": 0.5, "val/rmse": 1.2}, "val/loss")
    0.5
    """
    key = "val_loss" if monitor == "val/loss" else monitor
    return float(row.get(key, math.nan))
