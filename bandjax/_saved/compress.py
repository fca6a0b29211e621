"""Any function, its values exact, with what its derivative needs kept compressed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bandjax._conv.closed import array_leaves, split_static, traced
from bandjax._conv.remat import explicit
from bandjax._saved.plan import Plan, Saved
from bandjax.codecs._codec import Codec
from bandjax.codecs._dct import Dct


def compress_saved(
    f: Callable[..., Any],
    codec: Codec = Dct(bits=4),  # noqa: B008  It is frozen.
    *,
    argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """``f`` with the same values, whose gradient is taken from compressed residuals.

    What ``jax.vjp`` would keep of ``f`` between forward and backward pass is looked through. Of
    several arrays that hold the same, one is kept: what cheap operations (those on each element,
    and changes of shape) make of others is made again by the backward pass. Of those that remain,

    - maps, real arrays of two axes and 1024 numbers or more, are packed by ``codec``;
    - booleans are kept in bits, and for the derivative of max pooling the places of the maxima;
    - arguments of ``f``, small arrays and integers stay as they are.

    The forward pass computes exactly what it did. The gradient differs by what the codec loses.

    Args:
      f: function of pytrees of arrays, without side effects. (:func:`bandjax.nnx.compress_saved`
        takes functions of Flax modules, and updates their state.) It is traced, as by ``jax.jit``.
      codec: of :mod:`bandjax.codecs`, or what :func:`bandjax.calibrate_codec` fitted.
      argnums: positions of arguments that are packed too, where they are kept and have a gradient:
        of a part of a model its input, not its parameters.
      static_argnums: positions of arguments that are no arrays, as of ``jax.checkpoint``. Python's
        booleans and strings need not be named.

    Returns:
      The same function, which takes keyword arguments too. It works under ``jit``, ``vmap``,
      ``scan``, ``shard_map`` and ``jax.checkpoint``, and may contain each of them; put it into a
      ``scan``'s body rather than around the ``scan``. ``jax.checkpoint`` of each block of ``f``
      leaves the inputs of the blocks to be kept, and packed. It has first derivatives in reverse
      mode alone: second ones raise NotImplementedError, forward mode JAX's error for
      ``custom_vjp``. On meshes with explicit axes it raises NotImplementedError.

    Raises:
      TypeError: ``f`` is no function, or ``codec`` no codec; from the call where ``f`` or an
        argument cannot be traced.
      ValueError: a position that there is no argument for; from the gradient where a fitted codec
        is for another model.

    Example:
      >>> def f(w, x):
      ...     return jnp.tanh(jnp.tanh(x @ w))
      >>> w, x = jnp.eye(64), jnp.linspace(-1, 1, 2048).reshape(32, 64)
      >>> g = compress_saved(f, Dct(bits=8))
      >>> bool((g(w, x) == f(w, x)).all())
      True
      >>> exact, near = (jax.grad(lambda w: h(w, x).sum())(w) for h in (f, g))
      >>> bool(jnp.linalg.norm(exact - near) < 0.05 * jnp.linalg.norm(exact))
      True

    Source: Chen et al., "ActNN", ICML 2021, and Wang et al., "DIVISION", ICML 2023, keep compressed
    activations layer by layer; here it is done on the equations of any function.
    """
    if not callable(f):
        raise TypeError(f"f must be a function, got {type(f).__name__}")
    check_codec(codec)
    packed = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(f)
    def call(*args: Any, **keywords: Any) -> Any:
        if any(not -len(args) <= n < len(args) for n in packed):
            raise ValueError(
                f"argnums must lie within the {len(args)} positional arguments, got {packed}"
            )
        maps = [i in {n % len(args) for n in packed} for i in range(len(args))]
        fixed = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
        of_arrays, traced = split_static(f, static_argnums, args)
        fixed = tuple(n % len(args) for n in fixed)
        maps = [m for i, m in enumerate(maps) if i not in fixed]
        return _compressed(of_arrays, codec, maps, traced, keywords)

    return call


def check_codec(codec: Any, name: str = "codec") -> None:
    """Raises TypeError unless ``codec`` is one."""
    if not isinstance(codec, Codec):
        raise TypeError(f"{name} must be one of bandjax.codecs, such as Dct(bits=4), got {codec!r}")


def _compressed(
    f: Callable[..., Any], codec: Codec, maps: list[bool], args: Any, keywords: dict[str, Any]
) -> Any:
    """Calls a function of arrays."""
    if any(map(explicit, array_leaves((args, keywords)))):
        raise NotImplementedError(
            "compress_saved needs automatic sharding: on a mesh with explicit axes call it within "
            "jax.sharding.auto_axes"
        )
    call = traced(f, args, keywords, maps)
    function = _with_rule(call.whole, codec, call.packable)
    return jax.tree.unflatten(call.result, function(*call.constants, *call.leaves))


def _with_rule(
    whole: Callable[..., list[Any]], codec: Codec, packable: tuple[bool, ...]
) -> Callable[..., list[Any]]:
    """A function of arrays to arrays, with its compressed derivative."""

    @jax.custom_vjp
    def call(*inputs: Any) -> list[Any]:
        return whole(*inputs)

    def forward(*inputs: Any) -> tuple[list[Any], Any]:
        values = [i.value for i in inputs]
        plan = Plan.of(whole, values, [i.perturbed for i in inputs], packable)
        if plan is None:
            return whole(*values), None
        return plan.forward(values, codec)

    def backward(saved: Saved | None, cotangents: list[Any]) -> tuple[Any, ...]:
        if saved is None:
            return (None,) * len(packable)
        return saved.plan.backward(saved, cotangents)

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call
