"""The residuals of a derivative, followed through its jaxpr to the equations that made them."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

Atom: TypeAlias = Var | Literal

# Equations whose result is their first operand, for XLA at least.
_SAME = (
    *("name", "reshape", "squeeze", "stop_gradient", "copy", "copy_p"),
    *("sharding_constraint", "pvary", "pcast"),
)


@dataclasses.dataclass(frozen=True)
class Residual:
    """An array that is kept.

    Attributes:
      fate: "made" by an equation, "argument", or "constant".
      name: of ``checkpoint_name``, or None.
      operation: primitive that made it; empty if none did.
      layer: where in the model, see :class:`bandjax.memory.SavedTensor`.
      source: the user's line.
      shape: of the array.
      dtype: of the array.
      convolved: whether a ``conv_general_dilated`` reads it as its input.
    """

    fate: str
    name: str | None
    operation: str
    layer: str
    source: str
    shape: tuple[int, ...]
    dtype: Any
    convolved: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def residuals(jaxpr: Jaxpr) -> list[Residual]:
    """Returns the arrays among the outputs of ``jaxpr``, each once, in the order made."""
    top = _Scope(jaxpr, (), None, dict.fromkeys(jaxpr.invars), set(jaxpr.invars))
    found: dict[Any, tuple[_Origin, Atom]] = {}
    for atom in jaxpr.outvars:
        if not hasattr(_type(atom), "dtype"):
            continue
        origin = top.origin(atom)
        before, _ = found.get(origin.key, (origin, atom))
        # Kept twice, under a name and without.
        found[origin.key] = (before if before.name is not None else origin, atom)
    convolved = {origin.root for _, origin in top.operands("conv_general_dilated")}
    # An array's derivative may keep it as it was before it was given a name.
    names = {origin.root: eqn.params["name"] for eqn, origin in top.operands("name")}
    made = sorted(found.values(), key=lambda pair: pair[0].position)
    return [
        Residual(
            fate=origin.fate,
            name=origin.name or names.get(origin.root),
            operation=origin.operation,
            layer=_layer(origin.equations),
            source=_source(origin.equations),
            shape=tuple(_type(atom).shape),
            dtype=_type(atom).dtype,
            convolved=origin.root in convolved,
        )
        for origin, atom in made
    ]


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where a value comes from.

    Attributes:
      key: the same for the same array.
      root: key of the array within the innermost jaxpr; one step of a scan's.
      fate: "made", "argument" or "constant".
      name: the nearest of ``checkpoint_name``.
      equations: those entered on the way, outermost first; the last made it.
      position: their numbers, so that origins sort in the order made.
    """

    key: Any
    root: Any
    fate: str
    name: str | None = None
    equations: tuple[JaxprEqn, ...] = ()
    position: tuple[int, ...] = ()

    @property
    def operation(self) -> str:
        return self.equations[-1].primitive.name if self.equations else ""

    def within(self, other: _Origin) -> bool:
        """Whether it was made in the body of the other's equation."""
        return self.position[: len(other.position)] == other.position


@dataclasses.dataclass(eq=False)
class _Scope:
    """A jaxpr at one of the places that call it.

    Attributes:
      jaxpr: the function.
      path: the equations that call it, outermost first, with their numbers.
      outer: where the last of these stands.
      passed: what is passed for each input; None where that differs from step to step.
      live: variables that depend on an argument of the outermost function.
    """

    jaxpr: Jaxpr
    path: tuple[tuple[int, JaxprEqn], ...]
    outer: _Scope | None
    passed: dict[Var, Atom | None]
    live: set[Var]
    makers: dict[Var, tuple[int, JaxprEqn]] = dataclasses.field(default_factory=dict)
    scopes: dict[int, _Scope] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, equation in enumerate(self.jaxpr.eqns):
            self.makers.update(dict.fromkeys(equation.outvars, (number, equation)))
            live = [self.depends(atom) for atom in equation.invars]
            body = _body(equation)
            if body is None:
                self.live.update(equation.outvars if any(live) else ())
                continue
            inner = self.enter(number, equation, body)
            carried = len(_carry(equation, body)) if equation.primitive.name == "scan" else 0
            for i, (out, inside) in enumerate(zip(equation.outvars, body.outvars, strict=True)):
                if inner.depends(inside) or (i < carried and any(live)):
                    self.live.add(out)

    def depends(self, atom: Atom) -> bool:
        """Whether a value depends on an argument of the outermost function."""
        return not isinstance(atom, Literal) and atom in self.live

    def enter(self, number: int, equation: JaxprEqn, body: Jaxpr) -> _Scope:
        """The scope of a call or a scan."""
        passed: dict[Var, Atom | None] = dict(zip(body.invars, equation.invars, strict=True))
        live = {var for var, atom in passed.items() if atom is not None and self.depends(atom)}
        if equation.primitive.name == "scan":
            carry = [body.invars[i] for i in _carry(equation, body)]
            passed.update(dict.fromkeys(carry))
            # What is carried may come to depend on anything that goes in.
            live |= set(carry) if any(map(self.depends, equation.invars)) else set()
        scope = _Scope(body, (*self.path, (number, equation)), self, passed, live)
        self.scopes[number] = scope
        return scope

    def origin(self, atom: Atom, name: str | None = None, steps: int = 0) -> _Origin:
        """Follows a value to the equation that made it."""
        scope = self
        while not isinstance(atom, Literal) and scope.depends(atom):
            if atom not in scope.makers:
                given = scope.passed[atom]
                if scope.outer is None:
                    return _Origin(atom, atom, "argument", name)
                if given is None:
                    return scope._carried(atom, name, steps)
                scope, atom = scope.outer, given
                continue
            number, equation = scope.makers[atom]
            if equation.primitive.name == "name":
                name = name or equation.params["name"]
            if _same(equation):
                atom = equation.invars[0]
            elif equation.primitive.name == "optimization_barrier":
                atom = equation.invars[equation.outvars.index(atom)]
            elif equation.primitive.name == "scan":
                return scope._of_scan(atom, number, equation, name, steps)
            elif equation.primitive.name == "cond":
                return scope._of_branches(atom, number, equation, name, steps)
            elif number in scope.scopes:
                out = equation.outvars.index(atom)
                scope = scope.scopes[number]
                atom = scope.jaxpr.outvars[out]
            else:
                return scope._made(atom, number, equation, name)
        key = (id(scope), atom if not isinstance(atom, Literal) else id(atom))
        return _Origin(key, key, "constant", name)

    def _made(self, var: Var, number: int, equation: JaxprEqn, name: str | None) -> _Origin:
        numbers, equations = zip(*self.path, (number, equation), strict=True)
        key = (id(self), var)
        return _Origin(key, key, "made", name, equations, numbers)

    def _of_scan(
        self, var: Var, number: int, equation: JaxprEqn, name: str | None, steps: int
    ) -> _Origin:
        """A scan's result, told by the equation of its body; all steps are one array."""
        whole = self._made(var, number, equation, name)
        out = equation.outvars.index(var)
        scope = self.scopes[number]
        inside = scope.jaxpr.outvars[out]
        if steps > 1 or not scope.depends(inside):
            return whole
        inner = scope.origin(inside, name, steps + 1)
        if not inner.within(whole):
            # Passed on from outside: sliced and stacked again, or else copied for each step.
            given = scope._given(inside)
            again = given is not None and _type(given).shape == _type(var).shape
            return inner if again else dataclasses.replace(whole, name=inner.name)
        stacked = out >= len(_carry(equation, scope.jaxpr))
        return dataclasses.replace(inner, key=(stacked, inner.key))

    def _given(self, atom: Atom) -> Atom | None:
        """What is passed for a value that is an input, be it under another name."""
        while atom in self.makers and _same(self.makers[atom][1]):
            atom = self.makers[atom][1].invars[0]
        return None if isinstance(atom, Literal) else self.passed.get(atom)

    def _of_branches(
        self, var: Var, number: int, equation: JaxprEqn, name: str | None, steps: int
    ) -> _Origin:
        """A branch's result, told by the equation of its branches where they agree."""
        whole = self._made(var, number, equation, name)
        out = equation.outvars.index(var)
        origins = []
        for branch in equation.params["branches"]:
            body = getattr(branch, "jaxpr", branch)
            passed: dict[Var, Atom | None] = dict(
                zip(body.invars, equation.invars[1:], strict=True)
            )
            live = {var for var, atom in passed.items() if atom is not None and self.depends(atom)}
            path = (*self.path, (number, equation))
            scope = _Scope(body, path, self, passed, live)
            origins.append(scope.origin(scope.jaxpr.outvars[out], name, steps))
        # Of what a single branch keeps the others return zeros.
        made = [origin for origin in origins if origin.within(whole)]
        names = [origin.name for origin in origins if origin.name is not None]
        whole = dataclasses.replace(whole, name=names[0] if names else None)
        if len({origin.operation for origin in made}) == 1:
            return dataclasses.replace(
                whole, equations=made[0].equations, position=made[0].position
            )
        return whole

    def _carried(self, var: Var, name: str | None, steps: int) -> _Origin:
        """What a scan carries into a step: made by the step before."""
        number, equation = self.path[-1]
        assert self.outer is not None
        key = (id(self), var)
        place = self.jaxpr.invars.index(var) - _carry(equation, self.jaxpr).start
        before = self.jaxpr.outvars[place]
        if steps < 2 and before is not var and self.depends(before):
            origin = self.origin(before, name, steps + 1)
            if origin.within(self.outer._made(equation.outvars[place], number, equation, name)):
                return dataclasses.replace(origin, key=key, root=key)
        origin = self.outer._made(equation.outvars[place], number, equation, name)
        return dataclasses.replace(origin, key=key, root=key)

    def operands(self, primitive: str) -> Iterator[tuple[JaxprEqn, _Origin]]:
        """All equations of a primitive, with the origins of their first operands."""
        for equation in self.jaxpr.eqns:
            if equation.primitive.name == primitive:
                yield equation, self.origin(equation.invars[0])
        for scope in self.scopes.values():
            yield from scope.operands(primitive)


def _type(atom: Atom) -> Any:
    return atom.aval


def _carry(equation: JaxprEqn, body: Jaxpr) -> range:
    """Which inputs of a scan's body are carried from step to step.

    Told by the ranks: the parameters that say so are not the same in all versions of JAX.
    """

    def sliced(outside: list[Any], inside: list[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(_type(o).shape) > len(_type(i).shape) for o, i in pairs)

    carried = len(body.outvars) - sliced(equation.outvars, body.outvars)
    end = len(body.invars) - sliced(equation.invars, body.invars)
    return range(end - carried, end)


def _same(equation: JaxprEqn) -> bool:
    if equation.primitive.name == "reduce_precision":  # jax.checkpoint marks what it keeps by it
        kind = jnp.finfo(_type(equation.invars[0]).dtype)  # type: ignore[no-untyped-call]
        exponent, mantissa = (equation.params[k] for k in ("exponent_bits", "mantissa_bits"))
        return bool(exponent >= kind.nexp and mantissa >= kind.nmant)
    return equation.primitive.name in _SAME


def _body(equation: JaxprEqn) -> Jaxpr | None:
    """The jaxpr that an equation calls with its operands, or None."""
    if equation.primitive.name in ("while", "cond"):
        return None
    for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if (
            hasattr(inner, "eqns")
            and len(inner.invars) == len(equation.invars)
            and len(inner.outvars) == len(equation.outvars)
        ):
            return inner
    return None


# Places.

_Frame: TypeAlias = tuple[str, str, int]  # file, qualified function, line


def _layer(equations: tuple[JaxprEqn, ...]) -> str:
    """Where in the model: Flax's names, or else the classes whose calls were entered."""
    stacks = (str(equation.source_info.name_stack) for equation in equations)
    # "jvp(ResNet)/Conv_0" is the derivative of "ResNet/Conv_0".
    names = [re.sub(r"\w+\(|\)", "", stack).strip("/") for stack in stacks]
    if any(names):
        return "/".join(filter(None, names))
    frames = _frames(equations)
    layers = []
    for file, function, line in frames:
        *_, owner, method = ("", *function.split("."))
        if method != "__call__" or not owner:
            continue
        if _users(file):
            layers.append(f"{owner}:{line}")
        elif _is_layer(file):
            layers.append(owner)
            if _under("bandjax")(file):  # Its layers call Flax's for everything else.
                break
    if layers:
        return "/".join(layers)
    users = [function for file, function, _ in frames if _users(file)]
    return users[-1] if users else ""


def _source(equations: tuple[JaxprEqn, ...]) -> str:
    users = [frame for frame in _frames(equations) if _users(frame[0])]
    if not users:
        return ""
    file, function, line = users[-1]
    return f"{os.path.basename(file)}:{line} ({function})"


def _frames(equations: tuple[JaxprEqn, ...]) -> list[_Frame]:
    """Calls on the way to the last equation, from the differentiated function on.

    A function under ``jax.jit`` may have been traced elsewhere before, by another caller: of its
    frames then only those within it hold here.
    """
    path: list[_Frame] = []
    name = None
    for equation in equations:
        frames = _traceback(equation)
        if frames[: len(path)] == path:
            path = frames
        elif name is not None:
            functions = [function.split(".")[-1] for _, function, _ in frames]
            path = path + (frames[functions.index(name) :] if name in functions else [])
        name = equation.params.get("name")
    return path


def _traceback(equation: JaxprEqn) -> list[_Frame]:
    traceback = getattr(equation.source_info, "traceback", None)
    if traceback is None:
        return []
    frames = [(f.file_name, f.function_name, f.line_num) for f in reversed(traceback.frames)]
    here = [i for i, (file, _, _) in enumerate(frames) if file == _MEMORY]
    frames = frames[here[-1] + 1 :] if here else frames
    return [frame for frame in frames if not _under("jax")(frame[0])]


_MEMORY = os.path.join(os.path.dirname(__file__), "_saved.py")


def _users(file: str) -> bool:
    return not any(_under(package)(file) for package in ("jax", "flax", "bandjax"))


def _is_layer(file: str) -> bool:
    """Whether a class there is a layer, rather than a transformation of one."""
    return any(_under(*where)(file) for where in (("flax", "nnx", "nn"), ("bandjax",)))


@functools.lru_cache
def _under(package: str, *where: str) -> Callable[[str], bool]:
    folder = os.path.join(_folder(package), *where, "")
    return lambda file: file.startswith(folder)


def _folder(package: str) -> str:
    # A sibling of jax: no need to import Flax to know where it is.
    own = os.path.dirname(os.path.dirname(__file__))
    site = os.path.dirname(os.path.dirname(jax.__file__))
    return own if package == "bandjax" else os.path.join(site, package)
