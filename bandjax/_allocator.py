"""A setting of the C library that keeps freed memory in the process."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8


def tune_allocator() -> bool:
    """Keep freed memory in this process, so that large arrays are not made of fresh pages.

    On Linux the C library glibc asks the system for each block above 32 MiB, and gives it back as
    soon as it is freed. JAX on the CPU allocates and frees such blocks in every training step, and
    the system clears every page of each anew: that can take longer than the convolution that
    fills it, most of all on a virtual machine that hands free memory back to its host. After this
    call freed blocks of up to 1 GiB stay in the process and are used again, by every library in
    it. In return the process keeps about the most memory that it has ever used, until it ends.

    Call it at the start of a program, before JAX computes anything: memory that other threads hold
    by then stays as it is. A second call changes nothing more. Nothing else about the results or
    the program changes.

    The same can be had from outside, by the environment of a program that does not call this::

        GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=1073741824:\
glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=67108864

    (one line). What this function sets takes the place of what the environment says.

    Returns:
        Whether it took effect. On other systems and with other C libraries (musl, macOS, Windows)
        nothing is done and the answer is False.

    Example:
        >>> import bandjax
        >>> tuned = bandjax.tune_allocator()  # then build and train the model
    """
    library = _glibc()
    if library is None:
        return False

    def set_to(parameter: int, value: int) -> bool:
        return bool(library.mallopt(parameter, value) == 1)

    # Until version 2.34 glibc refuses a threshold above 32 MiB; to map no block at all is allowed.
    in_heap = set_to(_MMAP_THRESHOLD, 1 << 30) or set_to(_MMAP_MAX, 0)
    kept = set_to(_TRIM_THRESHOLD, 2**31 - 1) and set_to(_TOP_PAD, 64 << 20)
    # Threads otherwise get heaps of their own, of 64 MiB at most: larger blocks do not fit, and
    # are mapped after all. XLA allocates on a thread what it computes asynchronously.
    return set_to(_ARENA_MAX, 1) and in_heap and kept


def _glibc() -> Any | None:
    """The C library of this process, None if it is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
