"""Which values of a function are kept for its derivative, and which are computed again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from bandjax._saved.graph import Constant, Graph, Node, above_zero, is_relu

SMALLEST = 1024  # elements of an array that is worth packing
_MOST_BASES = 4  # large values that may be unpacked for one that is computed again
_VIEWS = ("name", "reshape", "squeeze", "expand_dims", "copy")  # the same numbers
_BITS = 4  # about so many a value of what is packed: for comparison with booleans


def is_map(aval: Any) -> bool:
    """Whether a codec packs an array: real numbers, many, and not of a single channel."""
    if not jnp.issubdtype(aval.dtype, jnp.floating) or not _large(aval):
        return False
    return len(aval.shape) >= 2 and aval.shape[-1] > 1


def is_mask(aval: Any) -> bool:
    """Whether an array is kept in bits."""
    return bool(aval.dtype == jnp.bool_) and _large(aval) and len(aval.shape) >= 1


def _large(aval: Any) -> bool:
    size = 1
    for n in aval.shape:
        if not isinstance(n, int):  # jax.export leaves it open
            return False
        size *= n
    return size >= SMALLEST


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is kept of a function.

    Attributes:
      kept: numbers of values, in the order made; arguments among them.
      again: nodes by the number of a value that is computed again from these.
    """

    kept: tuple[int, ...]
    again: dict[int, Node]


def choose(graph: Graph, wanted: Iterable[int | Constant], free: set[int]) -> Choice:
    """Chooses what to keep so that all wanted values can be had.

    A wanted value is computed again where that takes cheap equations alone and what they start from
    is kept already, or no larger. Booleans and integers that come of numbers which are packed are
    kept themselves: computed again, they might differ.

    Args:
      graph: of the function.
      wanted: numbers of values.
      free: arguments that are there anyway.
    """
    makers = graph.makers()
    bases = _bases(graph, free)
    numbers = sorted({w for w in wanted if not isinstance(w, Constant)})
    kept: set[int] = set()
    for number in numbers:  # What cannot be had otherwise, and its equals.
        base = bases[number]
        large = [b for b in base if _cost(graph, b) >= _cost(graph, number)]
        if base == {number} or (len(large) == 1 and len(_maps(graph, base)) == 1):
            kept |= base
    for number in numbers:
        new = sum(_cost(graph, base) for base in bases[number] - kept)
        kept |= bases[number] if new <= _cost(graph, number) else {number}
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
    return Choice(tuple(sorted((kept | free) & needed)), again)


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


def _maps(graph: Graph, numbers: Iterable[int]) -> list[int]:
    return [n for n in numbers if is_map(graph.types[n])]


def _bases(graph: Graph, free: set[int]) -> dict[int, frozenset[int]]:
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
                bases[result] = union if _may_be_made(graph, result, union) else own
    return bases


def _may_be_made(graph: Graph, number: int, union: frozenset[int]) -> bool:
    """Whether to make a value of others rather than keep it: only maps, and of few others."""
    return is_map(graph.types[number]) and len(_maps(graph, union)) <= _MOST_BASES


def _cost(graph: Graph, number: int) -> int:
    """Bits that a value takes, about."""
    aval = graph.types[number]
    size = 1
    for n in aval.shape:
        size *= n if isinstance(n, int) else 1
    if is_map(aval):
        return size * _BITS
    return size if is_mask(aval) else 8 * size * aval.dtype.itemsize
