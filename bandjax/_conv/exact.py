"""Exact convolution in one native call, in three closed contractions.

    convolve:        y  = lax.conv_general_dilated(x, kernel)
    input_gradient:  dx = its transpose in x
    filter_gradient: dk = its transpose in the kernel

Nothing but the maps and the taps is in memory as a whole. An :class:`ExactSpec` tells which kernel
computes them: that of :mod:`bandjax._conv.windows` or of :mod:`bandjax._conv.direct`. Where there
is none, on another platform, they are the backend's own convolution.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._conv import dense
from bandjax._conv.dense import DenseConvSpec
from bandjax._native.call import by_platform, repeat
from bandjax._native.epilogue import Epilogue, Finish
from bandjax._parallel.partition import Arrays, Operation, partitioned
from bandjax._spectra.bilinear import contractions
from bandjax._spectra.types import compute_dtype


@dataclasses.dataclass(frozen=True)
class ExactSpec:
    """All that is static about one exact convolution, and the kernel that computes it.

    Attributes:
      dense: sizes, padding, strides and dilations.
      target: name of the kernel; that of the filter's gradient ends in ``_filter``.
      reads_bfloat16: whether maps may be bfloat16 while the taps are float32.
    """

    dense: DenseConvSpec

    target: ClassVar[str]
    reads_bfloat16: ClassVar[bool]

    def attributes(self, which: str) -> dict[str, Any]:
        """Those of the handler; the input's gradient is a convolution of the cotangent."""
        spec, transposed = self.dense, which == "input_gradient"
        axes = zip(spec.padding, spec.taps, spec.kernel_dilation, strict=True)
        first = [low - (taps - 1) * step if transposed else -low for (low, _), taps, step in axes]
        found = {
            "groups": np.int64(spec.groups),
            "dilation": np.array(spec.kernel_dilation, np.int64),
            "first": np.array(first, np.int64),
        }
        if which == "filter_gradient":
            return found
        return {**found, "transposed": transposed, **Epilogue().attributes()}

    def tables(self, dtype: np.dtype[Any]) -> list[np.ndarray[Any, Any]]:
        """The operands beside the two that are contracted."""
        return []


# The operations: operands before the tables, results and the axis that is summed over.
_AXES = ("h", "w", "d"), ("p", "q", "r"), ("s", "t", "u")


def _rule(which: str, rank: int, groups: int, tables: int) -> tuple[str, str]:
    inputs, outputs, taps = (" ".join(names[:rank]) for names in _AXES)
    x, y = f"n {inputs} c", f"n {outputs} o"
    w = f"{taps} {'c' if groups == 1 else 'i'} o"
    operands, result, summed = {
        "convolve": (f"{x}, {w}", y, "c"),
        "input_gradient": (f"{y}, {w}", x, "o"),
        "filter_gradient": (f"{x}, {y}", w, "n"),
    }[which]
    further = "".join(f", a{i} b{i} e{i}" for i in range(tables))
    return f"{operands}{further} -> {result}", summed


@functools.lru_cache(maxsize=1024)
def _operation(which: str, spec: ExactSpec, dtype: np.dtype[Any]) -> Operation:
    """One of the three contractions on flat arrays: the kernel, and its XLA fallback."""
    rule, summed = _rule(which, len(spec.dense.size), spec.dense.groups, len(spec.tables(dtype)))
    shared = "nco" if spec.dense.groups == 1 else "n"
    return partitioned(
        _local(which, spec, dtype),
        rule,
        shared=shared,
        summed=[summed] if summed in shared else [],
        batching=functools.partial(_batch, which, spec, dtype),
    )


def _local(which: str, spec: ExactSpec, dtype: np.dtype[Any]) -> Operation:
    """The same on one device."""
    contraction = getattr(dense, which)

    def fallback(a: jax.Array, b: jax.Array, *_: jax.Array) -> Arrays:
        wide = contraction(spec.dense, a.astype(dtype), b.astype(dtype))
        return (wide if which == "filter_gradient" else wide.astype(a.dtype),)

    return by_platform(
        f"{spec.target}_filter" if which == "filter_gradient" else spec.target,
        functools.partial(_out_types, which, spec, dtype),
        fallback,
        attributes=lambda platform, dtype: spec.attributes(which),
        platforms=("cpu",),
    )


def _out_types(
    which: str,
    spec: ExactSpec,
    dtype: np.dtype[Any],
    platform: str,
    a: jax.Array,
    b: jax.Array,
    *_: jax.Array,
) -> Any:
    """Of the results, and that there is no workspace, of a platform and the operands."""
    if which == "filter_gradient":
        shape = (*spec.dense.taps, a.shape[-1] // spec.dense.groups, b.shape[-1])
        return (jax.ShapeDtypeStruct(shape, dtype),), ()
    if which == "convolve":
        shape = (a.shape[0], *spec.dense.out, b.shape[-1])
    else:
        shape = (a.shape[0], *spec.dense.size, b.shape[-2] * spec.dense.groups)
    return (jax.ShapeDtypeStruct(shape, a.dtype),), ()


@functools.lru_cache(maxsize=1024)
def _finished(spec: ExactSpec, dtype: np.dtype[Any], epilogue: Epilogue) -> Operation:
    """The convolution and its epilogue, on flat arrays."""
    rule, _ = _rule("convolve", len(spec.dense.size), spec.dense.groups, len(spec.tables(dtype)))
    return epilogue.operation(
        spec.target,
        functools.partial(_out_types, "convolve", spec, dtype),
        _operation("convolve", spec, dtype),
        local=_local("convolve", spec, dtype),
        rule=rule,
        shared="no" if spec.dense.groups == 1 else "n",
        attributes=lambda platform, dtype: spec.attributes("convolve"),
    )


def _batch(
    which: str,
    spec: ExactSpec,
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


def _call(
    which: str, spec: ExactSpec, a: jax.Array, b: jax.Array, finish: Finish | None = None
) -> jax.Array:
    """The kernel's contraction, or the backend's, of operands of any type."""
    dtype, given = np.dtype(compute_dtype(b.dtype)), a.dtype
    if which == "input_gradient" and max(spec.dense.strides) > 1:
        a, b = a.astype(dtype), b.astype(dtype)
        return _strided_input_gradient(spec, a, b).astype(given)
    narrow = spec.reads_bfloat16 and given == jnp.bfloat16
    if which != "filter_gradient":
        a, b = a if narrow else a.astype(dtype), b.astype(dtype)
    elif not (narrow and a.dtype == b.dtype):
        a, b = a.astype(dtype), b.astype(dtype)
    tables = map(jnp.asarray, spec.tables(dtype))
    if finish is None:
        (out,) = _operation(which, spec, dtype)(a, b, *tables)
    else:
        own = finish.epilogue.typed(finish.operands, dtype, a.dtype)
        (out,) = _finished(spec, dtype, finish.epilogue)(a, b, *tables, *own)
    return out if which == "filter_gradient" else out.astype(given)


def _strided_input_gradient(spec: ExactSpec, y: jax.Array, kernel: jax.Array) -> jax.Array:
    """By the kernel where the phases of the strides are channels, else the backend's."""
    axes = zip(spec.dense.strides, spec.dense.kernel_dilation, strict=True)
    if any(stride > 1 and dilation > 1 for stride, dilation in axes):
        return dense.input_gradient(spec.dense, y, kernel)

    def by_kernel(inner: DenseConvSpec, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _call("convolve", dataclasses.replace(spec, dense=inner), x, kernel)

    return dense.strided_input_gradient(spec.dense, y, kernel, by_kernel)


def _convolve(
    spec: ExactSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    return _call("convolve", spec, x, kernel)


def _input_gradient(
    spec: ExactSpec, y: Float[Array, "N *spatial_out O"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial C"]:
    return _call("input_gradient", spec, y, kernel)


def _filter_gradient(
    spec: ExactSpec, x: Float[Array, "N *spatial C"], y: Float[Array, "N *spatial_out O"]
) -> Float[Array, "*taps c O"]:
    return _call("filter_gradient", spec, x, y)


convolve, input_gradient, filter_gradient = contractions(
    _convolve, _input_gradient, _filter_gradient
)


def finished(
    spec: ExactSpec,
    x: Float[Array, "N *spatial C"],
    kernel: Float[Array, "*taps c O"],
    finish: Finish | None,
) -> Float[Array, "N *spatial_out O"]:
    """:func:`convolve` and an epilogue, which alone has no rule for derivatives."""
    return (
        convolve(spec, x, kernel) if finish is None else _call("convolve", spec, x, kernel, finish)
    )
