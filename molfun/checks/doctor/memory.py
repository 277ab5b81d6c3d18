"""Memory and disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from molfun.checks.doctor.context import Context
from molfun.checks.findings import Finding
from molfun.text import megabytes

LEAST_MEMORY = 2 * 2**30
"""Free bytes below which a run on the whole OpenFold trunk does not start (weights, optimizer)."""
LEAST_DISK = 2 * 2**30
"""Free bytes of a disk: a run keeps up to three sets of weights of 370 MB, and a cache."""
SHARED = Path("/dev/shm")
LEAST_SHARED = 2**28
"""Workers pass samples through shared memory; containers have 64 MB unless they are told more."""


def check(context: Context) -> Iterator[Finding]:
    """Name free memory, disk space of the output folder, and shared memory of workers."""
    yield from _memory()
    yield _disk(context.output)
    if SHARED.is_dir():
        usage = shutil.disk_usage(SHARED)
        yield _room(
            "shared memory",
            usage.free,
            usage.total,
            LEAST_SHARED,
            "Loaders with --workers may die: start the container with --shm-size=1g.",
        )


def _memory() -> Iterator[Finding]:
    import torch

    from molfun.models.memory import free_bytes

    free = free_bytes(torch.device("cpu"))
    if free is None:
        yield Finding(status="OK", topic="memory", text="the system does not say how much is free")
        return
    names = os.sysconf_names
    known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else free
    yield _room("memory", free, total, LEAST_MEMORY, "End other programs, or lower --max-length.")


def _disk(output: Path) -> Finding:
    folder = output.absolute()
    while not folder.is_dir():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    advice = "Free some space, or choose another --output."
    return _room(f"disk of {folder}", usage.free, usage.total, LEAST_DISK, advice,
                 temporary=tempfile.gettempdir())  # fmt: skip


def _room(topic: str, free: int, total: int, least: int, remedy: str, **facts: object) -> Finding:
    little = free < least
    return Finding(
        status="WARNING" if little else "OK",
        topic=topic,
        text=f"{megabytes(free)} of {megabytes(total)} free",
        remedy=remedy if little else "",
        facts={"free_bytes": free, "total_bytes": total, **facts},
    )
