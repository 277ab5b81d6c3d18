"""Keep what Molfun logs during a check, to show it as findings."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from molfun.checks.findings import EXAMPLES, Finding


class _Kept(logging.Handler):
    """Handler that keeps the text of each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.texts[record.getMessage()] = None


@contextlib.contextmanager
def kept_warnings() -> Iterator[dict[str, None]]:
    """Keep the warnings that Molfun logs in the block, and pass them to no other handler.

    Examples
    --------
    >>> with kept_warnings() as texts:
    ...     logging.getLogger("molfun.data").warning("%d rows are odd", 3)
    >>> list(texts)
    ['3 rows are odd']
    """
    logger = logging.getLogger("molfun")
    before = logger.handlers[:], logger.propagate
    handler = _Kept()
    logger.handlers, logger.propagate = [handler], False
    try:
        yield handler.texts
    finally:
        logger.handlers, logger.propagate = before


def as_finding(text: str, topic: str) -> Finding:
    r"""Return a logged warning as a finding; its further lines are examples.

    Examples
    --------
    >>> print(as_finding("2 masks are short:\n  line 2", "t.csv"))
    WARNING  t.csv: 2 masks are short
               line 2
    """
    first, *rest = text.splitlines() or [""]
    examples = [line.strip() for line in rest][:EXAMPLES]
    return Finding(
        status="WARNING", topic=topic, text=first.removeprefix(f"{topic}: ").rstrip(":"),
        examples=examples, total=len(rest),
    )  # fmt: skip
