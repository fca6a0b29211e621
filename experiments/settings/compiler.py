"""Small programs that XLA compiles in less time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax


@functools.cache
def quick_options() -> dict[str, Any]:
    """What makes XLA compile a small program a few times faster, and the program slower.

    The passes on operations stay, and so do the values but for rounding; the code generator spares
    its effort. An XLA without one of the options refuses to compile: it is left out there.
    """
    options = {}
    for name, value in (
        ("xla_backend_optimization_level", 0),
        ("xla_cpu_use_fusion_emitters", False),
    ):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
            options[name] = value
    return options


def quick_jit(function: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit`` for a program that runs once or is small."""
    return jax.jit(function, compiler_options=quick_options(), **options)
