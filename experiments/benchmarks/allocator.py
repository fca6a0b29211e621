"""Free memory, handed back to the system between the workloads."""

from __future__ import annotations

import ctypes


def release_memory() -> None:
    """Hands all free memory back once, lest different sizes use it up in pieces."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
