"""Layers prepared for inference, fused with what follows them.

A model's equations tell what is done with the output of a convolution: a residual is added, a
rectifier follows. Where nothing else reads that output, the kernel that stores it does both, and
two passes over the map are saved. For that the model is traced, with each prepared layer as one
equation, and computed from its equations.

Only what is compiled is traced so: a call outside of ``jax.jit`` would trace the model each time.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Primitive
from jax.interpreters import ad, batching, mlir

from bandjax._conv.remat import explicit
from bandjax._native.epilogue import Epilogue
from bandjax._parallel.mesh import varying_axes
from bandjax._saved.graph import Constant, Graph, Node, called, read

# Whether prepared layers are to be equations of their own.
_TRACING: contextvars.ContextVar[bool] = contextvars.ContextVar("bandjax_fused", default=False)


class Layer(Protocol):
    """What a prepared layer is here; it is hashable."""

    def plain(self, x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
        """Computes it."""
        ...

    def fuses(self, epilogue: Epilogue, x: jax.Array, kernel: jax.Array) -> bool:
        """Whether one kernel computes it with an epilogue."""
        ...

    def finished(
        self, epilogue: Epilogue, x: jax.Array, kernel: jax.Array, *operands: jax.Array
    ) -> jax.Array:
        """Computes it so, without a rule for derivatives."""
        ...


def call(layer: Layer, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Calls a prepared layer; in a trace of :func:`fused` as one equation.

    Args:
      layer: how, see :class:`Layer`.
      x, kernel: its operands.
      bias: or None.
    """
    operands = (x, kernel) if bias is None else (x, kernel, bias)
    if not _TRACING.get() or any(map(explicit, operands)) or any(map(varying_axes, operands)):
        return layer.plain(*operands)
    return _LAYER.bind(*operands, layer=layer)


_LAYER = Primitive("bandjax_prepared_layer")


def _plain(*operands: Any, layer: Layer) -> Any:
    return layer.plain(*operands)


def _abstract(*operands: Any, layer: Layer) -> Any:
    given = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands]
    out = jax.eval_shape(layer.plain, *given)
    return operands[0].update(shape=out.shape, dtype=out.dtype, weak_type=False)


def _jvp(primals: Any, tangents: Any, *, layer: Layer) -> Any:
    given = [
        ad.instantiate_zeros(tangent) if isinstance(tangent, ad.Zero) else tangent
        for tangent in tangents
    ]
    return jax.jvp(layer.plain, primals, given)


def _batch(operands: Any, axes: Any, *, layer: Layer) -> Any:
    return jax.vmap(layer.plain, axes)(*operands), 0


# Of a trace of fused() only the layers within loops, branches and the like are left to JAX.
_LAYER.def_impl(_plain)
_LAYER.def_abstract_eval(_abstract)
mlir.register_lowering(_LAYER, mlir.lower_fun(_plain, multiple_results=False))
ad.primitive_jvps[_LAYER] = _jvp
batching.primitive_batchers[_LAYER] = _batch


def traced(tree: Any) -> bool:
    """Whether some leaf is an array of a trace."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def fused(f: Callable[..., Any], *args: Any) -> Any:
    """``f(*args)``, with what follows a prepared layer done by its kernel.

    Args:
      f: function of pytrees, which may hold other things than arrays; so may its result.
      args: its arguments.
    """
    leaves, structure = jax.tree.flatten(args)
    is_traced = list(map(traced, leaves))
    arrays = [leaf for leaf, t in zip(leaves, is_traced, strict=True) if t]
    # Within shard_map, and on a mesh with explicit axes, types tell more than shapes.
    if not arrays or any(map(explicit, arrays)) or any(map(varying_axes, arrays)):
        return f(*args)
    others: list[Any] = []
    results: list[Any] = []

    def flat(*arrays: Any) -> list[Any]:
        given = iter(arrays)
        whole = [next(given) if t else leaf for leaf, t in zip(leaves, is_traced, strict=True)]
        out, tree = jax.tree.flatten(f(*jax.tree.unflatten(structure, whole)))
        results[:] = [tree]
        others[:] = [None if _is_array(leaf) else (leaf,) for leaf in out]
        return [leaf for leaf in out if _is_array(leaf)]

    with _tracing():
        closed = jax.make_jaxpr(flat)(*arrays)
    made = iter(_run(closed, arrays))
    out = [next(made) if other is None else other[0] for other in others]
    return jax.tree.unflatten(results[0], out)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    token = _TRACING.set(True)
    try:
        yield
    finally:
        _TRACING.reset(token)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _run(closed: ClosedJaxpr, arguments: list[Any]) -> list[Any]:
    """Computes a function from its equations, what follows a layer by the layer's kernel."""
    graph = Graph.of(closed, whole=_stays)
    chains = _chains(graph)

    def instead(node: Node, values: dict[int, Any]) -> list[Any] | None:
        chain = chains.get(id(node))
        if chain is not None:
            return chain.reach(node, values)
        if node.equation.primitive is not _LAYER:
            return None
        operands = [read(operand, values) for operand in node.operands]
        return [node.equation.params["layer"].plain(*operands)]

    return graph.run(arguments, instead=instead)


def _stays(equation: JaxprEqn) -> bool:
    """Whether a call is looked at as a whole: what has a derivative of its own keeps it."""
    return equation.primitive.name == "custom_jvp_call" or _limits(equation) is not None


def _chains(graph: Graph) -> dict[int, _Chain]:
    """The chains of a function, each by the ids of all its equations; none is in two."""
    readers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for operand in node.operands:
            if isinstance(operand, int):
                readers.setdefault(operand, []).append(node)
    given = {out for out in graph.outputs if isinstance(out, int)}
    found: dict[int, _Chain] = {}
    for node in graph.nodes:
        if node.equation.primitive is not _LAYER:
            continue
        chain, number = _Chain(node, bias=len(node.operands) > 2), node.results[0]
        while number not in given and len(readers.get(number, ())) == 1:
            (reader,) = readers[number]
            if id(reader) in found or not chain.add(number, reader, graph.types):
                break
            number = reader.results[0]
        if chain.layer.fuses(chain.epilogue, *(_type(o, graph) for o in node.operands[:2])):
            found.update((id(each), chain) for each in (node, *(n for _, n in chain.passed)))
    return found


def _type(operand: int | Constant, graph: Graph) -> Any:
    return operand.value if isinstance(operand, Constant) else graph.types[operand]


class _Chain:
    """A layer and the equations behind it that its kernel does, computed where the last one is.

    Attributes:
      node: of the layer.
      layer: the layer.
      epilogue: what its kernel does.
      passed: the equations behind it, each with the number of its operand that is passed on.
    """

    def __init__(self, node: Node, *, bias: bool) -> None:
        self.node, self.layer = node, node.equation.params["layer"]
        self.epilogue = Epilogue(bias=bias)
        self.passed: list[tuple[int, Node]] = []
        self._operands: list[Any] = []

    def add(self, number: int, node: Node, types: Sequence[Any]) -> bool:
        """Takes one more equation, which reads ``number``; False where the kernel does not do it.

        ``types`` are those of all numbers.
        """
        epilogue, limits = self.epilogue, _limits(node.equation)
        if limits is not None:
            low, high = max(epilogue.low, limits[0]), min(epilogue.high, limits[1])
            if low > high:  # Which of both comes last would count.
                return False
            self.epilogue = dataclasses.replace(epilogue, low=low, high=high)
        elif node.primitive == "add" and epilogue == Epilogue(bias=epilogue.bias):
            others = [operand for operand in node.operands if operand != number]
            if len(others) != 1 or isinstance(others[0], Constant):
                return False
            ours, theirs = types[number], types[others[0]]
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                return False
            self.epilogue = dataclasses.replace(epilogue, residual=True)
        else:
            return False
        self.passed.append((number, node))
        return True

    def reach(self, node: Node, values: dict[int, Any]) -> list[Any]:
        """Is told each equation of the chain; returns what stands for its result."""
        if node is self.node:
            self._operands = [read(operand, values) for operand in node.operands]
        elif node.primitive == "add":
            number = next(n for n, passed in self.passed if passed is node)
            self._operands += [read(o, values) for o in node.operands if o != number]
        last = self.passed[-1][1] if self.passed else self.node
        return [self._computed(*self._operands) if node is last else None]

    def _computed(self, *operands: Any) -> Any:
        """By one kernel; the derivative is that of the equations."""
        epilogue, layer = self.epilogue, self.layer

        def plain(x: jax.Array, kernel: jax.Array, *others: jax.Array) -> jax.Array:
            y = layer.plain(x, kernel, *others[: epilogue.bias])
            for number, node in self.passed:
                values = {number: y}
                (y,) = node.bind(
                    [
                        others[-1] if isinstance(o, int) and o != number else read(o, values)
                        for o in node.operands
                    ]
                )
            return y

        @jax.custom_vjp
        def both(*operands: jax.Array) -> jax.Array:
            return layer.finished(epilogue, *operands)

        both.defvjp(
            lambda *operands: jax.vjp(plain, *operands), lambda pull_back, ct: pull_back(ct)
        )
        return both(*operands)


def _limits(
    equation: JaxprEqn, known: Mapping[Any, float] = MappingProxyType({})
) -> tuple[float, float] | None:
    """The limits between which an equation clips the one operand that is no known number.

    Args:
      equation: ``max``, ``min``, ``clamp``, or a call of such equations.
      known: numbers by variable.
    """

    def number(atom: Any) -> float | None:
        if not isinstance(atom, Literal):
            return known.get(atom)
        return float(atom.val) if np.ndim(atom.val) == 0 else None

    name, given = equation.primitive.name, [number(atom) for atom in equation.invars]
    if given.count(None) != 1 or any(n is not None and np.isnan(n) for n in given):
        return None
    body = called(equation)
    if body is not None:
        return _limits_of(body, given)
    place = given.index(None)
    if name == "clamp" and place == 1:
        found = given[0], given[2]
    elif name == "max":
        found = given[1 - place], np.inf
    elif name == "min":
        found = -np.inf, given[1 - place]
    else:
        return None
    low, high = found
    return (low, high) if low is not None and high is not None and low <= high else None


def _limits_of(body: ClosedJaxpr, given: Sequence[float | None]) -> tuple[float, float] | None:
    """Those of a function that does so one equation after another."""
    inputs = body.jaxpr.invars
    known = {v: n for v, n in zip(inputs, given, strict=True) if n is not None}
    at, low, high = inputs[list(given).index(None)], -np.inf, np.inf
    for equation in body.jaxpr.eqns:
        (made,) = equation.outvars if len(equation.outvars) == 1 else (None,)
        first = None if isinstance(equation.invars[0], Literal) else equation.invars[0]
        if equation.primitive.name == "convert_element_type" and first in known:
            known[made] = float(np.asarray(known[first]).astype(equation.params["new_dtype"]))
            continue
        limits = _limits(equation, known) if any(v is at for v in equation.invars) else None
        if limits is None:
            return None
        low, high, at = max(low, limits[0]), min(high, limits[1]), made
    return (low, high) if body.jaxpr.outvars == [at] and low <= high else None
