"""Print how many tests of each family of protein language models and each strategy pass.

A cell is the contract of the strategy on a tiny model of the family, with exact resuming, merging
and the same results with and without the cache of frozen blocks.

    python tests/soak/families.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

CONTRACTS = Path(__file__).parent.parent / "contracts"
sys.path[:0] = [str(CONTRACTS), str(CONTRACTS.parent)]

from test_language_models import FAMILIES, STRATEGIES  # noqa: E402


class Table:
    """Plugin of pytest that counts the outcomes of each cell."""

    def __init__(self) -> None:
        self.found: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test that ran."""
        if report.when == "call" and not report.skipped:
            name = report.nodeid.split("::")[1].removeprefix("Test")
            self.found.setdefault(name, Counter())[report.outcome] += 1

    def show(self) -> None:
        """Print the table."""
        print(f"\n{'family':<10}" + "".join(f"{name:>14}" for name in STRATEGIES))
        for family in FAMILIES:
            cells = [self.found.get(family + strategy, Counter()) for strategy in STRATEGIES]
            texts = [f"{c['passed']} of {c.total()}" for c in cells]
            print(f"{family:<10}" + "".join(f"{text:>14}" for text in texts))


def main() -> None:
    """Run the tests and print the table."""
    table = Table()
    arguments = [str(CONTRACTS / "test_language_models.py"), "-q", "-m", "proof or not proof"]
    code = pytest.main(arguments, plugins=[table])
    table.show()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
