"""Products and transforms of few examples on maps, a column of the spectrum at a time, on the CPU.

The same as :mod:`bandjax._native.product` with :mod:`bandjax._native.transform` behind it, or on
both sides: but the spectra of the output and of the cotangent are never in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._native import product, transform
from bandjax._native.call import by_platform
from bandjax._parallel.partition import Arrays, Operation, partitioned
from bandjax._spectra.types import InputSpectrum

MOST_EXAMPLES = 12  # kRows of ffi/cpu/narrow.h
CACHED = 1.5e6  # bytes of one map's workspace that stay in a second-level cache
_MOST = 96e6  # bytes of all maps' workspaces
_LANES = 16  # channels that are transformed together, at most


@dataclasses.dataclass(frozen=True)
class ColumnsSpec:
    """All that is static about a convolution by columns.

    Attributes:
      product: of the spectra.
      input: the analysis of the input; its adjoint gives the gradient.
      output: the synthesis of the output.
    """

    product: product.NativeProductSpec
    input: transform.NativeTransformSpec
    output: transform.NativeTransformSpec

    def pays(self, x: InputSpectrum, w: Float[Array, "h w c O"]) -> bool:
        """Whether the kernels are there for such arrays, and faster than one after the other."""
        spec, (n, c) = self.product, x[0].shape[-2:]
        grid = spec.dft.grid
        dtypes = {np.dtype(a.dtype) for a in (*x, w)}
        types = dtypes | {self.input.sample_dtype, self.output.sample_dtype}
        if len(grid) != 2 or spec.spectral or len(types) > 1 or w.dtype == jnp.bfloat16:
            return False
        depthwise = w.shape[-2] == 1 and w.shape[-1] == spec.groups
        if depthwise or spec.transforms_filter(*w.shape[-2:]) or not isinstance(n, int):
            return False
        dfts = self.input.dft, self.output.dft
        fast = all(
            transform.fast_line(points // math.gcd(points, positions.step)) < math.inf
            for dft in dfts
            for points, positions in zip(grid, dft.points, strict=True)
        )
        heights = [dft.shape[0] for dft in dfts]
        column = 8 * _LANES * spec.dft.box[1]  # bytes of a row
        lanes = sum(-(-channels // _LANES) for channels in (c, w.shape[-1]))
        return (
            fast
            and 0 < n <= MOST_EXAMPLES
            and min(*heights, spec.dft.box[1]) > 1
            and column * min(heights) > CACHED
            and column * max(heights) * n * lanes <= _MOST
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve(
    spec: ColumnsSpec, x: InputSpectrum, w: Float[Array, "h w c O"]
) -> Float[Array, "N H W O"]:
    """Returns the output of an input's centred spectrum ``(k0, k1, N, C)`` and of taps."""
    (y,) = _operation("columns", spec)(*x, w, *_tables(spec, w), *_of(spec.output))
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gradients(
    spec: ColumnsSpec,
    x: InputSpectrum,
    ct: Float[Array, "N H W O"],
    w: Float[Array, "h w c O"],
) -> tuple[Float[Array, "N h w C"], Float[Array, "h w c O"]]:
    """Returns the gradients of input and taps for a cotangent of the output."""
    tables = *_tables(spec, w), *_of(spec.output), *_of(spec.input)
    dx, dw = _operation("columns_gradients", spec)(*x, ct, w, *tables)
    return dx, dw


def _convolve_by_steps(spec: ColumnsSpec, x: InputSpectrum, w: jax.Array) -> jax.Array:
    return transform.synthesis(spec.output, product.multiply_sum(spec.product, x, w))


def _gradients_by_steps(
    spec: ColumnsSpec, x: InputSpectrum, ct: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array]:
    spectrum = transform.analysis(spec.output, ct)
    dw = product.filter_product(spec.product, x, spectrum)
    dx = product.input_product(spec.product, spectrum, w)
    return transform.synthesis(spec.input, dx), dw


def _derivative(f: Any, by_steps: Any) -> None:
    """Gives ``f`` the derivative of the same, computed step by step."""

    def forward(spec: ColumnsSpec, *args: Any) -> Any:
        return f(spec, *args), args

    def backward(spec: ColumnsSpec, args: Any, ct: Any) -> Any:
        operands = jax.tree.map(jnp.asarray, args)
        return jax.vjp(functools.partial(by_steps, spec), *operands)[1](ct)

    f.defvjp(forward, backward)


_derivative(convolve, _convolve_by_steps)
_derivative(gradients, _gradients_by_steps)


def _tables(spec: ColumnsSpec, w: jax.Array) -> tuple[jax.Array, ...]:
    """``outer`` and ``inner`` of the taps."""
    outer, inner = product.filter_tables(spec.product.dft, np.dtype(w.dtype))
    return jnp.asarray(outer), jnp.asarray(inner)


def _of(spec: transform.NativeTransformSpec) -> tuple[jax.Array, ...]:
    return tuple(map(jnp.asarray, spec.tables))


_RULES = {
    "columns": "u v n c, u v n c, s t {c} o, p u s, q v t, e f, g h -> n y x o",
    "columns_gradients": (
        "u v n c, u v n c, n y x o, s t {c} o, p u s, q v t, e f, g h, i j, k l"
        " -> n b a c, s t {c} o"
    ),
}


@functools.lru_cache(maxsize=1024)
def _operation(which: str, spec: ColumnsSpec) -> Operation:
    """One of the two kernels, its equal in XLA and their rules."""
    dtype = spec.input.sample_dtype
    call = functools.partial(product.kernel, spec=spec.product, dtype=dtype, stored=dtype)
    multiply, gradient, transposed = map(call, ("multiply_sum", "filter_product", "input_product"))
    # The steps with their rules for vmap, and without: on one device there is nothing to share.
    steps = _convolve_by_steps if which == "columns" else _gradients_by_steps

    def convolve_fallback(*args: jax.Array) -> Arrays:
        *operands, table0, table1 = args
        return transform.synthesis_2d(spec.output)(*multiply(*operands), table0, table1)

    def gradients_fallback(
        re: jax.Array, im: jax.Array, ct: jax.Array, w: jax.Array, *tables: jax.Array
    ) -> Arrays:
        outer, inner, *others = tables
        spectrum = transform.analysis_2d(spec.output)(ct, *others[:2])
        (dw,) = gradient(re, im, *spectrum, outer, inner)
        (dx,) = transform.synthesis_2d(spec.input)(
            *transposed(*spectrum, w, outer, inner), *others[2:]
        )
        return dx, dw

    def output_types(platform: str, re: jax.Array, im: Any, w: jax.Array, *_: Any) -> Any:
        shape = (re.shape[2], *spec.output.dft.shape, w.shape[3])
        return (jax.ShapeDtypeStruct(shape, dtype),), ()

    def gradient_types(
        platform: str, re: jax.Array, im: Any, ct: Any, w: jax.Array, *_: Any
    ) -> Any:
        shape = (re.shape[2], *spec.input.dft.shape, re.shape[3])
        return tuple(jax.ShapeDtypeStruct(s, dtype) for s in (shape, w.shape)), ()

    def attributes(platform: str, dtype: np.dtype[Any]) -> dict[str, Any]:
        def steps_of(dft: Any) -> np.ndarray:
            return np.fromiter((positions.step for positions in dft.points), np.int64)

        told = {**spec.product.attributes(which, platform, dtype)}
        told["grid"] = np.array(spec.product.dft.grid, np.int64)
        if which == "columns":
            return {**told, "steps": steps_of(spec.output.dft)}
        both = {"out_steps": steps_of(spec.output.dft), "in_steps": steps_of(spec.input.dft)}
        return {**told, **both}

    def batching(f: Operation, size: int, batched: list[bool], args: Arrays) -> Arrays:
        def one(*operands: jax.Array) -> Any:
            re, im, *others = operands
            out = steps(spec, (re, im), *others)
            return out if isinstance(out, tuple) else (out,)

        count = 3 if which == "columns" else 4
        axes = [0 if b else None for b in batched[:count]]
        return jax.vmap(one, axes)(*args[:count])

    forward = which == "columns"
    return partitioned(
        by_platform(
            which,
            output_types if forward else gradient_types,
            convolve_fallback if forward else gradients_fallback,
            attributes=attributes,
            platforms=("cpu",),
        ),
        _RULES[which].format(c="c" if spec.product.groups == 1 else "m"),
        shared="n",
        summed=() if forward else ("n",),
        batching=batching,
    )
