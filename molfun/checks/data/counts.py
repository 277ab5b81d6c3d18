"""Sizes of training, validation and test set."""

from __future__ import annotations

from collections.abc import Iterator

from molfun.checks.data.subject import PARTS, Subject
from molfun.checks.findings import Finding
from molfun.evaluation.verdict import FEWEST


def check(subject: Subject) -> Iterator[Finding]:
    """Count the samples of each part; few of them say little."""
    sizes = {name: len(subject.parts.get(name, ())) for name in PARTS}
    text = " / ".join(f"{n:,} {name}" for name, n in sizes.items())
    if not sizes["train"]:
        yield Finding(status="FAILED", topic="samples", text=f"{text}: nothing to train on",
                      facts=sizes)  # fmt: skip
        return
    judged = sizes["test"] or sizes["val"]
    few = judged < FEWEST
    which = "test" if sizes["test"] else "validation"
    if not judged:
        note = "; nothing will measure the model"
    else:
        note = f"; with fewer than {FEWEST} {which} samples nothing can be concluded" if few else ""
    yield Finding(
        status="WARNING" if few else "OK",
        topic="samples",
        text=f"{text} ({subject.split} split){note}",
        remedy="Raise --val-frac and --test-frac, or add samples." if few else "",
        facts=sizes,
    )
