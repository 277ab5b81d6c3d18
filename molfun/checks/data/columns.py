"""Columns that are there and not used: splits, and what looks like labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pandas as pd

from molfun.checks.data.subject import Subject
from molfun.checks.findings import Finding
from molfun.data.columns import numeric
from molfun.models.trained_on import held_out
from molfun.text import counted, few

LABEL = re.compile(
    r"(log|neg)?_?(target|label|y|class|affinity|fitness|score|dms_score|activity|stability|ddg|dg|"
    r"tm|pk[di]?|k[di]|ic50|ec50|ki|solubility|expression|brightness|log_fluorescence|energy)"
    r"(_(value|mean|score|norm|normalized|scaled|bin))?",
    re.IGNORECASE,
)
"""Names that columns of labels have in public data sets."""
MOST_VALUES = 50
"""Distinct values up to which a column is looked at as one of parts."""


def check(subject: Subject) -> Iterator[Finding]:
    """Name columns of a split, and columns that look like labels, that the run does not read."""
    data = subject.parts.get("train")
    if data is None:
        return
    unread = [name for name in map(str, data.metadata.columns) if name not in subject.used]
    found = [finding for name in unread for finding in _unused(name, data.metadata)]
    yield from found
    if not found:
        shown = few(unread, limit=20) or "none"
        yield Finding(status="OK", topic="columns", text=f"not read: {shown}")


def _unused(name: str, columns: pd.DataFrame) -> Iterator[Finding]:
    """Say what a column that is not read looks like; nothing of most."""
    values = Counter(str(value).strip().lower() for value in columns[name].dropna())
    n = held_out(name, values, len(columns)) if len(values) <= MOST_VALUES else 0
    if n:
        yield Finding(
            status="WARNING",
            topic=f"column {name!r}",
            text=f"assigns {n:,} of {counted(len(columns), 'training sample')} to another part, "
            f"and is not used",
            remedy=f"--split column --split-column {name}",
        )
    elif LABEL.fullmatch(name) and name in numeric(columns) and len(values) > 1:
        yield Finding(
            status="WARNING",
            topic=f"column {name!r}",
            text="looks like a label and is not used",
            remedy=f"--target-column {name}",
        )
