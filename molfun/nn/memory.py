"""Measure the memory that a device has left for this process."""

from __future__ import annotations

from pathlib import Path

import torch

from molfun.nn import allocator

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on `device`; None if the system does not say.

    On a CPU this is the kernel's estimate without swapping, or what the container's control group
    leaves if that is less. Buffers that the process has freed but kept are returned first.
    """
    if device.type == "cuda":
        # torch's caching allocator holds on to freed blocks, which the driver reports as used
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    allocator.trim()
    found = [n for n in (_of_machine(), _of_group()) if n is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_group() -> int | None:
    """Return the limit of the control group (version 2) less the memory that cannot be reclaimed.

    A limit on a parent group is not looked at.
    """
    limit, used = _read(CGROUP / "memory.max").strip(), _read(CGROUP / "memory.current").strip()
    if not limit.isdigit() or not used.isdigit():  # "max" is no limit
        return None
    # the kernel drops cached files when a process asks for memory
    files = [
        int(line.split()[1])
        for line in _read(CGROUP / "memory.stat").splitlines()
        if line.startswith("inactive_file ")
    ]
    return max(0, int(limit) - int(used) + sum(files))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
