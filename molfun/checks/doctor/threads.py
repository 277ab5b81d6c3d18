"""Threads of torch against the processors that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def check(context: Context) -> Iterator[Finding]:  # noqa: ARG001
    """Compare the number of threads with the processors; more threads wait for each other."""
    import torch

    threads, usable = torch.get_num_threads(), processors()
    many = threads > usable
    given = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        status="WARNING" if many else "OK",
        topic="threads",
        text=f"{threads} for {usable} of {os.cpu_count()} processors"
        + (f" (OMP_NUM_THREADS={given})" if given else ""),
        remedy=f"export OMP_NUM_THREADS={usable}" if many else "",
        facts={"threads": threads, "usable": usable, "processors": os.cpu_count()},
    )


def processors() -> int:
    """Return the processors that this process may use: affinity, and the quota of a container."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = QUOTA.read_text().split() if QUOTA.is_file() else ["max"]
    if quota[0].isdigit():
        return max(1, min(usable or 1, -(-int(quota[0]) // int(quota[1]))))
    return usable or 1
