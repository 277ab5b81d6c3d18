"""Keep large buffers that are freed for the next step, or give them back each time.

glibc asks the kernel for every large buffer and returns it at once when it is freed, so that each
activation is paid for with page faults again. Kept in the heap, the memory is used again:
bit-identical results, a fifth to two thirds less time on CPU trunks, and a resident size that stays
at its peak.

The heap has a price where little is kept from one block to the next, as with activation
checkpointing: what is small and stays (a block's input, the notes of autograd) cuts holes that the
next large buffer does not fit into, and a step takes two to four times the memory that is in use at
any time. Given back, large buffers leave no holes.
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
"""As many as glibc allows by default."""
LARGE = 2**20
"""Bytes from which a buffer can be mapped on its own and given back."""


def keep_large_buffers() -> bool:
    """Let the C library keep freed buffers, from now on.

    All come from the heap then, whatever their size, and the heap is not trimmed. (A higher
    threshold for mappings of their own would not do: glibc accepts 32 MB at most, and the pair
    representation of 256 residues has more.)

    Returns
    -------
    bool
        Whether it does: only with glibc, and not with ``MOLFUN_ALLOCATOR=system``.
    """
    return _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER})


def return_large_buffers() -> bool:
    """Let the C library give freed buffers of `LARGE` bytes and more back, from now on.

    Returns
    -------
    bool
        As for `keep_large_buffers`.
    """
    return _set({_MMAP_THRESHOLD: LARGE, _MMAP_MAX: _MAPPINGS})


def trim() -> None:
    """Give freed memory back to the system now, so that it counts as free."""
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> bool:
    if os.environ.get(SWITCH) == "system" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = all(mallopt(name, value) for name, value in options.items())
    logger.debug("mallopt %s: %s", options, done)
    return done
