"""Examine the installation and the machine, one file per topic.

A new check is a file with a function ``check(context)`` that yields findings, and one line in
`CHECKS`. Nothing here imports torch before a check runs, so that a broken torch is a finding as
well.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from molfun.checks.doctor import (
    backbones,
    device,
    kernels,
    memory,
    output,
    packages,
    python,
    smoke,
    threads,
    torch_build,
    weights,
)
from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.errors import MolfunError
from molfun.text import first_line

CHECKS: tuple[Callable[[Context], Iterator[Finding]], ...] = (
    python.check,
    packages.check,
    torch_build.check,
    device.check,
    threads.check,
    kernels.check,
    memory.check,
    backbones.check,
    weights.check,
    output.check,
    smoke.check,
)
"""All checks, in the order of the report."""


def examine(context: Context) -> Iterator[Finding]:
    """Run all checks; one that fails itself is a finding, and the others still run.

    Examples
    --------
    >>> next(examine(Context())).topic
    'Molfun'
    """
    for check in CHECKS:
        try:
            yield from check(context)
        except Exception as error:  # whatever is broken here must not hide the rest
            yield _broken(check.__module__.rpartition(".")[2].replace("_", " "), error)


def _broken(topic: str, error: Exception) -> Finding:
    if not _has_torch():  # said by the check of torch; the error of others would only repeat it
        text = "left out, since torch cannot be imported"
        return Finding(status="WARNING", topic=topic, text=text)
    text = first_line(error)
    if not isinstance(error, MolfunError):
        text = f"{type(error).__name__}: {text}"
    return Finding(status="FAILED", topic=topic, text=text)


def _has_torch() -> bool:
    try:
        importlib.import_module("torch")
    except Exception:  # a missing library raises OSError, a broken install anything
        return False
    return True
