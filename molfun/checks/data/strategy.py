"""Name the weights that train, and check that the number of samples suits them."""

from __future__ import annotations

from collections.abc import Iterator

from molfun.checks.data.subject import Subject
from molfun.checks.findings import Finding
from molfun.checks.logs import as_finding, kept_warnings
from molfun.errors import MolfunError
from molfun.strategies.auto import recommend
from molfun.training.monitor import check_monitor
from molfun.training.schedule import warmup_of
from molfun.training.supervised import metric_names
from molfun.training.task_head import has_label

TRAINS_MUCH = ("full", "partial")


def check(subject: Subject) -> Iterator[Finding]:
    """Set the strategy up, and count what trains; say what "auto" would take."""
    if subject.model is None or subject.strategy is None:
        return
    try:
        check_monitor(subject.strategy.monitor, metric_names(subject.heads))
        subject.strategy.setup(subject.model)
    except MolfunError as error:
        text = f"{subject.strategy.name}: {error}"
        yield Finding(status="FAILED", topic="strategy", text=text)
        return
    targets = subject.parts["train"].targets
    yield _trained(subject, sum(has_label(subject.heads, target) for target in targets))
    yield from _schedule(subject, len(targets))


def _trained(subject: Subject, n: int) -> Finding:
    assert subject.strategy is not None
    best, why = recommend(n, len(subject.model.backbone.blocks()))
    name = subject.strategy.name
    trained, whole = _sizes(subject)
    chosen = f"{name} ({subject.why})" if subject.why else name
    text = f"{chosen} trains {trained:,} of {whole:,} weights on {n:,} labelled samples"
    text += f"; {why}" if subject.why else f"; auto would take {best.name} ({why})"
    risky = name in TRAINS_MUCH and best.name == "head_only"
    return Finding(
        status="WARNING" if risky else "OK",
        topic="strategy",
        text=text,
        remedy="So few samples suffice for the head alone: --strategy head_only." if risky else "",
        facts={"strategy": name, "auto": best.name, "trained": trained, "weights": whole},
    )


def _sizes(subject: Subject) -> tuple[int, int]:
    parameters = list(subject.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters)


def _schedule(subject: Subject, n: int) -> Iterator[Finding]:
    """Count the optimizer steps, and hold the warm-up against them."""
    assert subject.strategy is not None
    batches = -(-n // subject.batch_size)
    steps = -(-batches // subject.strategy.accumulation_steps) * subject.epochs
    with kept_warnings() as said:
        warmup = warmup_of(subject.strategy, steps)
    for text in said:
        yield as_finding(text, "schedule")
    if not said:
        yield Finding(
            status="OK",
            topic="schedule",
            text=f"{steps:,} optimizer steps in {subject.epochs} epochs, {warmup:,} of them "
            f"warm-up",
            facts={"steps": steps, "warmup": warmup},
        )
