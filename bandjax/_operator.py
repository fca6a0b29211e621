"""The operator's core: one batch axis, one way to compute, and the derivative."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from bandjax import _cost, _energy, _native_product, _native_transform
from bandjax._dense import Dense, convolve
from bandjax._geometry import ConvGeometry
from bandjax._multiply import Product, multiply_sum
from bandjax._native_product import NativeProduct
from bandjax._native_transform import Native
from bandjax._quantise import Quantised, quantise
from bandjax._transform import (
    Precision,
    Samples,
    Spectrum,
    Transform,
    from_spectrum,
    lay_on_circle,
    take_from_circle,
    to_spectrum,
)

Kept: TypeAlias = Spectrum | jax.Array  # the input's spectrum, or the input

SPECTRUM_NAME = "bandjax_spectrum"
FILTER_NAME = "bandjax_filter_spectrum"


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


@dataclasses.dataclass(frozen=True)
class How:
    """All that is static about one convolution.

    Attributes:
      geometry: grid, box and sample positions.
      method: "fft", "dft" or "direct".
      native: whether native kernels compute it ("dft" alone).
      residual_dtype: type in which the spectrum is kept.
      recompute_filter: whether the backward pass derives the filter's spectrum anew.
      precision: of the matrix products.
    """

    geometry: ConvGeometry
    method: str
    native: bool
    residual_dtype: np.dtype[Any]
    recompute_filter: bool
    precision: Precision

    def samples(self, points: tuple[range, ...], *, inverse: bool = False) -> Samples:
        return Samples(self.geometry.grid, self.geometry.modes, points, inverse)

    @property
    def input_samples(self) -> Samples:
        return self.samples(tuple(axis.input_points for axis in self.geometry.axes))

    @property
    def kernel_samples(self) -> Samples:
        return self.samples(tuple(axis.kernel_points for axis in self.geometry.axes))

    @property
    def output_samples(self) -> Samples:
        return self.samples(tuple(a.output_points for a in self.geometry.axes), inverse=True)

    @property
    def window_samples(self) -> Samples:
        """Every point that a tap reads."""
        return self.samples(
            tuple(
                range(start, start + (axis.out - 1) * axis.stride + axis.kernel_points[-1] + 1)
                for axis in self.geometry.axes
                for start in [axis.output_points.start]
            ),
            inverse=True,
        )

    @property
    def kept_scale(self) -> int:
        """What a spectrum is divided by while it is kept in a type of small range.

        A mean over the grid cannot overflow where its terms did not; the spectrum, a sum, could.
        """
        overflows = self.residual_dtype == jnp.float16 and not self.geometry.keeps_input
        return math.prod(self.geometry.grid) if overflows else 1

    @property
    def keeps_filter(self) -> bool:
        return not self.recompute_filter and self.method != "direct"

    @property
    def transform(self) -> Transform:
        if self.method == "direct":
            return Transform(_cost.transform_of_projection(self.geometry), self.precision)
        return Transform("fft" if self.method == "fft" else "dft", self.precision)

    @property
    def product(self) -> Product:
        return Product(self.geometry.groups, self.precision)

    def native_transform(self, samples: Samples, dtype: Any, spectrum_dtype: Any) -> Native:
        return Native(samples.centred, dtype, np.dtype(spectrum_dtype), self.precision)

    @property
    def native_product(self) -> NativeProduct:
        shift = tuple(
            axis.output_points[0] + axis.output_points[-1] - axis.input_points[-1]
            for axis in self.geometry.axes
        )
        samples = dataclasses.replace(self.kernel_samples, shift=shift)
        return NativeProduct(samples, self.geometry.groups, self.precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv(how: How, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves ``x`` ``(N, *spatial, C)``, float32 or float64; by native kernels bfloat16 too."""
    return _conv_kept(how, restore(how, keep(how, x), kernel.dtype), kernel, x.dtype)


def _conv_fwd(how: How, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    kept = named(keep(how, x), SPECTRUM_NAME)
    restored = restore(how, kept, kernel.dtype)
    if how.keeps_filter:
        filter_spectrum = named(_filter_spectrum(how, kernel), FILTER_NAME)
        y = conv_spectra(how, restored, filter_spectrum)
        return y, (kept, kernel, filter_spectrum)
    return _conv_kept(how, restored, kernel, x.dtype), (kept, kernel)


def _conv_bwd(how: How, residuals: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    kept, kernel, *filter_spectrum = residuals
    restored = restore(how, kept, kernel.dtype)
    if how.native:
        return _native_bwd(how, restored, kernel, ct)
    ct_kept, ct_kernel = _pull_back(how, restored, kernel, filter_spectrum, ct)
    return keep_transposed(how, ct_kept), ct_kernel


conv.defvjp(_conv_fwd, _conv_bwd)


def _pull_back(
    how: How, kept: Kept, kernel: jax.Array, filter_spectrum: Sequence[Spectrum], ct: jax.Array
) -> tuple[Any, jax.Array]:
    """The gradients of what was kept and of the kernel, in plain JAX."""
    # The operator is linear in what was kept and in the filter, so that its vjp needs no value but
    # the residuals.
    if filter_spectrum:
        _, pull_back = jax.vjp(functools.partial(conv_spectra, how), kept, *filter_spectrum)
        ct_kept, ct_filter = pull_back(ct)
        (ct_kernel,) = jax.vjp(functools.partial(_filter_spectrum, how), kernel)[1](ct_filter)
        return ct_kept, ct_kernel
    _, pull_back = jax.vjp(
        lambda kept, kernel: _conv_kept(how, kept, kernel, ct.dtype), kept, kernel
    )
    return pull_back(ct)


# With an Energy band the spectrum is cut to a box that depends on it; the derivative takes the box
# for given. A box is told by its level, which is kept with the spectrum.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv_cut(how: How, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """:func:`conv` on the box that holds the band's share of the energy, and its level."""
    _, level, spectrum = _keep_cut(how, x, kernel.dtype)
    return _conv_kept(how, spectrum, kernel, x.dtype), level


def _cut_fwd(how: How, x: jax.Array, kernel: jax.Array) -> tuple[Any, Any]:
    kept, level, spectrum = _keep_cut(how, x, kernel.dtype)
    if how.keeps_filter:
        filter_spectrum = named(_filter_spectrum(how, kernel), FILTER_NAME)
        y = conv_spectra(how, spectrum, filter_spectrum)
        return (y, level), (kept, level, kernel, filter_spectrum)
    return (_conv_kept(how, spectrum, kernel, x.dtype), level), (kept, level, kernel)


def _cut_bwd(how: How, residuals: Any, cts: Any) -> tuple[jax.Array, jax.Array]:
    kept, level, kernel, *filter_spectrum = residuals
    ct, _ = cts
    spectrum = _spectrum_of(how, restore(how, kept, kernel.dtype))
    if how.native:  # The cotangent is cut, and with it both products.
        return _native_bwd(how, spectrum, kernel, ct, level)
    if how.geometry.keeps_input:
        spectrum = _energy.cut(how.geometry, spectrum, level)
    ct_spectrum, ct_kernel = _pull_back(how, spectrum, kernel, filter_spectrum, ct)
    ct_spectrum = _energy.cut(how.geometry, ct_spectrum, level)
    return keep_transposed(how, ct_spectrum), ct_kernel


conv_cut.defvjp(_cut_fwd, _cut_bwd)


def _keep_cut(
    how: How, x: jax.Array, dtype: np.dtype[Any]
) -> tuple[Kept | Quantised, jax.Array, Spectrum]:
    """Returns what the backward pass keeps, the level of the box, and the cut spectrum."""
    kept: Kept | Quantised
    if how.geometry.keeps_input:
        kept = named(_rounded(how, x, x.dtype), SPECTRUM_NAME)
        spectrum = _spectrum_of(how, restore(how, kept, dtype))
        level = named(_energy.find_level(how.geometry, spectrum, x), SPECTRUM_NAME)
        return kept, level, _energy.cut(how.geometry, spectrum, level)
    spectrum = _analyse(how, x)
    level = named(_energy.find_level(how.geometry, spectrum, x), SPECTRUM_NAME)
    spectrum = _energy.cut(how.geometry, spectrum, level)
    kept = named(_rounded(how, spectrum, x.dtype), SPECTRUM_NAME)
    return kept, level, _spectrum_of(how, restore(how, kept, dtype))


def _spectrum_of(how: How, kept: Kept) -> Spectrum:
    return kept if isinstance(kept, tuple) else _analyse(how, kept)


def named(tree: Any, name: str) -> Any:
    return jax.tree.map(lambda a: checkpoint_name(a, name), tree)


def _native_bwd(
    how: How, kept: Kept, kernel: jax.Array, ct: jax.Array, level: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The gradients step by step, so that none is rounded to the type of what was kept."""
    spectrum = _spectrum_of(how, kept)
    transform = how.native_transform(how.output_samples, ct.dtype, kernel.dtype)
    ct_spectrum = _native_transform.analysis(transform, ct)
    if level is not None:
        ct_spectrum = _energy.cut(how.geometry, ct_spectrum, level)
    ct_kernel = _native_product.filter_product(how.native_product, spectrum, ct_spectrum)
    ct_kept = _native_product.input_product(how.native_product, ct_spectrum, kernel)
    transform = how.native_transform(how.input_samples, ct.dtype, kernel.dtype)
    return _native_transform.synthesis(transform, ct_kept), ct_kernel


def keep(how: How, x: jax.Array) -> Kept | Quantised:
    """Returns what the backward pass keeps of ``x``: its spectrum, or itself if that is less."""
    return _rounded(how, x if how.geometry.keeps_input else _analyse(how, x), x.dtype)


def _rounded(how: How, kept: Kept, dtype: np.dtype[Any]) -> Kept | Quantised:
    """Rounds to ``residual_dtype`` what is kept of an input of type ``dtype``."""
    if how.residual_dtype == jnp.int8:
        return quantise(jax.tree.map(lambda a: a.astype(compute_dtype(dtype)), kept))
    if how.kept_scale != 1:
        kept = jax.tree.map(lambda a: a / how.kept_scale, kept)
    return jax.tree.map(lambda a: a.astype(how.residual_dtype), kept)


def restore(how: How, kept: Kept | Quantised, dtype: np.dtype[Any]) -> Kept:
    if isinstance(kept, Quantised):
        return kept.restored(dtype)
    if how.native and how.residual_dtype == jnp.bfloat16 and dtype != jnp.float64:
        return kept  # The native kernels read it as it is.
    restored: Kept = jax.tree.map(lambda a: a.astype(dtype), kept)
    if how.kept_scale != 1:
        restored = jax.tree.map(lambda a: a * how.kept_scale, restored)
    return restored


def keep_transposed(how: How, ct: Kept) -> jax.Array:
    """The adjoint of :func:`keep`, straight through the rounding."""
    if isinstance(ct, tuple):
        return _batch_first(from_spectrum(how.transform, how.input_samples, ct))
    return ct


def _conv_kept(how: How, kept: Kept, kernel: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Convolves what :func:`keep` kept of the input; linear in ``kept`` and in ``kernel``.

    ``dtype`` is that of the result, with native kernels; the kernel's without.
    """
    if how.method == "direct":
        return _direct(how, kept, kernel)
    spectrum = _spectrum_of(how, kept)
    if how.native:
        output_spectrum = _native_product.multiply_sum(how.native_product, spectrum, kernel)
        transform = how.native_transform(how.output_samples, jnp.dtype(dtype), kernel.dtype)
        return _native_transform.synthesis(transform, output_spectrum)
    return conv_spectra(how, spectrum, _filter_spectrum(how, kernel))


def _filter_spectrum(how: How, kernel: jax.Array) -> Spectrum:
    return to_spectrum(how.transform, how.kernel_samples, kernel)


def conv_spectra(how: How, kept: Kept, filter_spectrum: Spectrum) -> jax.Array:
    """:func:`_conv_kept` by the methods that hold the filter's spectrum."""
    spectrum = _spectrum_of(how, kept)
    output_spectrum = multiply_sum(how.product, spectrum, filter_spectrum)
    return _batch_first(from_spectrum(how.transform, how.output_samples, output_spectrum))


def _direct(how: How, kept: Kept, kernel: jax.Array) -> jax.Array:
    """Projects the input on the band, and leaves the rest to the backend's own convolution."""
    axes = how.geometry.axes
    padding = ((0, 0),) * len(axes)
    dilation = (1,) * len(axes)
    if isinstance(kept, tuple) or not how.geometry.exact:
        spectrum = _spectrum_of(how, kept)
        window = _batch_first(from_spectrum(how.transform, how.window_samples, spectrum))
    elif axes[0].circular:
        window = kept
        points = zip(how.input_samples.points, how.window_samples.points, strict=True)
        for i, (sampled, read) in enumerate(points, start=1):
            window = lay_on_circle(window, how.geometry.grid[i - 1], sampled, i)
            window = take_from_circle(window, read, i)
    else:
        window = kept
        padding = tuple(axis.padding for axis in axes)
        dilation = tuple(axis.input_dilation for axis in axes)
    dense = Dense(
        size=window.shape[1:-1],
        taps=kernel.shape[:-2],
        out=tuple(axis.out for axis in axes),
        strides=tuple(axis.stride for axis in axes),
        padding=padding,
        input_dilation=dilation,
        kernel_dilation=tuple(axis.kernel_dilation for axis in axes),
        groups=how.geometry.groups,
        precision=how.precision,
    )
    return convolve(dense, window, kernel)


def _analyse(how: How, x: jax.Array) -> Spectrum:
    if how.native:
        dtype = compute_dtype(x.dtype)
        if how.residual_dtype == jnp.bfloat16 and not how.geometry.keeps_input:
            dtype = dtype if dtype == jnp.float64 else how.residual_dtype
        return _native_transform.analysis(
            how.native_transform(how.input_samples, x.dtype, dtype), x
        )
    return to_spectrum(how.transform, how.input_samples, jnp.moveaxis(x, 0, -2))


def _batch_first(samples: jax.Array) -> jax.Array:
    """``(*spatial, N, C)`` to ``(N, *spatial, C)``."""
    return jnp.moveaxis(samples, -2, 0)
