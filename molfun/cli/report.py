"""Write reports of finished runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from molfun.cli.command_settings import ReportSettings
from molfun.cli.console import say, set_up_logging
from molfun.report import write_report


def report(given: Mapping[str, Any]) -> None:
    """Write ``report.html`` into the folder of each run."""
    wanted, _ = ReportSettings.take(given)
    set_up_logging(None, debug=wanted.debug)
    for run in wanted.runs:
        say(f"Report: {write_report(run)}")
