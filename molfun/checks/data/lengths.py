"""Lengths of the samples, memory of a step on the longest ones, and time of an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from molfun.checks.data.duplicates import has_sequences
from molfun.checks.data.subject import Subject
from molfun.checks.findings import EXAMPLES, Finding
from molfun.data.base import SampleDataset
from molfun.errors import DataError
from molfun.models import cost, memory
from molfun.models.loaders import as_loader
from molfun.sample import n_residues
from molfun.text import counted, megabytes

CONTEXT = {"sequences": 1022}
"""Length on which published models of a kind were trained."""
SHORTEST = 3
"""Shorter samples are fragments more often than data."""


def check(subject: Subject) -> Iterator[Finding]:
    """Describe the lengths, and compare the predicted peak with the free memory."""
    for part, data in subject.parts.items():
        yield from _lengths(subject, part, np.asarray(data.lengths), data.ids)
        if has_sequences(subject):
            yield from _cropped(part, data)
    if subject.model is not None and "train" in subject.parts:
        yield from _memory(subject)
        yield from _time(subject)


def _lengths(subject: Subject, part: str, lengths: np.ndarray, ids: list[str]) -> Iterator[Finding]:
    unit, topic = subject.kind.unit, f"lengths, {part}"
    if not len(lengths):
        return
    low, middle, high = lengths.min(), np.median(lengths), lengths.max()
    yield Finding(
        status="OK", topic=topic, text=f"{low:,} to {high:,} {unit}, median {middle:,.0f}",
        facts={"min": int(low), "median": float(middle), "max": int(high)},
    )  # fmt: skip
    longest = CONTEXT.get(subject.kind.name)
    for places, text, remedy in (
        (np.flatnonzero(lengths > (longest or np.inf)), f"above the {longest} of pretraining",
         "--max-length crops them, --long window or crop decides how they are read."),
        (np.flatnonzero(lengths < SHORTEST), f"below {SHORTEST} {unit}", "Are they whole?"),
    ):  # fmt: skip
        if len(places):
            yield Finding(
                status="WARNING",
                topic=topic,
                text=f"{counted(len(places), 'sample')} {text}",
                remedy=remedy,
                examples=[f"{ids[i]}: {lengths[i]:,}" for i in places[:EXAMPLES]],
                total=len(places),
            )


def _cropped(part: str, data: SampleDataset) -> Iterator[Finding]:
    """Warn of samples that lose residues to ``max_length``."""
    whole = np.array([sum(map(n_residues, chains)) for chains in data.sequences()])
    lost = whole - np.asarray(data.lengths)
    places = np.flatnonzero(lost > 0)
    if len(places):
        yield Finding(
            status="WARNING",
            topic=f"lengths, {part}",
            text=f"{counted(len(places), 'sample')} of {len(whole):,} cropped, which leaves out "
            f"{lost.sum() / whole.sum():.1%} of all residues",
            remedy="Raise --max-length, or leave it out.",
            examples=[f"{data.ids[i]}: {lost[i]:,} of {whole[i]:,}" for i in places[:EXAMPLES]],
            total=len(places),
            facts={"residues": int(lost.sum())},
        )


def _time(subject: Subject) -> Iterator[Finding]:
    """Estimate the time of an epoch; nothing is said of backbones that do not know their costs."""
    found = cost.epoch_cost(
        subject.model.backbone, subject.parts["train"], subject.device,
        batch_size=subject.batch_size,
    )  # fmt: skip
    if found is None:
        return
    text = f"about {cost.duration(found.first)}"
    if found.later < found.first:
        text += (
            f" ({cost.duration(found.later)} from the second on, where frozen blocks are cached)"
        )
    yield Finding(
        status="OK",
        topic="time of an epoch",
        text=f"{text}: {found.flops / 1e9:,.0f} GFLOP on {subject.device}, which does "
        f"{found.rate / 1e9:,.0f} GFLOP/s; an estimate, right within a factor "
        f"of {cost.WITHIN} for most runs",
        facts={"first": found.first, "later": found.later, "flops": found.flops,
               "flops_per_second": found.rate},
    )  # fmt: skip


def _memory(subject: Subject) -> Iterator[Finding]:
    """Predict the peak of a step, and add what the weights and the optimizer take."""
    parameters = list(subject.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    held = 4 * sum(p.numel() for p in parameters)
    if (found := _forecast(subject, trained)) is not None:
        yield Finding(
            status="OK" if found.fits else "WARNING",
            topic="memory of a step",
            text=found.text,
            facts={"peak_bytes": found.peak, "free_bytes": found.free},
        )
    needed, free = held + memory.BYTES_A_WEIGHT * trained, memory.free_bytes(subject.device)
    little = free is not None and needed > memory.SHARE * free
    yield Finding(
        status="WARNING" if little else "OK",
        topic="memory of the weights",
        text=f"{megabytes(needed)} with gradients, optimizer and moving average"
        + (f", {megabytes(free)} are free" if free is not None else ""),
        remedy="Use --strategy head_only or lora, or a smaller model." if little else "",
        facts={"bytes": needed, "free_bytes": free},
    )


def _forecast(subject: Subject, trained: int) -> memory.Forecast | None:
    backbone = subject.model.backbone
    # the batch that fine-tune would take, which decides the peak
    loader = as_loader(subject.parts["train"], batch_size=subject.batch_size)
    try:
        return memory.forecast(backbone, loader, subject.device, trained=trained)
    except DataError:  # the longest sample cannot be used, which is said as its fault
        return None
    finally:
        memory.forget(backbone)
