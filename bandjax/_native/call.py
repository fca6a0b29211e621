"""How native kernels are called; ``ffi/README.md`` has their interface.

Each operation is called through four wrappers: its rule for derivatives, one for ``vmap``, one for
partitioning over devices, and the choice by platform between the kernel and its equal in XLA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bandjax._native import extension
from bandjax._parallel.partition import Arrays, Operation

_TARGET = "bandjax_{}"

NATIVE_TARGETS = tuple(
    _TARGET.format(name)
    for name in (
        *("analysis", "synthesis", "multiply_sum", "input_product", "filter_product", "hold"),
        *("columns", "columns_gradients"),
        *("direct", "direct_filter", "windows", "windows_filter"),
        *("pack", "unpack", "pack_bits", "unpack_bits"),
    )
)
"""Names of the kernels in a compiled program, for ``jax.export``'s list of trusted custom calls."""


def supports(dtype: Any, platform: str) -> bool:
    """Whether there are kernels for a platform that compute in ``dtype``."""
    wide = dtype == jnp.float64
    return not (wide and platform != "cpu") and extension.available(_platform(platform))


def require(platform: str) -> None:
    """Raises RuntimeError, which says why and how to build them, if there are no kernels."""
    extension.require(_platform(platform))


def _platform(platform: str) -> str:
    return "cuda" if platform == "gpu" else platform


def by_platform(
    target: str,
    out_types: Callable[..., Any],
    fallback: Operation,
    *,
    attributes: Callable[[str, np.dtype[Any]], dict[str, Any]] = lambda platform, dtype: {},
    platforms: Sequence[str] = ("cpu", "cuda"),
    aliases: dict[int, int] | None = None,
) -> Operation:
    """The kernel on those platforms that have it, ``fallback`` on the others.

    Args:
      target: name of the kernel.
      out_types: tells, of a platform and the operands, the results, those of ``fallback``, and then
        the workspace.
      fallback: the same in XLA.
      attributes: tells the handler's, of a platform and the type of the first operand.
      platforms: for which there is such a kernel.
      aliases: results, by operand, that share its memory.
    """

    def call_kernel(platform: str, *args: jax.Array) -> Arrays:
        results, workspace = out_types(platform, *args)
        # Under shard_map results vary over the devices as the first operand does.
        like = jax.typeof(args[0])
        shapes = [
            jax.ShapeDtypeStruct(
                r.shape,
                r.dtype,
                sharding=NamedSharding(like.sharding.mesh, PartitionSpec()),
                manual_axis_type=like.manual_axis_type,
            )
            for r in (*results, *workspace)
        ]
        kernel = jax.ffi.ffi_call(_TARGET.format(target), shapes, input_output_aliases=aliases)
        out = kernel(*args, **attributes(platform, args[0].dtype))
        return tuple(out[: len(results)])

    kernels = {
        platform: functools.partial(call_kernel, platform)
        for platform in platforms
        if extension.available(platform)
    }

    def call(*args: jax.Array) -> Arrays:
        return jax.lax.platform_dependent(*args, **kernels, default=fallback)

    return call


def join_batch(spectrum: jax.Array) -> jax.Array:
    """``(B, *box, n, c)`` to ``(*box, B * n, c)``."""
    size, n, c = spectrum.shape[0], *spectrum.shape[-2:]
    spectrum = jnp.moveaxis(spectrum, 0, -3)
    return spectrum.reshape(*spectrum.shape[:-3], size * n, c)


def split_batch(spectrum: jax.Array, size: int, each: int) -> jax.Array:
    """``(*box, size * each, c)`` to ``(size, *box, each, c)``."""
    spectrum = spectrum.reshape(*spectrum.shape[:-2], size, each, spectrum.shape[-1])
    return jnp.moveaxis(spectrum, -3, 0)


def repeat(a: jax.Array, size: int) -> jax.Array:
    return jnp.broadcast_to(a, (size, *a.shape))
