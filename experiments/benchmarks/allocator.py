"""The C library's way to give memory back, which can cost more than what is to be timed."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST = 1 << 30


def reuse_memory() -> bool:
    """Keeps freed memory in the process, for later allocations of any library.

    By default glibc asks the system for each block above some 32 MB and returns it when it is
    freed. The system clears every page anew; on a virtual machine that hands free memory back to
    its host this took longer than a convolution. Blocks above 1 GiB still go that way. All threads
    share one arena: those of threads hold 64 MB at most, and what XLA dispatches asynchronously it
    allocates on a thread.

    Returns:
        Whether the C library could be told: glibc alone can.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {
        _ARENA_MAX: 1,
        _MMAP_THRESHOLD: _LARGEST,
        _TRIM_THRESHOLD: 2**31 - 1,
        _TOP_PAD: 64 << 20,
    }
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())


def release_memory() -> None:
    """Hands all free memory back once, lest different sizes use it up in pieces."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
