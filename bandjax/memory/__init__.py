"""What training keeps in memory: the tensors between forward and backward, and XLA's own figures.

:func:`saved_bytes` counts what reverse-mode differentiation keeps of a function, tensor by tensor,
before any compiler has seen it; :func:`compiled_bytes` asks XLA what a compiled function allocates.
:func:`table` and :func:`plot` set several functions side by side.
"""

from __future__ import annotations

from bandjax.memory._compiled import CompiledBytes, compiled_bytes
from bandjax.memory._report import plot, table
from bandjax.memory._saved import KINDS, SavedBytes, SavedTensor, saved_bytes

__all__ = [
    "KINDS",
    "CompiledBytes",
    "SavedBytes",
    "SavedTensor",
    "compiled_bytes",
    "plot",
    "saved_bytes",
    "table",
]
