"""Faults of rows and files, by kind."""

from __future__ import annotations

from collections.abc import Iterator

from molfun.checks.findings import EXAMPLES, Finding
from molfun.data.faults import Faults
from molfun.text import counted


def findings(faults: Faults) -> Iterator[Finding]:
    """Yield one finding per file and kind of fault, with the first ten cases and their number.

    Examples
    --------
    >>> faults = Faults()
    >>> faults.note("t.csv", [f"line {i}: the id is blank" for i in range(2, 14)])
    >>> print(next(findings(faults)).text)
    the id is blank (12 cases)
    """
    for (source, kind), texts in faults.found.items():
        several = f" ({counted(len(texts), 'case')})" if len(texts) > 1 else ""
        yield Finding(
            status="FAILED",
            topic=source,
            text=f"{kind}{several}",
            examples=list(texts)[:EXAMPLES],
            total=len(texts),
            facts={"kind": kind},
        )
