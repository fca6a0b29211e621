"""Recomputation from the spectra: what is kept, and when the rest is recomputed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bandjax._conv.closed import split_static, traced
from bandjax._conv.residuals import SPECTRUM_NAME
from bandjax._native.call import by_platform
from bandjax._parallel.mesh import varying_axes
from bandjax._parallel.partition import Arrays, Operation, partitioned

_SMALL = 1024  # elements

save_spectra = jax.checkpoint_policies.save_only_these_names(SPECTRUM_NAME)
"""A policy for ``jax.checkpoint``, ``nnx.remat`` and ``nn.remat``: keep the spectra alone.

Between forward and backward the function then keeps what its band-limited convolutions keep of
their inputs, its own arguments, and nothing else. All else, batch norm and activations included, is
recomputed from the spectra: a synthesis for each convolution, no second analysis.

On the CPU use :func:`bandjax.checkpoint`, which also spares the memory: the CPU compiler of jax
0.10 merges the recomputation of ``jax.checkpoint`` with the forward pass, and keeps everything
after all. (Those of jax 0.11 and 0.12 do not.)

Example:
  >>> def loss(kernel, x):
  ...     return jax.nn.relu(band_conv(x, kernel, Compression(0.5))).sum()
  >>> kernel, x = jnp.ones((3, 3, 4, 8)), jnp.ones((2, 9, 9, 4))
  >>> jax.grad(jax.checkpoint(loss, policy=save_spectra))(kernel, x).shape
  (3, 3, 4, 8)
"""


def checkpoint(
    fun: Callable[..., Any],
    policy: Callable[..., bool] = save_spectra,
    *,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """``jax.checkpoint(fun, policy=policy)`` whose recomputation waits for the backward pass.

    ``jax.checkpoint`` tells XLA by an optimization barrier not to merge what the backward pass
    recomputes with what the forward pass has computed. The CPU compiler of jax 0.10 drops these
    barriers before it looks for common subexpressions, so that the forward pass's values are kept
    after all. Here the barrier is a native kernel, which XLA cannot look into: what is kept goes
    through it once ``fun`` has returned and its cotangents are there. Without native kernels, on
    other platforms, and on a mesh with explicit axes, it is XLA's own barrier.

    Use it on each block of a network: the blocks are then recomputed one at a time, and beside the
    spectra their inputs are kept. Around a whole loss it keeps less between forward and backward,
    but XLA may recompute all layers at once.

    Args:
      fun: function of pytrees of arrays, without side effects. (``bandjax.nnx.remat`` takes
        functions of Flax modules, and updates their state.)
      policy: tells what is kept, see ``jax.checkpoint_policies``. What it offloads is kept in the
        other memory.
      prevent_cse: whether to put the barrier; without, as within ``jax.lax.scan``, it is
        ``jax.checkpoint`` itself.
      static_argnums: positions of arguments that are no arrays, as of ``jax.checkpoint``.

    Returns:
      The same function, which takes keyword arguments too; its gradient recomputes what ``policy``
      does not keep. It has first derivatives in reverse mode alone: second ones raise
      NotImplementedError, forward mode JAX's error for ``custom_vjp`` functions. ``jax.checkpoint``
      itself has all.

    Example:
      >>> def block(kernel, x):
      ...     return jax.nn.relu(band_conv(x, kernel, Compression(0.5)))
      >>> kernel, x = jnp.ones((3, 3, 4, 4)), jnp.ones((2, 9, 9, 4))
      >>> jax.grad(lambda kernel: checkpoint(block)(kernel, x).sum())(kernel).shape
      (3, 3, 4, 4)

    Source: rematerialisation as of Chen et al., "Training deep nets with sublinear memory cost",
    2016, with the compressed spectra for checkpoints.
    """

    @functools.wraps(fun)
    def call(*args: Any, **keywords: Any) -> Any:
        of_arrays, others = split_static(fun, static_argnums, args)
        return _checkpointed(of_arrays, policy, prevent_cse, others, keywords)

    return call


def _checkpointed(
    fun: Callable[..., Any],
    policy: Callable[..., bool],
    prevent_cse: bool,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
) -> Any:
    """Calls a function of arrays, rematerialised."""
    on_explicit = any(map(explicit, jax.tree.leaves((args, keywords))))
    if on_explicit or not prevent_cse:  # On explicit axes a custom_vjp has no gradient.
        return jax.checkpoint(fun, policy=policy, prevent_cse=prevent_cse)(*args, **keywords)

    call = traced(fun, args, keywords)
    out = _call(call.whole, policy, (*call.constants, *call.leaves))
    return jax.tree.unflatten(call.result, out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call(pure: Callable[..., Any], policy: Callable[..., bool], args: tuple[Any, ...]) -> Any:
    return pure(*args)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["made", "given", "after"], meta_fields=["whole"]
)
@dataclasses.dataclass(frozen=True)
class _Residuals:
    """What a call keeps.

    Attributes:
      made: arrays that the call has made.
      given: arguments of the call, which live on anyway, and what cannot be held.
      after: numbers that are there once the call has returned.
      whole: structure of the function that pulls cotangents back, and which of its leaves are made.
    """

    made: list[jax.Array]
    given: list[jax.Array]
    after: jax.Array
    whole: tuple[Any, tuple[bool, ...]]


def _call_fwd(
    pure: Callable[..., Any], policy: Callable[..., bool], args: tuple[Any, ...]
) -> tuple[Any, _Residuals]:
    """Calls the function, and splits what its derivative needs into made and given arrays."""
    out, pull_back = jax.vjp(jax.checkpoint(pure, policy=policy), *args)
    # Of small results alone: the number of a large one would keep the whole alive, and there the
    # cotangents tell.
    after = first_elements([leaf for leaf in jax.tree.leaves(out) if leaf.size <= _SMALL])
    leaves, structure = jax.tree.flatten(pull_back)
    given = {id(leaf) for leaf in jax.tree.leaves(args)}
    made = tuple(id(leaf) not in given and holdable(leaf, after) for leaf in leaves)
    return out, _Residuals(
        made=[leaf for leaf, m in zip(leaves, made, strict=True) if m],
        given=[leaf for leaf, m in zip(leaves, made, strict=True) if not m],
        after=after,
        whole=(structure, made),
    )


def _call_bwd(pure: Any, policy: Any, residuals: _Residuals, ct: Any) -> tuple[Any]:
    structure, made = residuals.whole
    after = jnp.concatenate([residuals.after, first_elements(ct)])
    held, given = (hold(leaf, after) for leaf in residuals.made), iter(residuals.given)
    pull_back = jax.tree.unflatten(structure, [next(held if m else given) for m in made])
    return (pull_back(ct),)


_call.defvjp(_call_fwd, _call_bwd)


def explicit(leaf: Any) -> bool:
    """Whether an array is on a mesh with explicit axes."""
    return jax.sharding.AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def holdable(leaf: jax.Array, after: jax.Array) -> bool:
    """Whether :func:`hold` takes an array."""
    numeric = jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == jnp.bool_
    # Under shard_map, what does not vary over the devices where the results do is a constant.
    varies = varying_axes(leaf) >= varying_axes(after)
    # What is offloaded comes back by a copy, which XLA cannot merge with the forward pass.
    here = jax.typeof(leaf).memory_space != jax.memory.Space.Host
    return bool(numeric) and varies and here and leaf.size > 0


def _is_real(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))


def first_elements(tree: Any) -> jax.Array:
    """One number of each array of numbers, ``(arrays,)``: there once the arrays are."""
    numbers = [
        leaf.reshape(-1)[:1].astype(jnp.float32)
        for leaf in jax.tree.leaves(tree)
        if _is_real(leaf.dtype) and leaf.size
    ]
    return jnp.concatenate(numbers) if numbers else jnp.zeros(0, jnp.float32)


# The barrier.


@jax.custom_jvp
def hold(x: jax.Array, after: jax.Array) -> jax.Array:
    """Returns ``x`` once ``after``, of any size, is there; XLA takes it for another array."""
    return _hold(x.ndim)(x, after)[0]


@hold.defjvp
def _hold_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "bandjax.checkpoint has first derivatives alone; for higher ones use "
        "jax.checkpoint(fun, policy=bandjax.save_spectra)"
    )


@functools.lru_cache
def _hold(rank: int) -> Operation:
    """The barrier for arrays of a rank, with its rules for sharding and ``vmap``."""

    def fallback(x: jax.Array, after: jax.Array) -> Arrays:
        return (jax.lax.optimization_barrier((x, after))[0],)

    def out_types(platform: str, x: jax.Array, after: jax.Array) -> Any:
        return (jax.ShapeDtypeStruct(x.shape, x.dtype),), ()

    axes = " ".join(f"a{i}" for i in range(rank))
    return partitioned(
        # XLA's own barriers hold on a GPU.
        by_platform("hold", out_types, fallback, platforms=("cpu",), aliases={0: 0}),
        f"{axes}, t -> {axes}",
        shared=axes.split(),
        batching=_hold_batch,
        mapped=lambda batched: batched[0],
    )


def _hold_batch(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
    x, after = args
    return _hold(x.ndim)(x, after.reshape(-1))
