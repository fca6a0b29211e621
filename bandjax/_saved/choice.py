"""Which values of a function are kept for its derivative, and which are computed again."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from bandjax._saved.graph import Constant, Graph, Node, above_zero, is_relu, is_sure

SMALLEST = 1024  # elements of an array that is worth packing
_MOST_BASES = 4  # large values that may be unpacked for one that is computed again
_VIEWS = ("name", "reshape", "squeeze", "expand_dims", "copy")  # the same numbers
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
_FEWER = 8  # numbers at least of which a statistic is made
_BITS = 4  # about so many a value of what is packed: for comparison with booleans


def is_map(aval: Any) -> bool:
    """Whether a codec packs an array: real numbers, many, and not of a single channel."""
    if not jnp.issubdtype(aval.dtype, jnp.floating) or not _large(aval):
        return False
    return len(aval.shape) >= 2 and aval.shape[-1] > 1


def statistics(graph: Graph) -> frozenset[int]:
    """The numbers of means, norms and the like: what many numbers each are reduced to.

    They are few, so that they may be kept as they are; and they should be: what is divided by them,
    or is their root, has no bound where they are rounded to zero.
    """
    found: set[int] = set()
    for node in graph.nodes:
        operands = [o for o in node.operands if isinstance(o, int)]
        sizes = [_size(graph.types[o]) for o in operands]
        size = max(_size(graph.types[result]) for result in node.results) if node.results else 0
        if node.primitive in _REDUCTIONS:
            few = max(sizes, default=0) >= _FEWER * size
        else:
            of = [s for o, s in zip(operands, sizes, strict=True) if o in found]
            few = node.cheap and size <= max(of, default=0)
            few = few and all(o in found or not _large(graph.types[o]) for o in operands)
        if few:
            found.update(node.results)
    return frozenset(found)


def is_mask(aval: Any) -> bool:
    """Whether an array is kept in bits."""
    return bool(aval.dtype == jnp.bool_) and _large(aval) and len(aval.shape) >= 1


def _large(aval: Any) -> bool:
    open_ended = not all(isinstance(n, int) for n in aval.shape)  # jax.export leaves it open
    return not open_ended and _size(aval) >= SMALLEST


def _size(aval: Any) -> int:
    """Elements, of the axes whose length is known."""
    return math.prod(n for n in getattr(aval, "shape", ()) if isinstance(n, int))


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is kept of a function.

    Attributes:
      kept: numbers of values, in the order made; arguments among them.
      again: nodes by the number of a value that is computed again from these.
      exact: numbers of values that no codec may pack.
    """

    kept: tuple[int, ...]
    again: dict[int, Node]
    exact: frozenset[int]


def choose(
    graph: Graph,
    wanted: Iterable[int | Constant],
    free: set[int],
    few: frozenset[int],
    near_poles: frozenset[int],
) -> Choice:
    """Chooses what to keep so that all wanted values can be had.

    A wanted value is computed again where that takes cheap equations alone and what they start from
    is kept already, or no larger. Booleans and integers that come of numbers which are packed are
    kept themselves: computed again, they might differ.

    Args:
      graph: of the function.
      wanted: numbers of values.
      free: arguments that are there anyway.
      few: the statistics.
      near_poles: numbers of values that may not be packed, of what is made of packed ones.
    """
    makers, exact = graph.makers(), few | near_poles
    bases = _bases(graph, free, few, exact)
    numbers = sorted({w for w in wanted if not isinstance(w, Constant)})
    cost = functools.partial(_cost, graph, exact)
    kept: set[int] = set()
    for number in numbers:  # What cannot be had otherwise, and its equals.
        base = bases[number]
        large = [b for b in base if cost(b) >= cost(number)]
        if base == {number} or (len(large) == 1 and len(_maps(graph, base, exact)) == 1):
            kept |= base
    for number in numbers:
        new = sum(map(cost, bases[number] - kept))
        kept |= bases[number] if new <= cost(number) else {number}
    # Of what is kept nothing need be computed again.
    again: dict[int, Node] = {}
    todo = [n for n in numbers if n not in kept]
    while todo:
        number = todo.pop()
        if number in kept or number in again or number not in makers:
            continue
        again[number] = makers[number]
        todo += [o for o in makers[number].operands if not isinstance(o, Constant)]
    needed = set(numbers) | {
        o for node in again.values() for o in node.operands if not isinstance(o, Constant)
    }
    return Choice(tuple(sorted((kept | free) & needed)), again, exact)


def signs(graph: Graph, kept: Iterable[int]) -> dict[int, int]:
    """For each ``x > 0`` that is kept a float32 array with the same signs that is there anyway.

    That is the ReLU of x, or x: whichever something expensive makes or takes, so that it lies in
    memory. The comparison need then not be made.
    """
    makers = graph.makers()
    stored = {*graph.inputs, *graph.outputs}
    for node in reversed(graph.nodes):
        if not node.cheap:
            stored |= {*node.operands, *node.results}
        elif node.primitive in _VIEWS and not stored.isdisjoint(node.results):
            stored |= {*node.operands}
    relus: dict[int, int] = {}
    for node in graph.nodes:
        if is_relu(node):
            relus |= {o: node.results[0] for o in node.operands if isinstance(o, int)}
    found = {}
    for number in kept:
        of = above_zero(makers[number]) if number in makers else None
        if of is None or not is_mask(graph.types[number]):
            continue
        same = [n for n in (relus.get(of), of) if n in stored]
        if same and graph.types[same[0]].dtype == jnp.float32:
            found[number] = same[0]
    return found


def _maps(graph: Graph, numbers: Iterable[int], exact: frozenset[int]) -> list[int]:
    return [n for n in numbers if is_map(graph.types[n]) and n not in exact]


def _bases(
    graph: Graph, free: set[int], few: frozenset[int], exact: frozenset[int]
) -> dict[int, frozenset[int]]:
    """For each value what would be kept for it: itself, or what it is cheaply made of."""
    nothing: frozenset[int] = frozenset()
    bases = {n: nothing if n in free else frozenset([n]) for n in graph.inputs}
    for node in graph.nodes:
        union = nothing.union(
            *(bases[o] for o in node.operands if not isinstance(o, Constant)), nothing
        )
        for result in node.results:
            own = frozenset([result])
            if not node.cheap:
                bases[result] = own
            elif not union:
                bases[result] = nothing
            else:
                # Made of others rather than kept: maps, and of few others; what is surely the same.
                short = len(_maps(graph, union, exact)) <= _MOST_BASES
                again = _maps(graph, own, few) or is_sure(node.equation)
                bases[result] = union if short and again else own
    return bases


def _cost(graph: Graph, exact: frozenset[int], number: int) -> int:
    """Bits that a value takes, about."""
    aval = graph.types[number]
    size = _size(aval)
    if is_map(aval) and number not in exact:
        return size * _BITS
    return size if is_mask(aval) else 8 * size * aval.dtype.itemsize
