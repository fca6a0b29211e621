"""Local operations that respect arrays spread over devices, and ``vmap``.

An operation that XLA cannot look into (a native kernel) would be computed whole on every device.
Told which axes of its operands and results are the same, XLA lets each device work on its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Arrays: TypeAlias = tuple[jax.Array, ...]
Operation: TypeAlias = Callable[..., Arrays]
Batching: TypeAlias = Callable[[Operation, int, list[bool], Arrays], Arrays]


def partitioned(
    local: Operation,
    rule: str,
    *,
    shared: Sequence[str],
    summed: Sequence[str] = (),
    batching: Batching,
    mapped: Callable[[list[bool]], bool] = lambda batched: True,
) -> Operation:
    """Returns ``local`` with rules for sharding and for ``vmap``.

    Args:
      local: the operation on one device's share.
      rule: names of the axes, in the form of Shardy's rules: ``"n h c, c o -> n h o"``.
      shared: axes along which devices may share the work; all others are whole on each device.
      summed: those of ``shared`` that some result lacks: of it each device has a part of the sum.
      batching: the results, mapped axis in front, of ``(local, axis_size, in_batched, operands)``;
        called with the partitioned operation.
      mapped: whether the results have that axis, of ``in_batched``.
    """
    operands, results = ([part.split() for part in side.split(",")] for side in rule.split("->"))
    names = list(dict.fromkeys(name for axes in operands + results for name in axes))
    whole = [name for name in names if name not in shared]

    def assign(shapes: Any) -> dict[str, Any]:
        """The mesh axes that shard each name; no mesh axis twice."""
        assigned: dict[str, Any] = {}
        used: set[str] = set()
        for axes, shape in zip(operands, shapes, strict=True):
            # Without Shardy an operand that is not sharded may have no sharding at all.
            spec = tuple(shape.sharding.spec) if shape.sharding is not None else ()
            for name, entry in zip(axes, spec + (None,) * (len(axes) - len(spec)), strict=True):
                mesh_axes = entry if isinstance(entry, tuple) else (entry,) if entry else ()
                free = name in shared and name not in assigned
                if mesh_axes and free and not used.intersection(mesh_axes):
                    assigned[name] = mesh_axes
                    used.update(mesh_axes)
        return assigned

    def shardings(mesh: Any, side: list[list[str]], assigned: dict[str, Any]) -> Any:
        return tuple(
            NamedSharding(mesh, PartitionSpec(*[assigned.get(name) for name in axes]))
            for axes in side
        )

    def infer(mesh: Any, shapes: Any, result_shapes: Any) -> Any:
        return shardings(mesh, results, assign(shapes))

    def partition(mesh: Any, shapes: Any, result_shapes: Any) -> Any:
        assigned = assign(shapes)

        def total(out: jax.Array, axes: list[str]) -> jax.Array:
            lacking = [name for name in summed if name not in axes]
            over = tuple(axis for name in lacking for axis in assigned.get(name, ()))
            return jax.lax.psum(out, over) if over else out

        def on_one_device(*args: jax.Array) -> Arrays:
            # The mesh that the user may have set is not there inside one device.
            with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
                return tuple(map(total, local(*args), results))

        return (
            mesh,
            on_one_device,
            shardings(mesh, results, assigned),
            shardings(mesh, operands, assigned),
        )

    spread = custom_partitioning(local)
    spread.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=rule,
        need_replication_factors=tuple(whole),  # In this order, that of their appearance.
        reduction_factors=tuple(n for n in summed if not any(n in axes for axes in results)),
    )
    # Under shard_map each device has its share already.
    everywhere, alone = (_with_batching(f, batching, mapped) for f in (spread, local))

    def call(*args: jax.Array) -> Arrays:
        varying = jax.typeof(args[0]).manual_axis_type.varying
        # A size that jax.export leaves open cannot be partitioned by rule.
        static = all(isinstance(n, int) for arg in args for n in arg.shape)
        return everywhere(*args) if static and not varying else alone(*args)

    return call


def _with_batching(
    f: Operation, batching: Batching, mapped: Callable[[list[bool]], bool]
) -> Operation:
    """Returns an operation with its rule for ``vmap``: one over nothing gives nothing."""
    batched = jax.custom_batching.custom_vmap(f)

    @batched.def_vmap
    def _(axis_size: int, in_batched: list[bool], *args: jax.Array) -> tuple[Arrays, Any]:
        has_axis = mapped(list(in_batched))
        if axis_size == 0 and has_axis:  # Of nothing no batch or group can be made.
            each = [
                jax.ShapeDtypeStruct(a.shape[1:] if b else a.shape, a.dtype)
                for a, b in zip(args, in_batched, strict=True)
            ]
            out = tuple(jnp.zeros((0, *a.shape), a.dtype) for a in jax.eval_shape(f, *each))
        else:
            out = batching(batched, axis_size, list(in_batched), args)
        return out, tuple(has_axis for _ in out)

    return batched
