"""Between which bounds numbers lie whatever a codec makes of maps, and what must not be rounded.

A codec gives back numbers that are near, also where they were small: a positive one may come back
as zero or below. What the derivative divides by, or takes a root or a logarithm of, must not be
such a number. It is safe where its bounds follow from how it is made (``1 + abs(x)``, of any x);
else it is kept as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from bandjax._saved.choice import is_map
from bandjax._saved.graph import Constant, Graph, Node, called

Bounds = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)
_TINY = float(np.finfo(np.float32).tiny)

# The numbers of the first operand, all of them or some.
_SAME = frozenset(
    [
        *("broadcast_in_dim", "convert_element_type", "copy", "copy_p", "cummax", "cummin"),
        *("dynamic_slice", "expand_dims", "name", "pcast", "pvary", "real", "reduce_max"),
        *("reduce_min", "reduce_precision", "reshape", "rev", "sharding_constraint", "slice"),
        *("split", "squeeze", "stop_gradient", "transpose"),
    ]
)
_SUMS = frozenset(["cumsum", "reduce_sum", "reduce_window_sum"])


def keep_exact(
    first: Graph, statistics: frozenset[int], second: Graph, leaves: Mapping[int, int | Constant]
) -> frozenset[int]:
    """The numbers of ``first`` that no codec may pack, for ``second`` divides by them or the like.

    Args:
      first: a function.
      statistics: numbers of ``first`` that are kept as they are anyway.
      second: its derivative.
      leaves: for inputs of ``second`` what they are in ``first``.
    """
    ours = _all_bounds(first, {})
    given = {
        n: of_constant(v.value) if isinstance(v, Constant) else ours[v] for n, v in leaves.items()
    }
    theirs = _all_bounds(second, given)
    exact: set[int] = set()
    wanted: set[tuple[int, bool]] = set()
    makers = second.makers()
    for number, whole in _divisors(second, theirs, second.nodes):
        for reached in _followed(makers, theirs, number, whole, frozenset()):
            of = leaves.get(reached[0])
            if isinstance(of, int):
                wanted.add((of, reached[1]))
    # What is computed again of what was kept must be safe as well.
    again = first.made_cheaply(v for v in leaves.values() if isinstance(v, int))
    wanted.update(_divisors(first, ours, again))
    makers = first.makers()
    for number, whole in wanted:
        exact.update(n for n, _ in _followed(makers, ours, number, whole, statistics))
    return frozenset(exact | _steep(first, {number for number, whole in wanted if whole}))


def _steep(graph: Graph, divisors: set[int]) -> set[int]:
    """What is cheaply made of these alone: reciprocals differ by orders of magnitude."""
    steep = set(divisors)
    for node in graph.nodes:
        maps = [o for o in node.operands if isinstance(o, int) and is_map(graph.types[o])]
        if node.cheap and maps and steep.issuperset(maps):
            steep.update(node.results)
    return steep


def _divisors(
    graph: Graph, bounds: Sequence[Bounds], nodes: Sequence[Node]
) -> Iterator[tuple[int, bool]]:
    """What the nodes divide by and the like, and whether no bounds make that safe."""
    for node in nodes:
        of = [_read(o, bounds) for o in node.operands]
        for place, safe in demands(node.equation, of):
            operand = node.operands[place]
            if isinstance(operand, int):
                yield operand, not safe


def _followed(
    makers: Mapping[int, Node],
    bounds: Sequence[Bounds],
    number: int,
    whole: bool,
    stop: frozenset[int],
) -> Iterator[tuple[int, bool]]:
    """A number and those that it is cheaply made of, as far as its bounds depend on them.

    With ``whole`` all of them.
    """
    todo, seen = [number], set()
    while todo:
        number = todo.pop()
        if number in seen or number in stop:
            continue
        seen.add(number)
        yield number, whole
        node = makers.get(number)
        if node is None or not node.cheap:
            continue
        operands = node.operands
        if not whole:
            operands = _needed(node, node.results.index(number), bounds)
        todo += [o for o in operands if isinstance(o, int)]


def _needed(node: Node, result: int, bounds: Sequence[Bounds]) -> tuple[int | Constant, ...]:
    """The operands without whose bounds a result's would be wider."""
    known = [_read(o, bounds) for o in node.operands]
    wanted = bounds_of(node.equation, known)[result]
    needed = []
    for place, operand in enumerate(node.operands):
        less = [*known[:place], ANY, *known[place + 1 :]]
        if bounds_of(node.equation, less)[result] == wanted:
            known = less  # For good: another operand might stand for this one.
        else:
            needed.append(operand)
    return tuple(needed)


def _read(operand: int | Constant, bounds: Sequence[Bounds]) -> Bounds:
    if isinstance(operand, Constant):
        return of_constant(operand.value)
    return bounds[operand]


def _all_bounds(graph: Graph, given: Mapping[int, Bounds]) -> list[Bounds]:
    """The bounds of every number of a graph; of inputs ``given``, or none."""
    bounds = [ANY] * len(graph.types)
    for number, known in given.items():
        bounds[number] = known
    for node in graph.nodes:
        made = bounds_of(node.equation, [_read(o, bounds) for o in node.operands])
        for number, known in zip(node.results, made, strict=True):
            bounds[number] = known
    return bounds


def of_constant(value: Any) -> Bounds:
    """The bounds of a single number that is known; none of others."""
    if isinstance(value, jax.core.Tracer) or np.size(value) != 1:
        return ANY
    if not jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.number):
        return ANY
    number = complex(np.asarray(value).item())
    return ANY if number.imag or math.isnan(number.real) else (number.real, number.real)


# -------------------------------------------------------------------------------- of one equation


def bounds_of(equation: JaxprEqn, operands: Sequence[Bounds]) -> list[Bounds]:
    """The bounds of an equation's results, of those of its operands."""
    body = called(equation)
    if body is not None:
        known = _inside(body.jaxpr, operands)
        made = [_of_atom(atom, known) for atom in body.jaxpr.outvars]
    else:
        made = [_rule(equation, operands)] * len(equation.outvars)
    return [_of_type(var.aval, each) for var, each in zip(equation.outvars, made, strict=True)]


def demands(equation: JaxprEqn, operands: Sequence[Bounds]) -> list[tuple[int, bool]]:
    """Which operands an equation divides by or the like, and whether their bounds make it safe."""
    body = called(equation)
    if body is None:
        return _demand(equation, operands)

    jaxpr, places = body.jaxpr, range(len(operands))
    unsafe = _unsafe(jaxpr, operands)
    if unsafe:
        reached = _origins(jaxpr, unsafe)
        return [(place, False) for place in places if jaxpr.invars[place] in reached]

    def blind(place: int) -> list[Bounds]:
        return [ANY if other == place else of for other, of in enumerate(operands)]

    return [(place, True) for place in places if _unsafe(jaxpr, blind(place))]


def _unsafe(jaxpr: Any, operands: Sequence[Bounds]) -> set[Any]:
    """What a function divides by and the like, where its operands' bounds do not make it safe."""
    known, found = _inside(jaxpr, operands), set()
    for inner in jaxpr.eqns:
        of = [_of_atom(atom, known) for atom in inner.invars]
        found |= {inner.invars[place] for place, safe in demands(inner, of) if not safe}
    return {atom for atom in found if not isinstance(atom, Literal)}


def _origins(jaxpr: Any, atoms: set[Any]) -> set[Any]:
    """These atoms, and all that they are made of."""
    found = set(atoms)
    for inner in reversed(jaxpr.eqns):
        if not found.isdisjoint(inner.outvars):
            found.update(atom for atom in inner.invars if not isinstance(atom, Literal))
    return found


def _inside(jaxpr: Any, operands: Sequence[Bounds]) -> dict[Any, Bounds]:
    known = dict(zip(jaxpr.invars, operands, strict=True))
    for inner in jaxpr.eqns:
        of = [_of_atom(atom, known) for atom in inner.invars]
        known.update(zip(inner.outvars, bounds_of(inner, of), strict=True))
    return known


def _of_atom(atom: Any, known: Mapping[Any, Bounds]) -> Bounds:
    return of_constant(atom.val) if isinstance(atom, Literal) else known.get(atom, ANY)


def _of_type(aval: Any, bounds: Bounds) -> Bounds:
    """The same, of a type that has bounds itself."""
    bounds = (_known(bounds[0], -math.inf), _known(bounds[1], math.inf))
    dtype = getattr(aval, "dtype", None)
    if dtype == jnp.bool_:
        return (max(bounds[0], 0.0), min(bounds[1], 1.0))
    if dtype is not None and jnp.issubdtype(dtype, jnp.unsignedinteger):
        return (max(bounds[0], 0.0), bounds[1])
    return bounds


def _known(bound: float, none: float) -> float:
    return none if math.isnan(bound) else bound


def _demand(equation: JaxprEqn, operands: Sequence[Bounds]) -> list[tuple[int, bool]]:
    """The same of an equation that calls no function."""
    name, low = equation.primitive.name, [of[0] for of in operands]
    if name in ("div", "rem"):
        return [(1, _has_no_zero(operands[1]))]
    if name == "integer_pow":
        return [(0, _has_no_zero(operands[0]))] if equation.params["y"] < 0 else []
    if name == "pow":
        return [(0, low[0] > 0 or (low[0] == 0 and low[1] >= 0))]
    if name == "sqrt":
        return [(0, low[0] >= 0)]
    if name == "log1p":
        return [(0, low[0] > -1)]
    if name in ("digamma", "lgamma", "log", "log2", "rsqrt"):
        return [(0, low[0] > 0)]
    return []


def _has_no_zero(of: Bounds) -> bool:
    return of[0] > 0 or of[1] < 0


def _rule(equation: JaxprEqn, operands: Sequence[Bounds]) -> Bounds:
    """The bounds of the results of an equation that calls no function."""
    name = equation.primitive.name
    if name in _SAME:
        return operands[0]
    if name in _FIXED:
        return _FIXED[name]
    if name in _SUMS:
        low, high = operands[0]
        return (low if low >= 0 else -math.inf, high if high <= 0 else math.inf)
    if name in ("concatenate", "pad"):
        return _union(operands)
    if name == "select_n":
        return _union(operands[1:])
    if name == "integer_pow":
        return _power(operands[0], equation.params["y"])
    if name == "mul" and equation.invars[0] is equation.invars[1]:
        return _power(operands[0], 2)
    rule = _RULES.get(name)
    return ANY if rule is None else rule(*operands)


def _union(operands: Sequence[Bounds]) -> Bounds:
    return (min(of[0] for of in operands), max(of[1] for of in operands))


def _product(a: Bounds, b: Bounds) -> Bounds:
    corners = [0.0 if 0.0 in (x, y) else x * y for x in a for y in b]
    return (min(corners), max(corners))


def _quotient(a: Bounds, b: Bounds) -> Bounds:
    if not _has_no_zero(b):
        return ANY
    return _product(a, (1 / b[1], 1 / b[0]))


def _power(of: Bounds, exponent: int) -> Bounds:
    if exponent < 0:
        return _quotient((1.0, 1.0), _power(of, -exponent))
    ends = sorted(_raised(abs(x) if exponent % 2 == 0 else x, exponent) for x in of)
    if exponent % 2 == 0 and of[0] < 0 < of[1]:
        ends[0] = 0.0
    return (ends[0], ends[1])


def _general_power(of: Bounds, exponent: Bounds) -> Bounds:
    """Of no negative number none either."""
    return ANY if of[0] < 0 else (_TINY if of[0] > 0 else 0.0, math.inf)


def _raised(x: float, exponent: int) -> float:
    try:
        return x**exponent
    except OverflowError:
        return math.copysign(math.inf, x)


def _exponential(of: Bounds) -> Bounds:
    """Above zero, of numbers that do not underflow."""
    return (max(_at(math.exp, of[0]), _TINY), _at(math.exp, of[1]))


def _at(f: Callable[[float], float], x: float) -> float:
    try:
        return f(x)
    except OverflowError:
        return math.inf


def _root(of: Bounds) -> Bounds:
    return (math.sqrt(max(of[0], 0.0)), math.sqrt(max(of[1], 0.0)))


def _logarithm(of: Bounds) -> Bounds:
    low, high = (math.log(x) if x > 0 else -math.inf for x in of)
    return (low, high)


def _absolute(of: Bounds) -> Bounds:
    ends = sorted(map(abs, of))
    return (0.0 if of[0] < 0 < of[1] else ends[0], ends[1])


def _clamped(least: Bounds, of: Bounds, most: Bounds) -> Bounds:
    return (min(max(of[0], least[0]), most[0]), min(max(of[1], least[1]), most[1]))


_FIXED: dict[str, Bounds] = {
    "cos": (-1.0, 1.0),
    "cosh": (1.0, math.inf),
    "erf": (-1.0, 1.0),
    "erfc": (0.0, 2.0),
    "iota": (0.0, math.inf),
    "logistic": (_TINY, 1.0),
    "one_minus_square": (-math.inf, 1.0),
    "sin": (-1.0, 1.0),
    "tanh": (-1.0, 1.0),
}
_RULES: dict[str, Callable[..., Bounds]] = {
    "abs": _absolute,
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "add_any": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "clamp": _clamped,
    "div": _quotient,
    "exp": _exponential,
    "exp2": lambda of: _exponential((of[0] * math.log(2), of[1] * math.log(2))),
    "expm1": lambda of: (_at(math.expm1, of[0]), _at(math.expm1, of[1])),
    "log": _logarithm,
    "log1p": lambda of: _logarithm((of[0] + 1, of[1] + 1)),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "mul": _product,
    "neg": lambda of: (-of[1], -of[0]),
    "pow": lambda of, exponent: (
        _TINY if of[0] > 0 else 0.0 if of[0] == 0 else -math.inf,
        math.inf,
    ),
    "rsqrt": lambda of: _quotient((1.0, 1.0), _root(of)),
    "sqrt": _root,
    "square": lambda of: _power(of, 2),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
}
