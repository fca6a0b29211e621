"""Calling the operator under the three ways JAX has to spread arrays over devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def call(
    operator: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    x: jax.Array,
    kernel: jax.Array,
    rank: int,
    out_sharding: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns ``operator(x, kernel)``: a result that lies like the batch of ``x``, and a small one.

    Two kinds of mesh need help with a ``custom_vjp``. Under ``shard_map`` a gradient must vary over
    the same mesh axes as its argument, so both arguments are cast to vary over the axes of either
    (the cast's own derivative sums over them). On a mesh with explicit axes the derivative rule
    would have to give shardings for every step, so these axes are automatic inside.
    """
    x, kernel = _vary_alike(x, kernel)
    mesh = _explicit_mesh(x, kernel)
    if mesh is None:
        return operator(x, kernel)
    if out_sharding is None:
        batch = _spec(x)[: x.ndim - rank - 1]
        out_sharding = PartitionSpec(*batch, *([None] * rank), _spec(kernel)[-1])
        out_sharding = NamedSharding(mesh, out_sharding)
    shardings = out_sharding, NamedSharding(mesh, PartitionSpec())
    return jax.sharding.auto_axes(operator, out_sharding=shardings)(x, kernel)


def _vary_alike(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes_x, axes_kernel = varying_axes(x), varying_axes(kernel)
    return vary(x, axes_kernel - axes_x), vary(kernel, axes_x - axes_kernel)


def varying_axes(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying


def vary(array: jax.Array, axes: frozenset[str]) -> jax.Array:
    """An array, cast to vary over further mesh axes of a ``shard_map``."""
    return jax.lax.pcast(array, tuple(sorted(axes)), to="varying") if axes else array


def _explicit_mesh(*arrays: jax.Array) -> Any:
    """Returns the mesh whose explicit axes shard one of ``arrays``, or None."""
    for array in arrays:
        mesh = jax.typeof(array).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def _spec(array: jax.Array) -> tuple[Any, ...]:
    spec = tuple(jax.typeof(array).sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))
