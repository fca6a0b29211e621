"""Functions that are compiled and ready to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.workloads import Layer
from experiments.settings.errors import UserError

_compiler_options: dict[str, Any] | None = None  # So that tests can compile with less effort.


class Arrays(NamedTuple):
    """The numbers that every candidate of a layer works on, channels last.

    Attributes:
        x: ``(batch, *size, inputs)``.
        kernel: ``(*taps, inputs / groups, outputs)``.
        ct: the output's cotangent, ``(batch, *size, outputs)``.
    """

    x: np.ndarray
    kernel: np.ndarray
    ct: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload.

    Attributes:
        name: unique among the candidates of a workload.
        side: ``bandjax``, or the peer that it is a variant of.
        band: its label, None for what knows no band.
        call: computes, waits, and returns what was computed.
        results: NumPy arrays of what ``call`` returned: ``(y, dx, dw)`` or ``(y,)``, channels last.
        compile_seconds: of tracing and compiling; None where that is part of the first call.
        temp_bytes: temporary memory of the compiled program; None where that is unknown.
    """

    name: str
    side: str
    band: str | None
    call: Callable[[], Any]
    results: Callable[[Any], tuple[np.ndarray, ...]]
    compile_seconds: float | None = None
    temp_bytes: int | None = None


def random_arrays(layer: Layer, seed: int = 0) -> Arrays:
    """Normally distributed; the kernel is scaled so that the output has the input's size."""
    rng = np.random.default_rng(seed)
    fan_in = np.prod(layer.kernel_shape[:-1])
    x, kernel, ct = (
        rng.standard_normal(shape, np.float32)
        for shape in (layer.input_shape, layer.kernel_shape, layer.output_shape)
    )
    return Arrays(x, kernel / np.float32(np.sqrt(fan_in)), ct)


def in_precision(arrays: Arrays, precision: str) -> Arrays:
    """The numbers as mixed precision has them: for ``bf16`` maps in bfloat16, kernels in float32.

    The kernel is rounded within each call, as a layer does that keeps its parameters in float32.
    """
    if precision != "bf16":
        return arrays
    return Arrays(arrays.x.astype(jnp.bfloat16), arrays.kernel, arrays.ct.astype(jnp.bfloat16))


def jax_precision(precision: str, device: str) -> jax.lax.Precision | None:
    """What to ask of JAX for products of float32, of TF32 (on GPUs), or of bfloat16."""
    if precision == "tf32":
        return jax.lax.Precision.HIGH
    return jax.lax.Precision.HIGHEST if (device, precision) == ("gpu", "float32") else None


def layer_call(
    convolve: Callable[[jax.Array, jax.Array], jax.Array], direction: str
) -> Callable[..., tuple[jax.Array, ...]]:
    """A function of ``x, kernel, ct``: the output and, to train, both gradients.

    All three are results, so that XLA must compute all: of ``vjp(...)[1](ct)`` alone it drops the
    forward pass as dead code.
    """

    def forward(x: jax.Array, kernel: jax.Array, ct: jax.Array) -> tuple[jax.Array, ...]:
        del ct
        return (convolve(x, kernel),)

    def train(x: jax.Array, kernel: jax.Array, ct: jax.Array) -> tuple[jax.Array, ...]:
        y, pull_back = jax.vjp(convolve, x, kernel)
        return y, *pull_back(ct)

    return forward if direction == "forward" else train


def moved(arrays: tuple[np.ndarray, ...], layout: str) -> tuple[np.ndarray, ...]:
    """``(x, kernel, ct)`` from channels last to a layout; ``(y, dx, dw)`` need :func:`restored`.

    Args:
        arrays: channels last.
        layout: ``last``, or ``first``: ``(batch, channels, *size)`` and ``(outputs, inputs,
            *taps)``.
    """
    if layout == "last":
        return tuple(arrays)
    x, kernel, ct = arrays
    x, ct = (np.ascontiguousarray(np.moveaxis(a, -1, 1)) for a in (x, ct))
    return x, np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1))), ct


def restored(results: tuple[np.ndarray, ...], layout: str) -> tuple[np.ndarray, ...]:
    """``(y, dx, dw)`` or ``(y,)`` from a layout to channels last."""
    if layout == "last":
        return tuple(results)
    y, *gradients = results
    out = [np.moveaxis(y, 1, -1)]
    if gradients:
        dx, dw = gradients
        out += [np.moveaxis(dx, 1, -1), np.moveaxis(dw, (0, 1), (-1, -2))]
    return tuple(out)


def jax_candidate(
    name: str,
    side: str,
    band: str | None,
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
    arrays: Arrays,
    *,
    direction: str,
    layout: str = "last",
) -> Candidate:
    """Compiles the call of a JAX function of ``x, kernel``.

    Args:
        name, side, band: see :class:`Candidate`.
        convolve: works on arrays of the given layout, of one type.
        arrays: channels last; the kernel is rounded to the type of the maps within the call.
        direction: ``train`` or ``forward``.
        layout: see :func:`moved`.

    Raises:
        UserError: bandjax refuses the method or the implementation.
    """
    args = tuple(jnp.asarray(a) for a in moved(arrays, layout))

    def rounded(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel.astype(x.dtype))

    try:
        traced = jax.jit(layer_call(rounded, direction)).trace(*args)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    compiled, seconds, temp_bytes = compile_traced(traced)
    return Candidate(
        name,
        side,
        band,
        call=lambda: jax.block_until_ready(compiled(*args)),
        results=lambda done: restored(tuple(np.asarray(a, np.float32) for a in done), layout),
        compile_seconds=seconds,
        temp_bytes=temp_bytes,
    )


def compile_traced(traced: Any) -> tuple[Callable[..., Any], float, int | None]:
    """The compiled function, the seconds that it took to compile, its temporary memory."""
    start = time.perf_counter()
    compiled = traced.lower().compile(_compiler_options)
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    return compiled, seconds, None if analysis is None else analysis.temp_size_in_bytes
