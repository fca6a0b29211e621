"""A function's equations as a flat list, and their evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

# What XLA computes again for next to nothing: one number of each operand for one of the result, or
# another order of numbers. Where they round, what is computed again may lie on the other side:
# functions with jumps are not among them.
_CHEAP = frozenset(
    [
        *("abs", "add", "add_any", "atan2", "cbrt", "clamp", "cos", "cosh", "div", "erf", "erfc"),
        *("exp", "exp2", "expm1", "integer_pow", "log", "log1p", "log2", "logistic", "max", "min"),
        *("mul", "neg", "one_minus_square", "polynomial", "pow", "rsqrt", "sin", "sinh", "sqrt"),
        *("square", "sub", "tan", "tanh"),
        *("and", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "not", "or", "select_n", "xor"),
        *("broadcast_in_dim", "concatenate", "expand_dims", "iota", "pad", "reshape", "rev"),
        *("slice", "split", "squeeze", "transpose"),
        *("convert_element_type", "copy", "copy_p", "name", "pcast", "pvary", "real"),
        *("reduce_precision", "sharding_constraint", "stop_gradient"),
    ]
)
_COMPARISONS = frozenset(["eq", "ge", "gt", "le", "lt", "ne"])
_CALLS = frozenset(["jit", "pjit", "closed_call", "core_call", "custom_jvp_call"])


@dataclasses.dataclass(frozen=True)
class Node:
    """An equation.

    Attributes:
      equation: with its primitive and parameters.
      operands: numbers of values, or constants.
      results: numbers of values.
      cheap: whether it may be computed twice.
      about: JAX's notes on the function that it is part of.
    """

    equation: JaxprEqn
    operands: tuple[int | Constant, ...]
    results: tuple[int, ...]
    cheap: bool
    about: Any

    @property
    def primitive(self) -> str:
        return self.equation.primitive.name

    def bind(self, values: Sequence[Any]) -> list[Any]:
        """Computes the results."""
        equation = self.equation
        pairs = zip(equation.invars, values, strict=True)
        given = {atom: value for atom, value in pairs if not isinstance(atom, Literal)}
        # A function of this one equation: names, source and context stay with it.
        alone = Jaxpr(
            [], [*given], equation.outvars, [equation], equation.effects, debug_info=self.about
        )
        return list(jaxpr_as_fun(ClosedJaxpr(alone, ()))(*given.values()))


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A value that no equation makes."""

    value: Any


@dataclasses.dataclass
class Graph:
    """The equations of a function, those of functions that it calls among them.

    Attributes:
      inputs: numbers of its arguments.
      outputs: numbers of its results, or constants.
      nodes: in an order in which they can be computed.
      types: abstract value of each number.
      whole: tells of a call that it is to stay one equation; None: one of cheap equations alone.
    """

    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int | Constant] = dataclasses.field(default_factory=list)
    nodes: list[Node] = dataclasses.field(default_factory=list)
    types: list[Any] = dataclasses.field(default_factory=list)
    whole: Callable[[JaxprEqn], bool] | None = None

    @staticmethod
    def of(closed: ClosedJaxpr, **options: Any) -> Graph:
        """The graph of a jaxpr."""
        graph = Graph(**options)
        graph.inputs = [graph._new(var.aval) for var in closed.jaxpr.invars]
        graph.outputs = graph._add(closed.jaxpr, closed.consts, graph.inputs)
        return graph

    def _new(self, aval: Any) -> int:
        self.types.append(aval)
        return len(self.types) - 1

    def _add(
        self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[int | Constant]
    ) -> list[int | Constant]:
        """Adds the equations of a jaxpr, with those of what it calls."""
        number: dict[Any, int | Constant] = dict(zip(jaxpr.invars, arguments, strict=True))
        number.update(zip(jaxpr.constvars, map(Constant, consts), strict=True))

        def read(atom: Any) -> int | Constant:
            return Constant(atom.val) if isinstance(atom, Literal) else number[atom]

        whole = is_cheap if self.whole is None else self.whole
        about: Any = jaxpr.debug_info
        about = about._replace(arg_names=None, result_paths=None)
        for equation in jaxpr.eqns:
            operands = tuple(map(read, equation.invars))
            body = called(equation)
            if body is not None and not whole(equation):
                results = self._add(body.jaxpr, body.consts, operands)
                number.update(zip(equation.outvars, results, strict=True))
                continue
            made = tuple(self._new(var.aval) for var in equation.outvars)
            number.update(zip(equation.outvars, made, strict=True))
            self.nodes.append(Node(equation, operands, made, is_cheap(equation), about))
        return [read(atom) for atom in jaxpr.outvars]

    def makers(self) -> dict[int, Node]:
        """The node that makes each value."""
        return {result: node for node in self.nodes for result in node.results}

    def made_cheaply(self, numbers: Iterable[int]) -> list[Node]:
        """The nodes that make these values cheaply, of what is not made so."""
        makers, todo, found = self.makers(), [*numbers], set()
        while todo:
            number = todo.pop()
            if number in found or number not in makers or not makers[number].cheap:
                continue
            found.add(number)
            todo += [o for o in makers[number].operands if isinstance(o, int)]
        return [node for node in self.nodes if not found.isdisjoint(node.results)]

    def reached(self, start: Iterable[int]) -> set[int]:
        """The numbers of these values and of all that depends on them."""
        found = set(start)
        for node in self.nodes:
            if not found.isdisjoint(node.operands):
                found.update(node.results)
        return found

    def without(self, wanted: Iterable[int]) -> Graph:
        """The graph without the nodes that neither outputs nor wanted values need."""
        needed = {out for out in self.outputs if isinstance(out, int)} | set(wanted)
        nodes = []
        for node in reversed(self.nodes):
            if node.equation.effects or not needed.isdisjoint(node.results):
                needed.update(operand for operand in node.operands if isinstance(operand, int))
                nodes.append(node)
        return dataclasses.replace(self, nodes=nodes[::-1])

    def run(
        self,
        arguments: Sequence[Any],
        *,
        made: Callable[[int, Any], Any] = lambda number, value: value,
        instead: Callable[[Node, dict[int, Any]], list[Any] | None] = lambda node, values: None,
    ) -> list[Any]:
        """Computes the outputs, and lets go of each value after its last use.

        Args:
          arguments: of the function.
          made: is told each value, with its number, as soon as it is there; returns it, or what is
            to be used in its place.
          instead: is told each node beforehand, with the values there are, to which it may add; it
            may return the node's results.
        """
        last = {
            operand: place
            for place, node in enumerate(self.nodes)
            for operand in node.operands
            if isinstance(operand, int)
        }
        last.update((out, len(self.nodes)) for out in self.outputs if isinstance(out, int))
        values = dict(zip(self.inputs, arguments, strict=True))
        for number, value in values.items():
            values[number] = made(number, value)
        for place, node in enumerate(self.nodes):
            results = instead(node, values)
            if results is None:
                results = node.bind([read(operand, values) for operand in node.operands])
            for number, value in zip(node.results, results, strict=True):
                used = made(number, value)
                if number in last:
                    values[number] = used
            for operand in node.operands:
                if isinstance(operand, int) and last[operand] == place:
                    values.pop(operand, None)
        return [read(out, values) for out in self.outputs]


def read(operand: int | Constant, values: dict[int, Any]) -> Any:
    """The value of an operand."""
    return operand.value if isinstance(operand, Constant) else values[operand]


def called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The function that an equation calls with its operands, if it is known to do that alone."""
    if equation.primitive.name not in _CALLS:
        return None
    body = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return ClosedJaxpr(body, ()) if isinstance(body, Jaxpr) else body


def is_cheap(equation: JaxprEqn) -> bool:
    """Whether an equation, with all that it calls, is cheap to compute twice.

    A function that compares numbers is none: they may be rounded before it is called again, so that
    the comparisons have to be seen one by one.
    """
    body = called(equation)
    if body is None:
        return equation.primitive.name in _CHEAP and not equation.effects
    equations = body.jaxpr.eqns
    compares = any(e.primitive.name in _COMPARISONS and not is_sure(e) for e in equations)
    return not body.consts and not compares and all(map(is_cheap, equations))


def is_sure(equation: JaxprEqn) -> bool:
    """Whether an equation tells of numbers what rounding does not change: if they are finite."""
    name, atoms = equation.primitive.name, equation.invars
    if name not in ("eq", "ne"):
        return name == "is_finite"
    infinite = any(isinstance(a, Literal) and np.all(np.isinf(a.val)) for a in atoms)
    return infinite or atoms[0] is atoms[1]


def above_zero(node: Node) -> int | None:
    """Of ``x > 0`` the number of x."""
    of = _with_zero(node.equation, "gt")
    operand = None if of is None else node.operands[of]
    return operand if isinstance(operand, int) else None


def is_relu(node: Node) -> bool:
    """Whether an equation is ``max(x, 0)``, or calls a function of x that is that alone."""
    equation = node.equation
    while (body := called(equation)) is not None:
        only = len(body.jaxpr.eqns) == len(equation.invars) == 1
        if not only or body.jaxpr.outvars != body.jaxpr.eqns[0].outvars:
            return False
        equation = body.jaxpr.eqns[0]
    return _with_zero(equation, "max") is not None


def _with_zero(equation: JaxprEqn, name: str) -> int | None:
    """Of a comparison with the number 0, the place of the other operand; 0 comes second in gt."""
    if equation.primitive.name != name:
        return None
    zeros = [isinstance(a, Literal) and np.ndim(a.val) == 0 and a.val == 0 for a in equation.invars]
    if zeros == [False, True]:
        return 0
    return 1 if zeros == [True, False] and name == "max" else None


def like(aval: Any) -> jax.ShapeDtypeStruct:
    """What ``jax.make_jaxpr`` takes for an argument of a type."""
    return jax.ShapeDtypeStruct(
        aval.shape,
        aval.dtype,
        weak_type=getattr(aval, "weak_type", False),
        **_manual(aval),
    )


def _manual(aval: Any) -> dict[str, Any]:
    """Over which devices an array varies, under ``shard_map``."""
    kind = getattr(aval, "manual_axis_type", None)
    if kind is None or not getattr(kind, "varying", None):
        return {}
    return {"sharding": aval.sharding, "manual_axis_type": kind}
