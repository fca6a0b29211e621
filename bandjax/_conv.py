"""Band-limited convolution: the operator and its derivative."""

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

from bandjax import _cost, _energy, _native, _native_product, _native_transform, _sharding
from bandjax._band import Band, check_band
from bandjax._dense import Dense, convolve
from bandjax._geometry import ConvGeometry, PaddingLike, conv_geometry
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
METHODS = ("auto", "fft", "dft", "direct")
IMPLEMENTATIONS = (None, "xla", "native")
RESIDUAL_DTYPES = tuple(map(jnp.dtype, ("int8", "bfloat16", "float16", "float32", "float64")))


def band_conv(
    x: jax.Array,
    kernel: jax.Array,
    band: Band = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: PaddingLike = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    grid: int | Sequence[int] | None = None,
    method: str = "auto",
    implementation: str | None = None,
    residual_dtype: jax.typing.DTypeLike | None = None,
    recompute_filter: bool = True,
    precision: Precision = None,
    out_sharding: Any = None,
    return_modes: bool = False,
) -> Any:
    """Convolves ``x`` with ``kernel`` on the low frequencies alone, forward and backward.

    Each spatial axis is laid on a circle of ``g`` points. With analysis ``A``, filter ``B`` and
    synthesis ``S`` the DFT matrices of the kept frequencies, sampled where input, taps and outputs
    lie,

        X = A x      W = B w      Y[n, u, o] = sum_c X[n, u, c] conj(W[u, c, o])      y = Re S Y

    This is ``jax.lax.conv_general_dilated`` of the input's projection on the band (on the circle).
    With every frequency kept it is that convolution exactly.

    The backward pass keeps the compressed spectrum ``X`` and ``kernel``, nothing else; the input
    takes the spectrum's place where the spectrum holds no fewer numbers. Either is named
    ``"bandjax_spectrum"`` for ``jax.checkpoint`` policies.

    Args:
      x: ``(batch..., *spatial, in)``, any number of batch dimensions, 1 to 3 spatial ones; float32,
        float64, bfloat16 or float16. Half types are computed in float32 and returned in their own.
      kernel: ``(*taps, in / feature_group_count, out)``, of the same type.
      band: :class:`bandjax.Compression`, :class:`bandjax.Modes`, :class:`bandjax.Energy`, or None
        for every frequency.
      strides: points between outputs, an integer or one for each spatial axis.
      padding: ``"SAME"``, ``"SAME_LOWER"``, ``"VALID"``; ``"CIRCULAR"`` for a periodic axis;
        ``"CAUSAL"`` (one spatial axis) and ``"REFLECT"`` as Flax has them; or an integer, or one
        integer or ``(low, high)`` pair for each axis. Negative padding crops.
      input_dilation: points between inputs; ``s`` gives the transposed convolution of stride ``s``.
      kernel_dilation: points between taps.
      feature_group_count: groups of channels, each convolved on its own.
      grid: points on the circle, an integer or one for each axis; at least
        ``(h - 1) * input_dilation + 1 + max(low, high, 0)``, which is the default (rounded up to
        the next product of 2, 3 and 5 above 64). ``"CIRCULAR"`` fixes it to the period.
      method: ``"fft"``, ``"dft"`` (truncated matrix products) or ``"direct"`` (projection, then
        ``conv_general_dilated``): the same operator, to rounding. ``"auto"`` estimates the cheapest
        from shapes, band and platform.
      implementation: ``"native"`` computes method "dft" by the native kernels, ``"xla"`` any method
        in plain JAX; None picks. :func:`bandjax.native_status` tells whether there are kernels.
      residual_dtype: type in which the spectrum is kept; the forward pass continues from the
        rounded values. By default the input's own type. ``jnp.int8`` keeps 8 bits of each number,
        with a scale for each frequency and one for each channel; it has first derivatives alone.
      recompute_filter: whether the backward pass derives the filter's spectrum anew from the
        kernel. If not, methods "fft" and "dft" in plain JAX keep it beside the input's, named
        ``"bandjax_filter_spectrum"``; the native kernels and "direct" never hold it.
      precision: of the matrix products and convolutions, as in ``jax.lax``.
      out_sharding: of the result, on a mesh with explicit axes; by default that of the batch of
        ``x`` and of the output channels of ``kernel``.
      return_modes: return the limits of the kept box as well, which an ``Energy`` band finds anew
        in every call. Under ``vmap`` and ``shard_map`` each element, each shard finds its own.

    Returns:
      ``(batch..., *spatial_out, out)`` of the type of ``x``; with ``return_modes`` a pair of it and
      an int32 array ``(spatial axes,)``.

    Raises:
      TypeError: an argument of the wrong type, or an input that is not floating point.
      ValueError: a value out of range, or shapes that do not fit together.
      RuntimeError: ``implementation="native"`` without native kernels; it says how to build them.

    Reverse-mode derivatives of any order are exact. Forward mode (``jax.jvp``, ``jax.jacfwd``, and
    so ``jax.hessian``) raises JAX's error for ``custom_vjp`` functions; second derivatives are
    ``jax.jacrev(jax.jacrev(f))``.

    Example:
      >>> x, kernel = jnp.ones((2, 32, 32, 3)), jnp.ones((3, 3, 3, 8))
      >>> band_conv(x, kernel, Compression(0.5), strides=2).shape
      (2, 16, 16, 8)

    A transposed convolution of stride ``s`` is ``input_dilation=s`` with stride 1; Flax's SAME pads
    ``k + s - 2`` points in all, ``k - 1`` of them before if ``s >= k``, else half (rounded up). The
    equal of ``flax.linen.ConvTranspose(8, (3, 3), (2, 2))``:

      >>> band_conv(x, kernel, input_dilation=2, padding=[(2, 1), (2, 1)]).shape
      (2, 64, 64, 8)

    Source: Dziedzic et al., "Band-limited Training and Inference for Convolutional Neural
    Networks", ICML 2019, section 3.
    """
    _check_arrays(x, kernel)
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    check_options(band, method, implementation, residual_dtype, recompute_filter)
    geometry = conv_geometry(
        x.shape,
        kernel.shape,
        band,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        grid=grid,
    )
    rank = len(geometry.axes)
    if implementation is None and not recompute_filter:
        implementation = "xla"  # The kernels make the filter's spectrum tile by tile.
    method, native = _choose(geometry, method, implementation, x.dtype)
    kept_dtype = x.dtype if residual_dtype is None else jnp.dtype(residual_dtype)
    how = _How(geometry, method, native, kept_dtype, recompute_filter, precision)
    operator = functools.partial(_batched_conv, how, padding == "REFLECT", rank)
    y, modes = _sharding.call(operator, x, kernel, rank, out_sharding)
    return (y, modes) if return_modes else y


def _batched_conv(
    how: _How, reflect: bool, rank: int, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Makes the batch one axis and the numbers float32 or float64, and undoes both.

    Returns the limits of the kept box, too.
    """
    geometry = how.geometry
    modes = jnp.asarray(geometry.modes, jnp.int32)
    if math.prod(geometry.output_shape) == 0:
        return jnp.zeros(geometry.output_shape, x.dtype), modes
    if reflect:
        widths = [(0, 0)] * x.ndim
        for axis, sampled in enumerate(geometry.axes, start=x.ndim - rank - 1):
            window = sampled.size - x.shape[axis]
            widths[axis] = (window // 2, window - window // 2)
        x = jnp.pad(x, widths, mode="reflect")
    dtype = x.dtype
    compute = _compute_dtype(dtype)
    x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :]) if x.ndim != rank + 2 else x
    # The native kernels read and write bfloat16 themselves.
    stored = dtype if how.native and dtype == jnp.bfloat16 else compute
    x, kernel = x.astype(stored), kernel.astype(compute)
    if geometry.energy is None:
        y = _conv(how, x, kernel)
    else:
        y, level = _conv_cut(how, x, kernel)
        modes = _energy.modes_of(geometry, level)
    return y.astype(dtype).reshape(geometry.output_shape), modes


def _compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _choose(
    geometry: ConvGeometry, method: str, implementation: str | None, dtype: np.dtype[Any]
) -> tuple[str, bool]:
    """Returns the method, and whether native kernels compute it.

    Raises:
      RuntimeError: native kernels are asked for, and there are none.
      ValueError: they are asked for a method or a type that they do not have.
    """
    platform = jax.default_backend()
    compute = _compute_dtype(dtype)
    if implementation == "native":
        if method not in ("auto", "dft"):
            raise ValueError(
                f"implementation 'native' computes method 'dft', got method={method!r}"
            )
        _native.require(platform)
        if not _native.supports(compute, platform):
            raise ValueError(
                f"implementation 'native' computes {dtype} on the CPU alone, not on {platform!r}"
            )
        return "dft", True
    # On accelerators the native kernels are not measured: they are used where they are asked for.
    there = implementation is None and platform == "cpu" and _native.supports(compute, platform)
    if method == "auto":
        return _cost.cheapest(geometry, platform, native=there)
    return method, there and method == "dft"


@dataclasses.dataclass(frozen=True)
class _How:
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
def _conv(how: _How, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves ``x`` ``(N, *spatial, C)``, float32 or float64; by native kernels bfloat16 too."""
    return _conv_kept(how, _restore(how, _keep(how, x), kernel.dtype), kernel, x.dtype)


def _conv_fwd(how: _How, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    kept = _named(_keep(how, x), SPECTRUM_NAME)
    restored = _restore(how, kept, kernel.dtype)
    if how.keeps_filter:
        filter_spectrum = _named(_filter_spectrum(how, kernel), FILTER_NAME)
        y = _conv_spectra(how, restored, filter_spectrum)
        return y, (kept, kernel, filter_spectrum)
    return _conv_kept(how, restored, kernel, x.dtype), (kept, kernel)


def _conv_bwd(how: _How, residuals: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    kept, kernel, *filter_spectrum = residuals
    restored = _restore(how, kept, kernel.dtype)
    if how.native:
        return _native_bwd(how, restored, kernel, ct)
    ct_kept, ct_kernel = _pull_back(how, restored, kernel, filter_spectrum, ct)
    return _keep_transposed(how, ct_kept), ct_kernel


def _pull_back(
    how: _How, kept: Kept, kernel: jax.Array, filter_spectrum: Sequence[Spectrum], ct: jax.Array
) -> tuple[Any, jax.Array]:
    """The gradients of what was kept and of the kernel, in plain JAX."""
    # The operator is linear in what was kept and in the filter, so that its vjp needs no value but
    # the residuals.
    if filter_spectrum:
        _, pull_back = jax.vjp(functools.partial(_conv_spectra, how), kept, *filter_spectrum)
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
def _conv_cut(how: _How, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """:func:`_conv` on the box that holds the band's share of the energy, and its level."""
    _, level, spectrum = _keep_cut(how, x, kernel.dtype)
    return _conv_kept(how, spectrum, kernel, x.dtype), level


def _conv_cut_fwd(how: _How, x: jax.Array, kernel: jax.Array) -> tuple[Any, Any]:
    kept, level, spectrum = _keep_cut(how, x, kernel.dtype)
    if how.keeps_filter:
        filter_spectrum = _named(_filter_spectrum(how, kernel), FILTER_NAME)
        y = _conv_spectra(how, spectrum, filter_spectrum)
        return (y, level), (kept, level, kernel, filter_spectrum)
    return (_conv_kept(how, spectrum, kernel, x.dtype), level), (kept, level, kernel)


def _conv_cut_bwd(how: _How, residuals: Any, cts: Any) -> tuple[jax.Array, jax.Array]:
    kept, level, kernel, *filter_spectrum = residuals
    ct, _ = cts
    spectrum = _spectrum_of(how, _restore(how, kept, kernel.dtype))
    if how.native:  # The cotangent is cut, and with it both products.
        return _native_bwd(how, spectrum, kernel, ct, level)
    if how.geometry.keeps_input:
        spectrum = _energy.cut(how.geometry, spectrum, level)
    ct_spectrum, ct_kernel = _pull_back(how, spectrum, kernel, filter_spectrum, ct)
    ct_spectrum = _energy.cut(how.geometry, ct_spectrum, level)
    return _keep_transposed(how, ct_spectrum), ct_kernel


_conv_cut.defvjp(_conv_cut_fwd, _conv_cut_bwd)


def _keep_cut(
    how: _How, x: jax.Array, dtype: np.dtype[Any]
) -> tuple[Kept | Quantised, jax.Array, Spectrum]:
    """Returns what the backward pass keeps, the level of the box, and the cut spectrum."""
    kept: Kept | Quantised
    if how.geometry.keeps_input:
        kept = _named(_rounded(how, x, x.dtype), SPECTRUM_NAME)
        spectrum = _spectrum_of(how, _restore(how, kept, dtype))
        level = _named(_energy.find_level(how.geometry, spectrum, x), SPECTRUM_NAME)
        return kept, level, _energy.cut(how.geometry, spectrum, level)
    spectrum = _analyse(how, x)
    level = _named(_energy.find_level(how.geometry, spectrum, x), SPECTRUM_NAME)
    spectrum = _energy.cut(how.geometry, spectrum, level)
    kept = _named(_rounded(how, spectrum, x.dtype), SPECTRUM_NAME)
    return kept, level, _spectrum_of(how, _restore(how, kept, dtype))


def _spectrum_of(how: _How, kept: Kept) -> Spectrum:
    return kept if isinstance(kept, tuple) else _analyse(how, kept)


def _named(tree: Any, name: str) -> Any:
    return jax.tree.map(lambda a: checkpoint_name(a, name), tree)


def _native_bwd(
    how: _How, kept: Kept, kernel: jax.Array, ct: jax.Array, level: jax.Array | None = None
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


_conv.defvjp(_conv_fwd, _conv_bwd)


def _keep(how: _How, x: jax.Array) -> Kept | Quantised:
    """Returns what the backward pass keeps of ``x``: its spectrum, or itself if that is less."""
    return _rounded(how, x if how.geometry.keeps_input else _analyse(how, x), x.dtype)


def _rounded(how: _How, kept: Kept, dtype: np.dtype[Any]) -> Kept | Quantised:
    """Rounds to ``residual_dtype`` what is kept of an input of type ``dtype``."""
    if how.residual_dtype == jnp.int8:
        return quantise(jax.tree.map(lambda a: a.astype(_compute_dtype(dtype)), kept))
    if how.kept_scale != 1:
        kept = jax.tree.map(lambda a: a / how.kept_scale, kept)
    return jax.tree.map(lambda a: a.astype(how.residual_dtype), kept)


def _restore(how: _How, kept: Kept | Quantised, dtype: np.dtype[Any]) -> Kept:
    if isinstance(kept, Quantised):
        return kept.restored(dtype)
    if how.native and how.residual_dtype == jnp.bfloat16 and dtype != jnp.float64:
        return kept  # The native kernels read it as it is.
    restored: Kept = jax.tree.map(lambda a: a.astype(dtype), kept)
    if how.kept_scale != 1:
        restored = jax.tree.map(lambda a: a * how.kept_scale, restored)
    return restored


def _keep_transposed(how: _How, ct: Kept) -> jax.Array:
    """The adjoint of :func:`_keep`, straight through the rounding."""
    if isinstance(ct, tuple):
        return _batch_first(from_spectrum(how.transform, how.input_samples, ct))
    return ct


def _conv_kept(how: _How, kept: Kept, kernel: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Convolves what :func:`_keep` kept of the input; linear in ``kept`` and in ``kernel``.

    ``dtype`` is that of the result, with native kernels; the kernel's without.
    """
    if how.method == "direct":
        return _direct(how, kept, kernel)
    spectrum = _spectrum_of(how, kept)
    if how.native:
        output_spectrum = _native_product.multiply_sum(how.native_product, spectrum, kernel)
        transform = how.native_transform(how.output_samples, jnp.dtype(dtype), kernel.dtype)
        return _native_transform.synthesis(transform, output_spectrum)
    return _conv_spectra(how, spectrum, _filter_spectrum(how, kernel))


def _filter_spectrum(how: _How, kernel: jax.Array) -> Spectrum:
    return to_spectrum(how.transform, how.kernel_samples, kernel)


def _conv_spectra(how: _How, kept: Kept, filter_spectrum: Spectrum) -> jax.Array:
    """:func:`_conv_kept` by the methods that hold the filter's spectrum."""
    spectrum = _spectrum_of(how, kept)
    output_spectrum = multiply_sum(how.product, spectrum, filter_spectrum)
    return _batch_first(from_spectrum(how.transform, how.output_samples, output_spectrum))


def _direct(how: _How, kept: Kept, kernel: jax.Array) -> jax.Array:
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


def _analyse(how: _How, x: jax.Array) -> Spectrum:
    if how.native:
        dtype = _compute_dtype(x.dtype)
        if how.residual_dtype == jnp.bfloat16 and not how.geometry.keeps_input:
            dtype = dtype if dtype == jnp.float64 else how.residual_dtype
        return _native_transform.analysis(
            how.native_transform(how.input_samples, x.dtype, dtype), x
        )
    return to_spectrum(how.transform, how.input_samples, jnp.moveaxis(x, 0, -2))


def _batch_first(samples: jax.Array) -> jax.Array:
    """``(*spatial, N, C)`` to ``(N, *spatial, C)``."""
    return jnp.moveaxis(samples, -2, 0)


def _check_arrays(x: Any, kernel: Any) -> None:
    for name, array in (("x", x), ("kernel", kernel)):
        if not isinstance(array, jax.Array | np.ndarray):
            raise TypeError(f"{name} must be an array, got {type(array).__name__}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be of a floating-point type, got {array.dtype}")
    if x.dtype != kernel.dtype:
        raise TypeError(
            f"x and kernel must have the same type, got {x.dtype} and {kernel.dtype}; "
            f"cast one of them"
        )


def check_options(
    band: Any,
    method: Any,
    implementation: Any,
    residual_dtype: jax.typing.DTypeLike | None,
    recompute_filter: Any,
) -> None:
    """Raises TypeError or ValueError for options that no input could go with."""
    check_band(band)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be None, 'xla' or 'native', got {implementation!r}")
    if not isinstance(recompute_filter, bool):
        raise TypeError(f"recompute_filter must be True or False, got {recompute_filter!r}")
    if implementation == "native" and not recompute_filter:
        raise ValueError(
            "recompute_filter=False needs implementation None or 'xla': the native kernels never "
            "hold the filter's spectrum, got implementation='native'"
        )
    if residual_dtype is None:
        return
    try:
        kind = jnp.dtype(residual_dtype)
    except TypeError:
        raise TypeError(f"residual_dtype must be a type, got {residual_dtype!r}") from None
    if kind not in RESIDUAL_DTYPES:
        raise ValueError(
            f"residual_dtype must be one of {', '.join(map(str, RESIDUAL_DTYPES))}, got {kind}"
        )
