"""The operator's core: what a convolution saves, and its derivative, for every method."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bandjax._conv import energy
from bandjax._conv.geometry import reads_nothing
from bandjax._conv.methods import Method, XlaMethod
from bandjax._conv.residuals import FILTER_NAME, SPECTRUM_NAME, Quantised, Residual, with_name
from bandjax._native.epilogue import Epilogue, Finish
from bandjax._spectra.types import compute_dtype


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def convolve(
    alone: Method,
    method: Method,
    x: Float[Array, "N *spatial C"],
    kernel: Float[Array, "*taps c O"],
) -> tuple[Float[Array, "N *spatial_out O"], Any]:
    """Convolves ``x`` ``(N, *spatial, C)`` and returns the level of an Energy band's box, or None.

    By ``alone`` where nothing is differentiated, else by ``method``; they are equal to rounding.
    ``x`` is float32 or float64; where ``method`` reads it bfloat16 too. The derivative takes the
    box of an Energy band for given.
    """
    if alone == method:
        return _forward(method, x, kernel)[0]
    compute = compute_dtype(x.dtype)
    kernel = kernel if alone.reads_bfloat16_filter else kernel.astype(compute)
    (y, level), _ = _forward(alone, x if alone.reads_bfloat16 else x.astype(compute), kernel)
    return y.astype(x.dtype), level


def _forward(
    method: Method, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> tuple[Any, Any]:
    """Returns ``y`` and the level, and the residuals: of the input, the level, and the kernel."""
    stored, level, residual = _save(method, x, kernel)
    if isinstance(method, XlaMethod) and method.keeps_filter:
        filter_spectrum = with_name(method.filter_spectrum(kernel), FILTER_NAME)
        y = method.convolve_spectra(residual, filter_spectrum)
        return (y, level), (stored, level, kernel, filter_spectrum)
    return (method.convolve(residual, kernel, x.dtype), level), (stored, level, kernel, None)


def _backward(
    alone: Method, method: Method, residuals: Any, cts: Any
) -> tuple[jax.Array, jax.Array]:
    stored, level, kernel, filter_spectrum = residuals
    compute = compute_dtype(kernel.dtype)
    residual = method.format.decode(stored, compute)
    ct = jnp.asarray(cts[0])  # The caller's may be NumPy's.
    ct_x, ct_kernel = method.gradients(residual, kernel.astype(compute), filter_spectrum, ct, level)
    return ct_x, ct_kernel.astype(kernel.dtype)


convolve.defvjp(lambda alone, method, x, kernel: _forward(method, x, kernel), _backward)


def finished(
    method: Method,
    epilogue: Epilogue,
    x: Float[Array, "*batch_spatial C"],
    kernel: Float[Array, "*taps c O"],
    *operands: Array,
    reflect: bool = False,
) -> Float[Array, "*batch_spatial_out O"]:
    """A convolution and its epilogue, by one kernel, without a rule for derivatives.

    Args:
      method: one that finishes maps of the type of ``x``, of no Energy band.
      epilogue: what becomes of the results.
      x, kernel, reflect: see :func:`apply`.
      operands: of the epilogue; the residual is like the result.
    """
    if epilogue.residual:
        *bias, last = operands
        last = last.reshape(-1, *last.shape[last.ndim - len(method.geometry.axes) - 1 :])
        operands = (*bias, last)
    finish = Finish(epilogue, operands)

    def by(method: Any, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        _, _, residual = _save(method, x, kernel)
        return method.convolve(residual, kernel, x.dtype, finish), None

    return apply(method, x, kernel, reflect=reflect, by=by)[0]


def _save(
    method: Method, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> tuple[Residual | Quantised, jax.Array | None, Residual]:
    """Returns what the backward pass keeps of ``x``, the level, and the residual to go on from.

    The forward pass goes on from the rounded numbers: recomputation then starts from what is kept.
    """
    geometry, form, compute = method.geometry, method.format, compute_dtype(kernel.dtype)
    if geometry.energy is None:
        whole = x if geometry.keeps_input else method.analyse(x)
        stored = with_name(form.encode(whole, x.dtype), SPECTRUM_NAME)
        return stored, None, form.decode(stored, compute)
    if geometry.keeps_input:
        stored = with_name(form.encode(x, x.dtype), SPECTRUM_NAME)
        spectrum = method.spectrum(form.decode(stored, compute))
        level = with_name(energy.find_level(geometry, spectrum, x), SPECTRUM_NAME)
        return stored, level, method.cut(spectrum, level)
    spectrum = method.analyse(x)
    level = with_name(energy.find_level(geometry, spectrum, x), SPECTRUM_NAME)
    stored = with_name(form.encode(method.cut(spectrum, level), x.dtype), SPECTRUM_NAME)
    return stored, level, form.decode(stored, compute)


def apply(
    method: Method,
    x: Float[Array, "*batch_spatial C"],
    kernel: Float[Array, "*taps c O"],
    *,
    reflect: bool = False,
    by: Any = None,
) -> tuple[Float[Array, "*batch_spatial_out O"], Int[Array, " rank"]]:
    """Makes the batch one axis and the numbers float32 or float64, convolves, and undoes both.

    Args:
      method: how.
      x: ``(batch..., *spatial, in)``.
      kernel: as ``method`` takes it.
      reflect: pad ``x`` by reflection first.
      by: what convolves, of ``(method, x, kernel)``; without it :func:`convolve`, by ``method``
        whether or not it is differentiated.

    Returns:
      ``(batch..., *spatial_out, out)``, and the limits of the kept box, int32 ``(axes,)``.
    """
    by = functools.partial(convolve, method) if by is None else by
    geometry = method.geometry
    modes = jnp.asarray(geometry.modes, jnp.int32)
    empty = any(isinstance(n, int) and n == 0 for n in geometry.output_shape)
    if empty or (method.filter_domain == "spatial" and reads_nothing(geometry)):
        return jnp.zeros(geometry.output_shape, x.dtype), modes
    rank = len(geometry.axes)
    if reflect:
        x = _reflected(x, [axis.size for axis in geometry.axes])
    dtype = x.dtype
    compute = compute_dtype(dtype)
    x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :]) if x.ndim != rank + 2 else x
    # Some methods read and write bfloat16 themselves.
    stored = dtype if method.reads_bfloat16 and dtype == jnp.bfloat16 else compute
    if not (method.reads_bfloat16_filter and kernel.dtype == jnp.bfloat16):
        kernel = kernel.astype(compute)
    y, level = by(method, x.astype(stored), kernel)
    if level is not None:
        modes = energy.modes_of(geometry, level)
    return y.astype(dtype).reshape(geometry.output_shape), modes


def _reflected(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Pads the spatial axes of ``(batch..., *spatial, in)`` to ``sizes`` by reflection."""
    widths = [(0, 0)] * x.ndim
    for axis, size in enumerate(sizes, start=x.ndim - len(sizes) - 1):
        added = size - x.shape[axis]
        widths[axis] = (added // 2, added - added // 2)
    return jnp.pad(x, widths, mode="reflect")
