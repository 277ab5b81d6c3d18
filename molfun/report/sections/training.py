"""Training: model, strategy, and which parameters trained at which rate."""

from __future__ import annotations

from collections.abc import Iterator

from molfun.report.blocks import Section, Table, Text
from molfun.report.finished import FinishedRun
from molfun.report.numbers import OBJECTIVE_NAMES, number
from molfun.report.predicted import HeadOfRun

SHOWN = (
    *("rank", "alpha", "unfreeze_last_n", "unfreeze_epoch", "optimizer", "scheduler"),
    *("weight_decay", "grad_clip", "ema_decay", "accumulation_steps", "early_stopping_patience"),
)
"""Settings of a strategy that are worth a line; all are in the settings below."""


def section(run: FinishedRun) -> Section | None:
    """Return what trained."""
    rows = [*_model(run), *_strategy(run)]
    if not rows:
        return None
    rates = run.provenance.get("model", {}).get("rates")
    return Section(
        "What trained", [Table([], rows, numeric=False), *([Text(rates, "note")] if rates else [])]
    )


def _model(run: FinishedRun) -> Iterator[list[str]]:
    """Yield backbone, weights and tasks."""
    backbone = run.meta.get("backbone", {})
    if run.objective:
        about = run.provenance.get("model", {})
        yield ["backbone", about.get("name") or str(run.config.get("backbone", ""))]
        yield ["weights", str(run.config.get("weights") or "random initialisation")]
        yield ["objective", OBJECTIVE_NAMES.get(run.objective, run.objective)]
        for name, value in (run.config.get("objective_config") or {}).items():
            yield [name.replace("_", " "), _value(value)]
    if backbone:
        name = run.provenance.get("model", {}).get("name")
        yield ["backbone", name or backbone.get("name", "")]
        yield ["weights", _weights(run)]
    for head in run.heads:
        yield [f"task {head.name}".strip(), _task(head)]


def _strategy(run: FinishedRun) -> Iterator[list[str]]:
    """Yield strategy, numbers of parameters, and the settings worth a line."""
    strategy = run.meta.get("strategy") or {}
    if strategy:
        yield ["strategy", str(strategy.get("name", ""))]
    model = run.provenance.get("model", {})
    if "trainable" in model:
        share = model["trainable"] / max(1, model["parameters"])
        yield ["parameters", f"{model['parameters']:,}"]
        yield ["of these train", f"{model['trainable']:,} ({number(100 * share)} %)"]
    for name in SHOWN:
        is_off = name == "early_stopping_patience" and not strategy.get(name)
        if strategy.get(name) is not None and not is_off:
            yield [name.replace("_", " "), _value(strategy[name])]


def _task(head: HeadOfRun) -> str:
    unit = head.level if head.level != "sequence" else "sample"
    words = f"{head.task} of {head.target}"
    words = {"energy": "energies and forces", "structure": "coordinates"}.get(head.task, words)
    return f"{words}, one label per {unit}"


def _weights(run: FinishedRun) -> str:
    backbone = run.meta["backbone"]
    if run.config.get("init_from"):
        return f"trained before: {run.config['init_from']}"
    return backbone.get("weights") or "random initialisation"


def _value(value: object) -> str:
    return number(value) if isinstance(value, int | float) else str(value)
