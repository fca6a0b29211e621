"""Fast Fourier transforms that leave a batch where it is.

XLA of jax 0.10 gathers a sharded operand of an FFT onto every device, whatever axis is sharded.
Told how the transform may be partitioned, it transforms each device's share of the batch and of
the channels there.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float

from bandjax._parallel.partition import Arrays, Operation, partitioned
from bandjax._spectra import half


def rfftn(x: Float[Array, "N *grid C"], grid: tuple[int, ...]) -> Complex[Array, "N *half C"]:
    """Half spectrum ``(N, *half_grid, C)`` of real ``(N, *grid, C)``."""
    return _operation(grid, False)(x)[0]


def irfftn(
    spectrum: Complex[Array, "N *half C"], grid: tuple[int, ...]
) -> Float[Array, "N *grid C"]:
    """Real signal ``(N, *grid, C)`` of a half spectrum ``(N, *half_grid, C)``."""
    return _operation(grid, True)(spectrum)[0]


@functools.lru_cache(maxsize=256)
def _operation(grid: tuple[int, ...], inverse: bool) -> Operation:
    """The transform, with rules for partitioning and for ``vmap``."""

    def local(x: jax.Array) -> Arrays:
        if inverse:
            return (half.irfftn(x, grid),)
        return (jnp.fft.rfftn(x, axes=range(1, len(grid) + 1)),)

    samples = " ".join(f"x{axis}" for axis in range(len(grid)))
    frequencies = " ".join(f"u{axis}" for axis in range(len(grid)))
    into, out = (frequencies, samples) if inverse else (samples, frequencies)
    return partitioned(local, f"n {into} c -> n {out} c", shared="nc", batching=_join_batch)


def _join_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    (x,) = args
    (y,) = f(x.reshape(size * x.shape[1], *x.shape[2:]))
    return (y.reshape(size, x.shape[1], *y.shape[1:]),)
