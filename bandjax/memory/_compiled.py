"""What XLA allocates for a compiled function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True)
class CompiledBytes:
    """What XLA allocates for a compiled function, in bytes, on each device.

    Attributes:
      temporary: buffers that live within a call: activations, and scratch.
      argument: of the arguments.
      output: of the results.
      alias: of results that take the place of donated arguments; part of both of these.
      peak: the most that is alive at one time, as the compiler plans it; None on a backend that
        does not say. The CPU does not: it reports a number, which is less than its buffers.
    """

    temporary: int
    argument: int
    output: int
    alias: int
    peak: int | None


def compiled_bytes(
    fun: Callable[..., Any],
    *args: Any,
    compiler_options: Mapping[str, Any] | None = None,
    **jit_options: Any,
) -> CompiledBytes:
    """Compiles ``fun`` and returns XLA's own figures of its memory. Nothing is computed.

    Args:
      fun: a function, which is jit-compiled; or one that ``jax.jit`` returned, which is compiled as
        it is.
      args: its arguments, arrays or ``jax.ShapeDtypeStruct``.
      compiler_options: of XLA, such as ``{"xla_cpu_enable_fast_math": True}``.
      jit_options: of ``jax.jit``, such as ``donate_argnums``.

    Raises:
      TypeError: ``jit_options`` for a function that is compiled as it is.
      RuntimeError: the backend has no such figures.

    Example:
      >>> used = compiled_bytes(lambda x: 2 * x, jnp.ones(1000), donate_argnums=0)
      >>> used.argument, used.output, used.alias
      (4000, 4000, 4000)
    """
    if not hasattr(fun, "lower"):
        fun = jax.jit(fun, **jit_options)
    elif jit_options:
        raise TypeError(
            f"fun is jit-compiled already, so that {', '.join(jit_options)} cannot be given to it"
        )
    options = None if compiler_options is None else dict(compiler_options)
    compiled = fun.lower(*args).compile(compiler_options=options)
    figures = compiled.memory_analysis()
    shardings = jax.tree.leaves(compiled.output_shardings)
    devices = shardings[0].device_set if shardings else jax.devices()
    platform = next(iter(devices)).platform
    if figures is None:
        raise RuntimeError(f"XLA has no memory analysis on {platform!r}")
    return CompiledBytes(
        temporary=figures.temp_size_in_bytes,
        argument=figures.argument_size_in_bytes,
        output=figures.output_size_in_bytes,
        alias=figures.alias_size_in_bytes,
        peak=None if platform == "cpu" else getattr(figures, "peak_memory_in_bytes", None) or None,
    )
