"""Band-limited convolution: the operator and its arguments."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._bands.band import Band
from bandjax._conv import complex_numbers, plain
from bandjax._conv.choose import choose
from bandjax._conv.geometry import ConvGeometry, PaddingLike, canonical_padding, conv_geometry
from bandjax._conv.methods import FilterDomain
from bandjax._conv.operator import apply
from bandjax._conv.operator import convolve as differentiable
from bandjax._conv.options import ConvSpec
from bandjax._parallel import mesh
from bandjax._spectra.types import Precision


def band_conv(
    x: Float[Array, "*batch_spatial C"],
    kernel: Float[Array, "*taps c O"],
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

        X = A x
        W = B w
        Y[n, u, o] = sum_c X[n, u, c] conj(W[u, c, o])
        y = Re S Y

    This is ``jax.lax.conv_general_dilated`` of the input's projection on the band (on the circle).
    With every frequency kept it is that convolution exactly.

    The backward pass keeps the compressed spectrum ``X`` and ``kernel``, nothing else; the input
    takes the spectrum's place where the spectrum holds no fewer numbers. Either is named
    ``"bandjax_spectrum"`` for ``jax.checkpoint`` policies.

    Args:
      x: ``(batch..., *spatial, in)``, any number of batch dimensions, 1 to 3 spatial ones; float32,
        float64, bfloat16, float16, complex64 or complex128. Half types are computed in float32 and
        returned in their own; the native kernels of a CPU round the factors of bfloat16 arrays'
        products to bfloat16 too, but with ``precision="highest"``. Of complex numbers the band
        keeps both signs of every frequency; the kernel is not conjugated, as in ``jax.lax``.
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
      method: ``"fft"``, ``"dft"`` (truncated matrix products), ``"direct"`` (projection, then the
        convolution as it is defined) or, of maps with every frequency kept, ``"tiles"``
        (overlapping windows, by the native kernels): the same operator, to rounding. ``"auto"``
        estimates the cheapest from shapes, band and platform.
      implementation: ``"native"`` computes "dft", "direct" and "tiles" by the native kernels,
        ``"xla"`` all but "tiles" in plain JAX, where "direct" is ``conv_general_dilated``; None
        picks. :func:`bandjax.native_status` tells whether there are
        kernels. ``"jax"`` has no rule for derivatives of its own: forward mode and
        ``jax.linear_transpose`` work, but it is slower, and the backward pass keeps what JAX
        chooses.
      residual_dtype: type in which the spectrum is kept; the forward pass continues from the
        rounded values. By default the input's own type. ``jnp.int8`` keeps 8 bits of each number,
        with scales for the frequencies and the channels of each example; it has first derivatives
        alone.
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
      TypeError: an argument of the wrong type, or an input that is neither floating point nor
        complex.
      ValueError: a value out of range, shapes that do not fit together, or a method that does not
        take them.
      RuntimeError: ``implementation="native"`` without native kernels; it says how to build them.

    Reverse-mode derivatives of any order are exact. Forward mode (``jax.jvp``, ``jax.jacfwd``,
    ``jax.hessian``) and ``jax.linear_transpose`` need ``implementation="jax"``; without it they
    raise JAX's error for ``custom_vjp`` functions. (Second derivatives without forward mode are
    ``jax.jacrev(jax.jacrev(f))``, the transpose is ``jax.vjp(f, x)[1]``.)

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
    y, modes = convolve(
        ConvSpec(band, grid, method, implementation, residual_dtype, recompute_filter),
        x,
        kernel,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        out_sharding=out_sharding,
    )
    return (y, modes) if return_modes else y


def convolve(
    spec: ConvSpec,
    x: Float[Array, "*batch_spatial C"],
    kernel: Float[Array, "*taps c O"],
    *,
    padding: PaddingLike,
    precision: Precision,
    out_sharding: Any,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """:func:`band_conv` with its options in one record; it returns the limits of the box too.

    ``options`` are the further arguments of :func:`bandjax.conv_geometry`.
    """
    x, kernel = as_arrays(x, kernel, takes_complex=True)
    geometry = conv_geometry(
        x.shape, kernel.shape, spec.band, padding=padding, grid=spec.grid, **options
    )
    complex_ = complex_numbers.is_complex(x.dtype)
    if complex_:
        geometry = complex_numbers.real_geometry(geometry, x.dtype)
        x = complex_numbers.parts_of_input(x, geometry.groups)
        kernel = complex_numbers.parts_of_kernel(kernel, geometry.groups)
    reflect = canonical_padding(padding) == "REFLECT"
    y, modes = run(spec, geometry, x, kernel, precision, out_sharding, reflect=reflect)
    return (complex_numbers.from_parts(y, geometry.groups) if complex_ else y), modes


def run(
    spec: ConvSpec,
    geometry: ConvGeometry,
    x: Float[Array, "*batch_spatial C"],
    kernel: Float[Array, "*taps c O"],
    precision: Precision,
    out_sharding: Any,
    *,
    domain: FilterDomain = "spatial",
    reflect: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Chooses the method and convolves with it, wherever the arrays lie.

    Args:
      spec: the options.
      geometry: of the convolution.
      x: ``(batch..., *spatial, in)``.
      kernel: taps, or with ``domain="spectral"`` a spectrum, see :class:`Method`.
      precision: of products.
      out_sharding: see :func:`band_conv`.
      domain: what ``kernel`` holds.
      reflect: whether to pad ``x`` by reflection first.

    Returns:
      ``(batch..., *spatial_out, out)`` and the limits of the kept box, int32 ``(axes,)``.
    """
    residual_dtype = x.dtype if spec.residual_dtype is None else spec.residual_dtype
    # What is differentiated decides an Energy band's box by the same numbers as what is not.
    alone, method = (
        choose(geometry, spec, x.dtype, domain, precision=precision, inference=inference)(
            geometry, residual_dtype, spec.recompute_filter, precision, domain
        )
        for inference in (geometry.energy is None, False)
    )
    by: Any = functools.partial(differentiable, alone)
    if spec.implementation == "jax":
        by = plain.convolve
    operator = functools.partial(apply, method, reflect=reflect, by=by)
    return mesh.call(operator, x, kernel, len(geometry.axes), out_sharding)


def as_arrays(
    x: Any, kernel: Any, name: str = "kernel", *, takes_complex: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Returns both as JAX arrays.

    NumPy's float64 becomes JAX's default type first, as in ``jax.lax``.

    Raises:
      TypeError: they are no arrays of floating-point, or where it is taken complex, type, or of
        two types.
    """
    types = "floating-point or complex" if takes_complex else "floating-point"
    for label, array in (("x", x), (name, kernel)):
        if not isinstance(array, jax.Array | np.ndarray):
            raise TypeError(f"{label} must be an array, got {type(array).__name__}")
        if not jnp.issubdtype(array.dtype, jnp.inexact if takes_complex else jnp.floating):
            raise TypeError(f"{label} must be of a {types} type, got {array.dtype}")
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if x.dtype != kernel.dtype:
        raise TypeError(
            f"x and {name} must have the same type, got {x.dtype} and {kernel.dtype}; "
            f"cast one of them"
        )
    return x, kernel
