"""A function and its derivative as two graphs, and what goes from one to the other."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bandjax._conv.remat import first_elements, hold, holdable
from bandjax._parallel.mesh import vary
from bandjax._saved.bounds import keep_exact
from bandjax._saved.choice import SMALLEST, Choice, choose, is_map, signs, statistics
from bandjax._saved.graph import Constant, Graph, Node, like, read
from bandjax._saved.keep import Kept, keep, keep_integers, keep_signs
from bandjax._saved.pooling import is_pooling, places_of, scatter
from bandjax.codecs._codec import Codec


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["kept", "places"], meta_fields=["plan"]
)
@dataclasses.dataclass(frozen=True)
class Saved:
    """What is kept between the passes.

    Attributes:
      kept: values, by their numbers.
      places: of maxima, by the place of the pooling's derivative in the second graph.
      plan: what to do with them.
    """

    kept: dict[int, Kept]
    places: dict[int, Kept]
    plan: Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A function, its derivative, and what is kept for it.

    Attributes:
      first: the function; further results are what ``jax.vjp`` would keep for the derivative.
      results: how many results the function itself has.
      free: arguments that are there anyway.
      choice: of what is kept.
      second: from what ``jax.vjp`` would keep, and the cotangents, to the gradients.
      moved: which results have a cotangent.
      perturbed: which arguments have a gradient.
      pools: derivatives of max pooling by their place in ``second``, and the number in ``first`` of
        what is pooled.
      signs: numbers of masks that are kept, and of the arrays whose signs they are.
    """

    first: Graph
    results: int
    free: set[int]
    choice: Choice
    second: Graph
    moved: list[bool]
    perturbed: list[bool]
    pools: dict[int, int]
    signs: dict[int, int]

    @staticmethod
    def of(
        whole: Callable[..., list[Any]],
        inputs: Sequence[Any],
        perturbed: list[bool],
        packable: Sequence[bool],
    ) -> Plan | None:
        """The plan for a function of inputs such as these; None without a derivative."""
        if not any(perturbed):
            return None
        structures: list[Any] = []

        def first(*inputs: Any) -> tuple[list[Any], list[Any]]:
            def of_perturbed(*some: Any) -> list[Any]:
                rest = iter(some)
                pairs = zip(inputs, perturbed, strict=True)
                return whole(*(next(rest) if p else i for i, p in pairs))

            some = [i for i, p in zip(inputs, perturbed, strict=True) if p]
            out, pull_back = jax.vjp(of_perturbed, *some)
            leaves, structure = jax.tree.flatten(pull_back)
            structures.append(structure)
            return out, leaves

        closed, (out, _) = jax.make_jaxpr(first, return_shape=True)(*inputs)
        graph, results = Graph.of(closed), len(out)
        types = closed.out_avals
        moved = [bool(jnp.issubdtype(t.dtype, jnp.inexact)) for t in types[:results]]

        def second(leaves: list[Any], cotangents: list[Any]) -> Any:
            rest = iter(cotangents)
            pairs = zip(moved, types[:results], strict=True)
            full = [next(rest) if m else np.zeros(t.shape, jax.dtypes.float0) for m, t in pairs]
            return jax.tree.unflatten(structures[-1], leaves)(full)

        leaves = [like(t) for t in types[results:]]
        cotangents = [like(t) for t, m in zip(types[:results], moved, strict=True) if m]
        back = Graph.of(jax.make_jaxpr(second)(leaves, cotangents)).without(())
        kept = dict(zip(back.inputs, graph.outputs[results:], strict=False))
        # An argument without a gradient is data, which somebody else keeps anyway.
        flags = zip(graph.inputs, packable, perturbed, strict=True)
        free = {n for n, packed, moves in flags if not (packed and moves)}
        pools = {}
        for place, node in enumerate(back.nodes):
            if is_pooling(node) and isinstance(node.operands[1], int):
                number = kept.get(node.operands[1])
                if isinstance(number, int) and number not in free:
                    pools[place] = number
        used = {
            operand
            for place, node in enumerate(back.nodes)
            for operand in (node.operands[:1] if place in pools else node.operands)
        } | set(back.outputs)
        few = statistics(graph)
        wanted = {leaf: value for leaf, value in kept.items() if leaf in used}
        exact = keep_exact(graph, few, back, wanted)
        choice = choose(graph, wanted.values(), free, few, exact)
        of = signs(graph, set(choice.kept) - free)
        return Plan(graph, results, free, choice, back, moved, perturbed, pools, of)

    def maps(self) -> list[int]:
        """The numbers of what the codec packs, in the order made."""
        kept = (n for n in self.choice.kept if n not in self.free)
        return [n for n in kept if is_map(self.first.types[n]) and n not in self.choice.exact]

    def run(self, inputs: Sequence[Any], made: Callable[[int, Any], Any]) -> list[Any]:
        """Computes the results, and tells each value that is kept or pooled when it is there."""
        wanted = {self.signs.get(n, n) for n in self.choice.kept} | {*self.pools.values()}
        graph = dataclasses.replace(self.first, outputs=self.first.outputs[: self.results])
        return graph.without(wanted).run(inputs, made=made)

    def forward(self, inputs: Sequence[Any], codec: Codec) -> tuple[list[Any], Saved]:
        """Computes the results, and keeps each value once it is there."""
        kept: dict[int, Kept] = {}
        places: dict[int, Kept] = {}

        def made(number: int, value: Any) -> Any:
            for mask in masks.get(number, ()):
                kept[mask] = keep_signs(value)
                value = once(value, [kept[mask].stored])
            if number in chosen:
                kept[number] = keep(value, codecs.get(number), number not in self.free)
                if number in codecs:
                    # What comes next waits for the packing: else all might be packed at the end.
                    value = once(value, jax.tree.leaves(kept[number].stored))
            for place in pooled.get(number, ()):
                parameters = self.second.nodes[place].equation.params
                count = math.prod(parameters["window_dimensions"])
                places[place] = keep_integers(places_of(value, parameters), count)
            return value

        chosen = set(self.choice.kept) - set(self.signs)
        maps = self.maps()
        codecs = dict(zip(maps, codec.each([self.first.types[n].shape for n in maps]), strict=True))
        masks: dict[int, list[int]] = {}
        for mask, number in self.signs.items():
            masks.setdefault(number, []).append(mask)
        pooled: dict[int, list[int]] = {}
        for place, number in self.pools.items():
            pooled.setdefault(number, []).append(place)
        out = self.run(inputs, made)
        return out, Saved(kept, places, self)

    def backward(self, saved: Saved, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        """The gradients; None for arguments without one."""
        back = self.second
        count = len(self.first.outputs) - self.results
        again = _Again(saved, self)
        leaves = dict(zip(back.inputs, self.first.outputs[self.results :], strict=False))
        given = [
            _zeros(ct, out, self.first) if isinstance(ct, SymbolicZero) else ct
            for ct, out, moved in zip(cotangents, self.first.outputs, self.moved, strict=False)
            if moved
        ]
        latest = [given]
        moving = back.reached(back.inputs[count:])
        outputs, done = set(back.outputs), []
        places = {id(node): place for place, node in enumerate(back.nodes)}

        def made(number: int, value: Any) -> Any:
            if number in moving:
                latest[0] = [value]
            if number in outputs and value.size >= SMALLEST:
                done.append(value)
            return value

        def instead(node: Node, values: dict[int, Any]) -> list[Any] | None:
            """Makes what the node needs of what is kept, once its other operands are there."""
            if done:
                # A gradient that is done lets go of what it was made of: the rest waits for it.
                for operand in node.operands:
                    if operand in moving and operand in values:
                        values[operand] = once(values[operand], done)
                        done.clear()
                        break
            # What comes of kept values alone is there too early to wait for.
            there = [values[o] for o in node.operands if o in moving]
            after = there or latest[0]
            place = places[id(node)]
            if place in self.pools:
                number = self.pools[place]
                source = read(node.operands[0], values)
                found = again.held(saved.places[place], after).value
                shape = self.first.types[number].shape
                return [scatter(source, found, shape, node.equation.params)]
            for operand in node.operands:
                if isinstance(operand, int) and operand in leaves and values[operand] is None:
                    values[operand] = again.value(leaves[operand], after)
            return None

        # A gradient may be what was kept, as it is.
        whole = {out for out in back.outputs if out in leaves}
        first = [again.value(leaves[i], given) if i in whole else None for i in back.inputs[:count]]
        gradients = iter(back.run(first + given, made=made, instead=instead))
        return tuple(next(gradients) if p else None for p in self.perturbed)


def _zeros(ct: SymbolicZero, out: int | Constant, graph: Graph) -> jax.Array:
    """The cotangent of a result that nobody uses: under ``shard_map`` it varies as that does."""
    zeros = jnp.zeros(ct.shape, ct.dtype)
    if isinstance(out, Constant):
        return zeros
    return vary(zeros, graph.types[out].manual_axis_type.varying)


class _Again:
    """Values of the forward pass, made of what was kept when they are asked for."""

    def __init__(self, saved: Saved, plan: Plan) -> None:
        self._kept = dict(saved.kept)
        self._again = plan.choice.again
        self._types = plan.first.types
        self._order = {id(node): place for place, node in enumerate(plan.first.nodes)}
        self._values: dict[int, Any] = {}

    def value(self, operand: int | Constant, after: Sequence[Any]) -> Any:
        """A value, no earlier than ``after``.

        Only what was unpacked stays there for later: a map that is made of it is made anew for each
        use, of small arrays that XLA takes for others. So it fuses with what uses it, and takes no
        memory.
        """
        if isinstance(operand, Constant):
            return operand.value
        needed: dict[int, Node] = {}
        todo = [operand]
        while todo:
            number = todo.pop()
            if number in self._values:
                continue
            if number in self._kept:
                self._values[number] = self.held(self._kept[number], after).value
                continue
            node = self._again[number]
            if id(node) not in needed:
                needed[id(node)] = node
                todo += [o for o in node.operands if isinstance(o, int)]
        maps: dict[int, Any] = {}
        for node in sorted(needed.values(), key=lambda node: self._order[id(node)]):
            values = [read(o, maps if o in maps else self._values) for o in node.operands]
            if any(is_map(self._types[n]) for n in node.results):
                pairs = zip(node.operands, values, strict=True)
                values = [
                    once(v, after) if isinstance(o, int) and not is_map(self._types[o]) else v
                    for o, v in pairs
                ]
            for number, value in zip(node.results, node.bind(values), strict=True):
                (maps if is_map(self._types[number]) else self._values)[number] = value
        return maps[operand] if operand in maps else self._values[operand]

    def held(self, kept: Kept, after: Sequence[Any]) -> Kept:
        """What was kept, once ``after`` is there: or all might be unpacked at once."""
        return kept.held(lambda stored: once(stored, after))


def once(value: jax.Array, after: Sequence[jax.Array]) -> jax.Array:
    """A value, once others are there: XLA begins what is computed of it no earlier."""
    signal = first_elements(list(after))
    return hold(value, signal) if signal.size and holdable(value, signal) else value
