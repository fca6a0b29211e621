"""Which batch norm follows which layer alone, told by a trace of the model.

The model is traced with marks, ``checkpoint_name`` equations, on the input and the output of each
convolution, linear layer and batch norm. In the equations of the trace it is then plain what reads
what, wherever in the model's code it happens: an output with one reader, the mark of a norm, goes
to this norm and to nothing else. And what lies between the two marks of a call is the layer's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from bandjax._flax.select import shown

_PREFIX = "bandjax_prepare"
INPUT, LAYER = "input", "layer"  # of what a layer reads and gives
NORM, NORM_OUTPUT = "norm", "norm_output"  # the same of a norm
# What calls one function, once, with its operands.
_CALLS = frozenset(
    [
        *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"),
        *("custom_jvp_call", "custom_vjp_call"),
    ]
)


def mark(x: jax.Array, role: str, path: str) -> jax.Array:
    """Returns ``x``, marked in the trace."""
    return checkpoint_name(x, f"{_PREFIX}:{role}:{path}")


@dataclasses.dataclass(frozen=True)
class Reader:
    """What reads a value.

    Attributes:
      name: of the primitive; "result" for the function's own.
      role: of a mark.
      path: of a mark's layer.
      within: path of the layer that it is part of.
    """

    name: str
    role: str | None = None
    path: str | None = None
    within: str | None = None


@dataclasses.dataclass
class Flow:
    """What reads each value of a function, those of functions that it calls among them.

    Attributes:
      inputs: numbers of the arguments.
      outputs: numbers of the results; None for a constant.
      readers: of each number.
      made: role and path of the numbers that marks give.
      marked: the numbers that marks read, by role and path.
    """

    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int | None] = dataclasses.field(default_factory=list)
    readers: list[list[Reader]] = dataclasses.field(default_factory=list)
    made: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    marked: dict[tuple[str, str], list[int | None]] = dataclasses.field(default_factory=dict)
    _within: str | None = None

    @staticmethod
    def of(closed: ClosedJaxpr) -> Flow:
        """The flow of a jaxpr. Readers that are results of the whole are not among the readers."""
        flow = Flow()
        flow.inputs = [flow._new() for _ in closed.jaxpr.invars]
        flow.outputs = flow._add(closed.jaxpr, flow.inputs)
        return flow

    def _new(self) -> int:
        self.readers.append([])
        return len(self.readers) - 1

    def _add(self, jaxpr: Jaxpr, arguments: Sequence[int | None]) -> list[int | None]:
        """Adds the equations of a jaxpr; returns the numbers of its results."""
        number: dict[Any, int | None] = dict(zip(jaxpr.invars, arguments, strict=True))
        number.update((var, None) for var in jaxpr.constvars)

        def read(atom: Any) -> int | None:
            return None if isinstance(atom, Literal) else number[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            bodies = list(_bodies(equation))
            if equation.primitive.name in _CALLS and len(bodies) == 1:
                results = self._add(bodies[0], operands)
                number.update(zip(equation.outvars, results, strict=True))
                continue
            reader = _reader(equation, self._within)
            for operand in operands:
                if operand is not None:
                    self.readers[operand].append(reader)
            for body in bodies:  # It may run any number of times: its values are its own.
                for result in self._add(body, [self._new() for _ in body.invars]):
                    if result is not None:
                        self.readers[result].append(reader)
            for var in equation.outvars:
                number[var] = self._new()
            if reader.role is not None and reader.path is not None:
                key = reader.role, reader.path
                self.marked.setdefault(key, []).append(operands[0])
                made = number[equation.outvars[0]]
                assert made is not None
                self.made[made] = key
                self._within = reader.path if reader.role in (INPUT, NORM) else None
        return [read(atom) for atom in jaxpr.outvars]

    def outputs_of(self, path: str) -> list[int]:
        """The numbers of a layer's outputs, one for each call."""
        return [number for number, key in self.made.items() if key == (LAYER, path)]

    def add_results(self, numbers: Sequence[int | None]) -> None:
        """Counts results of the whole among the readers."""
        for number in numbers:
            if number is not None:
                self.readers[number].append(Reader("result"))

    def read_elsewhere(self, number: int) -> bool:
        """Whether anything but layers that are marked reads a parameter."""
        return any(reader.within is None for reader in self.readers[number])


def _reader(equation: JaxprEqn, within: str | None) -> Reader:
    name = equation.primitive.name
    prefix, *rest = str(equation.params.get("name", "")).split(":", 2)
    if name == "name" and prefix == _PREFIX:
        role, path = rest
        return Reader(name, role, path, within)
    return Reader(name, within=within)


def _bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The functions among the parameters of an equation."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def followed(flow: Flow, norm: str) -> tuple[str | None, str]:
    """Returns the layer that a norm always and alone follows, or None and why there is none.

    Every call of the norm must read an output of the one layer, and every output of this layer must
    have this norm as its only reader.
    """
    calls = flow.marked.get((NORM, norm), [])
    if not calls:
        return None, "it is not called"
    sources = {None if number is None else flow.made.get(number) for number in calls}
    if len(sources) > 1:
        return None, "it is called on the outputs of several layers"
    (source,) = sources
    if source is None or source[0] != LAYER:
        return None, "its input is not the output of a convolution"
    layer = source[1]
    for number in flow.outputs_of(layer):
        if flow.readers[number] != [Reader("name", NORM, norm)]:
            return None, f"not it alone reads the output of {shown(layer)}"
    return layer, ""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a batch norm holds.

    Attributes:
      mean, var: running statistics, ``(features,)``.
      scale, bias: the same, or None.
      epsilon: added to ``var``.
    """

    mean: Any
    var: Any
    scale: Any
    bias: Any
    epsilon: float

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns ``a`` and ``b``, float64, of ``y = a x + b``."""
        mean, var = (np.asarray(v, np.float64) for v in (self.mean, self.var))
        factor = 1 / np.sqrt(var + self.epsilon)
        if self.scale is not None:
            factor = factor * np.asarray(self.scale, np.float64)
        shift = -mean * factor
        if self.bias is not None:
            shift = shift + np.asarray(self.bias, np.float64)
        return factor, shift

    def into(self, kernel: Any, bias: Any) -> tuple[jax.Array, jax.Array]:
        """Returns kernel and bias of the layer that does what it did, and then the norm.

        Args:
          kernel: ``(..., out)``, linear in the output.
          bias: ``(out,)`` or None.
        """
        factor, shift = self.factors()
        dtype = kernel.dtype
        whole = np.asarray(kernel, np.float64) * factor
        if bias is not None:
            shift = shift + np.asarray(bias, np.float64) * factor
        return jax.numpy.asarray(whole.astype(dtype)), jax.numpy.asarray(shift.astype(dtype))


def unfoldable(norm: Any, running: Sequence[bool], ranks: Sequence[int]) -> str | None:
    """Returns why a batch norm is no affine map of the last axis; None if it is.

    Args:
      norm: the layer.
      running: of each call, whether it uses the running statistics.
      ranks: of each call, the axes of its input.
    """
    if not all(running):
        return "it does not use its running statistics"
    axes = norm.axis if isinstance(norm.axis, tuple | list) else (norm.axis,)
    if len(axes) != 1 or any(axes[0] % rank != rank - 1 for rank in ranks):
        return f"it normalises axis {norm.axis}, not that of the channels"
    return None
