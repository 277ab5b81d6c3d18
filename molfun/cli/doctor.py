"""Examine the installation and the machine: ``molfun doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from molfun._paths import as_path
from molfun.checks.doctor import examine
from molfun.checks.doctor.context import Context
from molfun.checks.findings import as_json, summary, worst
from molfun.cli.command_settings import DoctorSettings
from molfun.cli.console import say


def doctor(given: Mapping[str, Any]) -> None:
    """Print one line per check as it is done, or all of them as JSON."""
    wanted, _ = DoctorSettings.take(given)
    context = Context(
        output=as_path(wanted.output),
        weights=() if wanted.weights is None else (as_path(wanted.weights),),
        device=wanted.device,
        smoke=wanted.smoke,
    )
    findings = []
    for finding in examine(context):
        findings.append(finding)
        if not wanted.as_json:
            say(str(finding))
    say(as_json(findings) if wanted.as_json else summary(findings))
    if worst(findings) == "FAILED":
        raise SystemExit(1)
