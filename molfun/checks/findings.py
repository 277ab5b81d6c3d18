"""Results of checks: a status, one line of text, examples, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from molfun._io import finite

Status = Literal["OK", "WARNING", "FAILED"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""Statuses, the best first."""
EXAMPLES = 10
"""Examples shown of one kind of fault."""
_INDENT = " " * 9


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a check.

    Parameters
    ----------
    status
        ``"FAILED"``: it has to be repaired; ``"WARNING"``: someone should look.
    topic
        What was looked at: "torch", "labels".
    text
        Result in one line.
    remedy
        What to do, or the command that repairs it.
    examples
        Single cases, the first ten at most.
    total
        Number of all cases, where `examples` are only some of them.
    facts
        Values behind the text, for programs.

    Examples
    --------
    >>> finding = Finding(status="WARNING", topic="disk", text="1 GB free", remedy="Free some.")
    >>> print(finding)
    WARNING  disk: 1 GB free
             Free some.
    """

    status: Status
    topic: str
    text: str
    remedy: str = ""
    examples: Sequence[str] = ()
    total: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the line, with examples and remedy below it."""
        lines = [f"{self.status:<9}{self.topic}: {self.text}"]
        lines += [f"{_INDENT}  {line}" for text in self.examples for line in text.splitlines()]
        if self.total is not None and self.total > len(self.examples) > 0:
            left = self.total - len(self.examples)
            lines.append(f"{_INDENT}  ... and {left:,} more ({self.total:,} in all)")
        lines += [f"{_INDENT}{line}" for line in self.remedy.splitlines()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {
            "status": self.status,
            "topic": self.topic,
            "text": self.text,
            "remedy": self.remedy,
            "examples": list(self.examples),
            "total": len(self.examples) if self.total is None else self.total,
            "facts": dict(self.facts),
        }


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status; "OK" if there is no finding.

    Examples
    --------
    >>> worst([Finding(status="WARNING", topic="disk", text="1 GB free")])
    'WARNING'
    """
    return max((finding.status for finding in findings), key=STATUSES.index, default="OK")


def summary(findings: Sequence[Finding]) -> str:
    """Count the findings by status.

    Examples
    --------
    >>> summary([Finding(status="OK", topic="disk", text="9 GB free")])
    '1 OK, 0 WARNING, 0 FAILED'
    """
    counts = [sum(f.status == status for f in findings) for status in STATUSES]
    return ", ".join(f"{n} {status}" for n, status in zip(counts, STATUSES, strict=True))


def as_json(findings: Sequence[Finding], **about: Any) -> str:
    """Return findings as JSON of format 1, with the worst status; NaN becomes null."""
    document = {
        "format": 1,
        "status": worst(findings),
        **about,
        "findings": [finding.as_dict() for finding in findings],
    }
    return json.dumps(finite(document), indent=2, default=str, allow_nan=False)
