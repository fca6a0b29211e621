"""Exact convolution window by window in one native call, in three closed contractions.

    convolve:        y  = lax.conv_general_dilated(x, kernel)
    input_gradient:  dx = its transpose in x
    filter_gradient: dk = its transpose in the kernel

Nothing but the maps and the taps is in memory as a whole: ``ffi/cpu/windows.h`` tells how. Where
there is no kernel, on another platform, they are the backend's own convolution.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._conv import dense
from bandjax._conv.dense import DenseConvSpec
from bandjax._native.call import by_platform, repeat
from bandjax._parallel.partition import Arrays, Operation, partitioned
from bandjax._spectra.bilinear import contractions
from bandjax._spectra.types import compute_dtype


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """All that is static about one convolution by windows.

    Attributes:
      dense: sizes, padding and dilation; strides and ``input_dilation`` are 1.
      length: outputs of a window, for each axis.
    """

    dense: DenseConvSpec
    length: tuple[int, ...]

    def attributes(self, which: str) -> dict[str, Any]:
        """Those of the handler; the input's gradient is a convolution of the cotangent."""
        spec = self.dense
        transposed = which == "input_gradient"
        first = [
            low - (taps - 1) * step if transposed else -low
            for (low, _), taps, step in zip(
                spec.padding, spec.taps, spec.kernel_dilation, strict=True
            )
        ]
        found = {
            "groups": np.int64(spec.groups),
            "lengths": np.array(self.length, np.int64),
            "dilation": np.array(spec.kernel_dilation, np.int64),
            "first": np.array(first, np.int64),
        }
        return found if which == "filter_gradient" else {**found, "transposed": transposed}

    def tables(self, dtype: np.dtype[Any]) -> list[np.ndarray[Any, Any]]:
        """Three for each axis, as the handler takes them."""
        spec = self.dense
        each = zip(self.length, spec.taps, spec.kernel_dilation, strict=True)
        return [table for i, axis in enumerate(each) for table in _tables(*axis, i == 0, dtype)]


@functools.lru_cache(maxsize=256)
def _tables(
    length: int, taps: int, dilation: int, half: bool, dtype: np.dtype[Any]
) -> tuple[np.ndarray[Any, Any], ...]:
    """Cosines and sines of an axis; of the first one half of the frequencies stands for all."""
    reach = (taps - 1) * dilation
    grid = length + reach
    u = np.arange(grid // 2 + 1)

    def about_the_middle(count: int) -> np.ndarray[Any, Any]:
        turns = np.outer(u, (count - 1) / 2 - np.arange((count + 1) // 2))
        return np.stack([np.cos(2 * np.pi / grid * turns), np.sin(2 * np.pi / grid * turns)])

    kept = u if half else np.where(np.arange(grid) <= grid // 2, 0, -grid) + np.arange(grid)
    once = (kept == 0) | (2 * kept == grid)
    weights = np.where(once | (not half), 1.0, 2.0) / grid
    turns = 2 * np.pi / grid * np.outer(kept, np.arange(taps) * dilation - reach / 2)
    filters = np.stack([np.cos(turns), np.sin(turns)]) * weights[:, None]
    tables = about_the_middle(grid), about_the_middle(length), filters
    return tuple(np.asarray(table, dtype) for table in tables)


# The operations: operands before the tables, results and the axis that is summed over.
_AXES = ("h", "w", "d"), ("p", "q", "r"), ("s", "t", "u")


def _rule(which: str, rank: int, groups: int) -> tuple[str, str]:
    inputs, outputs, taps = (" ".join(names[:rank]) for names in _AXES)
    x, y = f"n {inputs} c", f"n {outputs} o"
    w = f"{taps} {'c' if groups == 1 else 'i'} o"
    operands, result, summed = {
        "convolve": (f"{x}, {w}", y, "c"),
        "input_gradient": (f"{y}, {w}", x, "o"),
        "filter_gradient": (f"{x}, {y}", w, "n"),
    }[which]
    tables = "".join(f", a{i} b{i} e{i}" for i in range(3 * rank))
    return f"{operands}{tables} -> {result}", summed


@functools.lru_cache(maxsize=1024)
def _operation(which: str, spec: WindowSpec, dtype: np.dtype[Any]) -> Operation:
    """One of the three contractions on flat arrays: the kernel, and its XLA fallback."""
    contraction = getattr(dense, which)

    def fallback(a: jax.Array, b: jax.Array, *_: jax.Array) -> Arrays:
        wide = contraction(spec.dense, a.astype(dtype), b.astype(dtype))
        return (wide if which == "filter_gradient" else wide.astype(a.dtype),)

    def out_types(platform: str, a: jax.Array, b: jax.Array, *_: jax.Array) -> Any:
        if which == "filter_gradient":
            shape = (*spec.dense.taps, a.shape[-1] // spec.dense.groups, b.shape[-1])
            return (jax.ShapeDtypeStruct(shape, dtype),), ()
        if which == "convolve":
            shape = (a.shape[0], *spec.dense.out, b.shape[-1])
        else:
            shape = (a.shape[0], *spec.dense.size, b.shape[-2] * spec.dense.groups)
        return (jax.ShapeDtypeStruct(shape, a.dtype),), ()

    rule, summed = _rule(which, len(spec.length), spec.dense.groups)
    shared = "nco" if spec.dense.groups == 1 else "n"
    return partitioned(
        by_platform(
            "windows_filter" if which == "filter_gradient" else "windows",
            out_types,
            fallback,
            attributes=lambda platform, dtype: spec.attributes(which),
            platforms=("cpu",),
        ),
        rule,
        shared=shared,
        summed=[summed] if summed in shared else [],
        batching=functools.partial(_batch, which, spec, dtype),
    )


def _batch(
    which: str,
    spec: WindowSpec,
    dtype: np.dtype[Any],
    f: Operation,
    size: int,
    batched: list[bool],
    args: Arrays,
) -> Arrays:
    """``vmap`` over the maps alone is a larger batch, over the filter more groups."""
    a, b, *tables = args
    if which != "filter_gradient" and not batched[1]:
        (out,) = f(a.reshape(-1, *a.shape[2:]), b, *tables)
        return (out.reshape(size, -1, *out.shape[1:]),)
    more = dataclasses.replace(spec.dense, groups=size * spec.dense.groups)
    grouped = _operation(which, dataclasses.replace(spec, dense=more), dtype)
    joined = (
        jnp.moveaxis(x if is_batched else repeat(x, size), 0, -2).reshape(
            *x.shape[is_batched:-1], -1
        )
        for x, is_batched in zip((a, b), batched, strict=False)
    )
    (out,) = grouped(*joined, *tables)
    return (jnp.moveaxis(out.reshape(*out.shape[:-1], size, -1), -2, 0),)


def _call(which: str, spec: WindowSpec, a: jax.Array, b: jax.Array) -> jax.Array:
    dtype = np.dtype(compute_dtype(b.dtype))
    if which == "filter_gradient" and a.dtype != b.dtype:
        a, b = a.astype(dtype), b.astype(dtype)
    if which != "filter_gradient":
        b = b.astype(dtype)
        a = a if a.dtype == jnp.bfloat16 else a.astype(dtype)
    tables = map(jnp.asarray, spec.tables(dtype))
    return _operation(which, spec, dtype)(a, b, *tables)[0]


def _convolve(
    spec: WindowSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    return _call("convolve", spec, x, kernel)


def _input_gradient(
    spec: WindowSpec, y: Float[Array, "N *spatial_out O"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial C"]:
    return _call("input_gradient", spec, y, kernel)


def _filter_gradient(
    spec: WindowSpec, x: Float[Array, "N *spatial C"], y: Float[Array, "N *spatial_out O"]
) -> Float[Array, "*taps c O"]:
    return _call("filter_gradient", spec, x, y)


convolve, input_gradient, filter_gradient = contractions(
    _convolve, _input_gradient, _filter_gradient
)
