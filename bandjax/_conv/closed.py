"""Functions of arrays alone: without static arguments, and without what they close over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def split_static(
    fun: Callable[..., Any], static_argnums: int | Sequence[int], args: tuple[Any, ...]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a function of the other arguments alone, and these.

    Raises:
      ValueError: a position that there is no argument for.
    """
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if not numbers:
        return fun, args
    if any(not -len(args) <= n < len(args) for n in numbers):
        raise ValueError(
            f"static_argnums must lie within the {len(args)} positional arguments, got {numbers}"
        )
    static = {n % len(args): args[n] for n in numbers}

    def of_arrays(*traced: Any, **keywords: Any) -> Any:
        rest = iter(traced)
        every = [static[i] if i in static else next(rest) for i in range(len(args))]
        return fun(*every, **keywords)

    return of_arrays, tuple(arg for i, arg in enumerate(args) if i not in static)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function of arrays, its closed-over values among its arguments.

    Attributes:
      whole: takes the constants and the leaves of the arguments, returns those of the result.
      constants: traced values that the function closes over.
      packable: which of these arguments may be packed.
      result: structure of the result.
      leaves: of the arguments, which ``whole`` takes behind the constants.
    """

    whole: Callable[..., list[Any]]
    constants: Sequence[Any]
    packable: tuple[bool, ...]
    result: Any
    leaves: list[Any]


def array_leaves(tree: Any) -> list[Any]:
    """The leaves of a pytree but for Python's own booleans and strings, which are not traced."""
    return [leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, bool | str)]


def traced(
    f: Callable[..., Any], args: Any, keywords: Any, maps: Sequence[bool] | None = None
) -> Traced:
    """Traces a function of arrays; ``maps`` tells which positional arguments may be packed.

    Python's own booleans and strings, such as ``train=True``, stay what they are.
    """
    every, structure = jax.tree.flatten((args, keywords))
    fixed = {i: leaf for i, leaf in enumerate(every) if isinstance(leaf, bool | str)}
    leaves = array_leaves((args, keywords))
    maps = [False] * len(args) if maps is None else maps
    packable = [m for arg, m in zip(args, maps, strict=True) for _ in array_leaves(arg)]
    packable += [False] * (len(leaves) - len(packable))
    result: list[Any] = []

    def flat(*leaves: Any) -> list[Any]:
        rest = iter(leaves)
        whole = [fixed[i] if i in fixed else next(rest) for i in range(len(every))]
        args, keywords = jax.tree.unflatten(structure, whole)
        out, tree = jax.tree.flatten(f(*args, **keywords))
        result.append(tree)
        return out

    closed = jax.make_jaxpr(flat)(*leaves)
    # What f closes over becomes an argument where it is traced: a custom_vjp may not depend on
    # other traced values. Arrays stay where they are.
    moves = [isinstance(const, jax.core.Tracer) for const in closed.consts]
    constants = [const for const, moved in zip(closed.consts, moves, strict=True) if moved]
    count = len(constants)

    def whole(*inputs: Any) -> list[Any]:
        given = iter(inputs[:count])
        pairs = zip(closed.consts, moves, strict=True)
        every = [next(given) if moved else const for const, moved in pairs]
        return list(jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, every))(*inputs[count:]))

    return Traced(whole, constants, (False,) * count + tuple(packable), result[-1], leaves)
