"""What a fit gives back: one row an epoch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molfun._lazy import require

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


class History(list[Row]):
    """Rows of a fit: ``epoch``, ``train_loss``, ``val_loss``, ``lr``, ``val/rmse`` ...

    Losses are in the task's standardised units, metrics in the units of the labels. ``nan`` stands
    for "undefined".

    Attributes
    ----------
    stopped
        Why training ended: "epochs", "max_steps" or "early_stopping".
    monitor, higher_is_better
        What `best` goes by, and in which direction.
    cache_report
        What the frozen-prefix cache saved, in one sentence; empty where it was of no use.

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
        """Row with the best value of `monitor` (the last row where it is defined nowhere)."""
        scored = [row for row in self if math.isfinite(monitored(row, self.monitor))]
        pick = max if self.higher_is_better else min
        return pick(scored, key=lambda row: monitored(row, self.monitor)) if scored else self[-1]

    def to_pandas(self) -> pd.DataFrame:
        """Rows as a table."""
        import pandas as pd

        return pd.DataFrame(list(self))

    def plot(self, path: str | Path) -> None:
        """Draw the training and validation loss over the epochs into an image file.

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        """
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
    """Value of a monitored quantity in a row; NaN where it is not there.

    Examples
    --------
    >>> monitored({"val_loss": 0.5, "val/rmse": 1.2}, "val/loss")
    0.5
    """
    key = "val_loss" if monitor == "val/loss" else monitor
    return float(row.get(key, math.nan))
