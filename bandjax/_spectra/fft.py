"""Fast Fourier transforms that leave a batch where it is.

XLA of jax 0.10 gathers a sharded operand of an FFT onto every device, whatever axis is sharded.
Told how the transform may be partitioned, it transforms each device's share of the batch and of
the channels there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from bandjax._spectra import half


def rfftn(x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Half spectrum ``(N, *half_grid, C)`` of real ``(N, *grid, C)``."""
    return _call("forward", x, grid)


def irfftn(spectrum: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Real signal ``(N, *grid, C)`` of a half spectrum ``(N, *half_grid, C)``."""
    return _call("inverse", spectrum, grid)


def _call(direction: Literal["forward", "inverse"], x: jax.Array, grid: tuple[int, ...]) -> Any:
    if jax.typeof(x).manual_axis_type.varying:  # Under shard_map this is one device's share.
        return _local(direction, grid)(x)
    return _partitioned(direction, grid)(x)


def _local(
    direction: Literal["forward", "inverse"], grid: tuple[int, ...]
) -> Callable[[jax.Array], jax.Array]:
    axes = tuple(range(1, len(grid) + 1))
    if direction == "forward":
        return lambda x: jnp.fft.rfftn(x, axes=axes)
    return lambda spectrum: half.irfftn(spectrum, grid)


@functools.lru_cache(maxsize=256)
def _partitioned(
    direction: Literal["forward", "inverse"], grid: tuple[int, ...]
) -> Callable[[jax.Array], jax.Array]:
    """The transform, with rules for partitioning and for ``vmap`` (partitioning has none)."""
    local = _local(direction, grid)
    rank = len(grid)

    def whole_signals(mesh: Any, operand: Any) -> NamedSharding:
        spec = (*operand.sharding.spec, *[None] * (rank + 2))[: rank + 2]
        return NamedSharding(mesh, PartitionSpec(spec[0], *[None] * rank, spec[-1]))

    def infer(mesh: Any, operands: Any, result: Any) -> NamedSharding:
        return whole_signals(mesh, operands[0])

    def partition(mesh: Any, operands: Any, result: Any) -> Any:
        sharding = whole_signals(mesh, operands[0])
        return mesh, on_one_device, sharding, (sharding,)

    def on_one_device(x: jax.Array) -> jax.Array:
        # The mesh that the user may have set is not there inside one device.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return local(x)

    samples = [f"x{i}" for i in range(rank)]
    frequencies = [f"u{i}" for i in range(rank)]
    into, out = (samples, frequencies) if direction == "forward" else (frequencies, samples)
    transform = custom_partitioning(local)
    transform.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=f"n {' '.join(into)} c -> n {' '.join(out)} c",
        need_replication_factors=(*into, *out),  # In this order, that of their appearance.
    )
    batched = jax.custom_batching.custom_vmap(transform)

    @batched.def_vmap
    def _(axis_size: int, in_batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
        y = batched(x.reshape(-1, *x.shape[2:]))
        return y.reshape(axis_size, -1, *y.shape[1:]), True

    return batched
