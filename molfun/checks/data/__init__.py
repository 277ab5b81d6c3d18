"""Examine what a fine-tuning run would read and train, one file per topic.

A new check is a file with a function ``check(subject)`` that yields findings, and one line in
`CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from molfun.checks.data import (
    columns,
    counts,
    duplicates,
    labels,
    leaks,
    lengths,
    mismatch,
    model,
    notes,
    strategy,
)
from molfun.checks.data.subject import Subject
from molfun.checks.findings import Finding
from molfun.checks.logs import as_finding, kept_warnings
from molfun.errors import MolfunError

Check = Callable[[Subject], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    counts.check,
    labels.check,
    duplicates.check,
    leaks.check,
    columns.check,
    mismatch.check,
    notes.check,
    model.check,
    strategy.check,
    lengths.check,
)
"""All checks, in the order of the report; `lengths` needs what `strategy` set up."""

AT_NO_COST = (counts.check, labels.check, columns.check, mismatch.check)
"""Those that every run makes for its log: they read nothing and change nothing."""


def examine(subject: Subject, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Run checks; one that cannot use the data is a finding, and the others still run."""
    for check in checks:
        topic = check.__module__.rpartition(".")[2]
        with kept_warnings() as said:
            try:
                found = list(check(subject))
            except MolfunError as error:
                found = [Finding(status="FAILED", topic=topic, text=str(error))]
        yield from found
        for text in said:
            yield as_finding(text, topic)
