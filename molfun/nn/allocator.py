"""Choose whether glibc keeps large freed buffers for later use or returns them to the system.

By default glibc asks the kernel for every large buffer and returns it as soon as it is freed, so
that each activation costs page faults again. If freed buffers stay in the heap, the next activation
reuses them: results are bit-identical, CPU trunks take a fifth to two thirds less time, and the
resident size stays at its peak.

Keeping them has a price where little is kept from one block to the next, as with activation
checkpointing: small, long-lived allocations (a block's input, autograd's records) leave holes that
the next large buffer does not fit into, and a step takes two to four times the memory that is in
use at any time. Large buffers that are returned to the system leave no holes.

docs/performance.md has the measurements; ``benchmarks/memory_model.py`` repeats those of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform

logger = logging.getLogger(__name__)

SWITCH = "MOLFUN_ALLOCATOR"
"""Environment variable: ``system`` leaves the allocator as it is."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of mallopt(3), from malloc.h
_NEVER = -1
_MAPPINGS = 2**16
"""Number of separate mappings that glibc allows by default."""
LARGE = 2**20
"""Size in bytes from which a buffer gets a mapping of its own and is returned when it is freed."""


def keep_large_buffers() -> bool:
    """Make the C library keep freed buffers from now on.

    All buffers then come from the heap, whatever their size, and the heap is not trimmed.

    Returns
    -------
    bool
        True if glibc took the setting; False with another C library or under
        ``MOLFUN_ALLOCATOR=system``.
    """
    # Raising the threshold for separate mappings would not do: glibc accepts 32 MB at most, and the
    # pair representation of 256 residues is larger.
    return _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER})


def return_large_buffers() -> bool:
    """Make the C library return freed buffers of `LARGE` bytes and more to the system from now on.

    Returns
    -------
    bool
        As for `keep_large_buffers`.
    """
    return _set({_MMAP_THRESHOLD: LARGE, _MMAP_MAX: _MAPPINGS})


def trim() -> None:
    """Return freed memory to the system now, so that the system counts it as free."""
    if platform.libc_ver()[0] == "glibc":
        # memory is only measured more roughly without it, which is no reason to stop
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> bool:
    if os.environ.get(SWITCH) == "system" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        # in the running process: environment variables such as MALLOC_MMAP_MAX_ are read only once,
        # when the process starts
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = all(mallopt(name, value) for name, value in options.items())
    logger.debug("mallopt %s: %s", options, done)
    return done
