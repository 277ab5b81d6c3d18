"""Learning curves, with the epoch whose weights are kept."""

from __future__ import annotations

import math
from typing import Any

from molfun.report.blocks import Figure, Section, Text
from molfun.report.figures import COLOURS, MUTED, plot
from molfun.report.finished import FinishedRun
from molfun.report.predicted import NUMBERS
from molfun.tasks.titles import title_of
from molfun.training.history import History, monitored

PREFERRED = (
    *("val/spearman", "val/rmse", "val/auroc", "val/accuracy", "val/mcc", "val/energy_mae"),
    *("val/lddt_ca", "val/fape", "val/forces_mae", "val/perplexity", "val/r2", "val/cosine"),
)
"""Metrics shown next to the losses, the first two that the history has."""


def section(run: FinishedRun) -> Section | None:
    """Return losses, two metrics, and the learning rate over the epochs."""
    history = run.history
    if not history:
        return None
    if len(history) == 1:
        return Section("Learning curves", [Text("One epoch was trained: there is no curve.")])
    best = history.best["epoch"]
    numbers = bool(run.heads) and all(head.task in NUMBERS for head in run.heads)
    figures = [_losses(history, best, "loss (standardised units)" if numbers else "loss")]
    metrics = [name for name in _metrics(history) if _is_known(history, name)]
    figures += [_metric(history, name, best) for name in metrics[:2]]
    if _is_known(history, "lr"):
        figures.append(_metric(history, "lr", best))
    return Section("Learning curves", [Text(_kept(history, best)), *figures])


def _kept(history: History, best: int) -> str:
    """Say which weights the run left, and why."""
    if not any(math.isfinite(monitored(row, history.monitor)) for row in history):
        return f"Nothing ranks the epochs: the weights of the last one, {best}, are kept."
    text = f"Best epoch: {best} of {len(history)}, by {history.monitor}; its weights are kept."
    if len(history) == best:
        text += " It is the last one: longer training may still help."
    return text


def _metrics(history: History) -> list[str]:
    """Return the metrics worth a curve: the monitored one, the usual ones, those of each head."""
    several = [n for n in history[0] if n.startswith("val/") and n.endswith(("/rmse", "/accuracy"))]
    return list(dict.fromkeys([*_if_metric(history.monitor), *PREFERRED, *several]))


def _if_metric(monitor: str) -> list[str]:
    return [] if monitor in ("val/loss", "val_loss") else [monitor]


def _is_known(history: History, name: str) -> bool:
    return any(math.isfinite(row.get(name, math.nan)) for row in history)


def _losses(history: History, best: int, label: str) -> Figure:
    with plot() as drawn:
        axes = drawn.axes[0]
        for key, colour in zip(("train_loss", "val_loss"), COLOURS[:2], strict=True):
            if _is_known(history, key):
                _line(axes, history, key, colour)
        _mark(axes, best)
        axes.set_ylabel(label)
        axes.legend()
    if not _is_known(history, "val_loss"):
        return Figure(drawn.svg, "Loss of training; the dashed line is the epoch that is kept.")
    return Figure(drawn.svg, "Loss of training and validation; the dashed line is the best epoch.")


def _metric(history: History, name: str, best: int) -> Figure:
    with plot() as drawn:
        axes = drawn.axes[0]
        _line(axes, history, name, COLOURS[2 if name == "lr" else 1])
        _mark(axes, best)
        axes.set_ylabel("learning rate" if name == "lr" else title_of(name))
        if name == "lr":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=False)
    caption = "Learning rate." if name == "lr" else f"Validation: {title_of(name)}."
    return Figure(drawn.svg, caption)


def _line(axes: Any, history: History, key: str, colour: str) -> None:
    values = [row.get(key, math.nan) for row in history]
    marker = "o" if len(history) <= 30 else None
    epochs = [row["epoch"] for row in history]
    axes.plot(epochs, values, color=colour, marker=marker, markersize=4, label=title_of(key))
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _mark(axes: Any, best: int) -> None:
    axes.axvline(best, color=MUTED, linestyle="--", linewidth=1)
