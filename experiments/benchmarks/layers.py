"""A layer by bandjax and by its peers on JAX: lax, and compositions of jnp.fft."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

import bandjax
from experiments.benchmarks.candidates import Arrays, Candidate, jax_candidate
from experiments.benchmarks.workloads import Layer
from experiments.settings.bands import parse_band

LAYOUTS = ("last", "first")


def first_band(bands: Sequence[str]) -> str:
    """The first band that drops anything, else the first: the one that jnp.fft is timed at."""
    return next((band for band in bands if band != "none"), bands[0])


def band_limited(
    layer: Layer,
    arrays: Arrays,
    direction: str,
    precision: jax.lax.Precision | None,
    methods: Sequence[str],
    implementations: Sequence[str],
) -> Iterator[Candidate]:
    """The layer by bandjax at every band, by every method and implementation."""
    for label in layer.bands:
        for method in methods:
            for implementation in implementations:
                convolve = functools.partial(
                    bandjax.band_conv,
                    band=parse_band(label)[1],
                    **layer.arguments,
                    method=method,
                    implementation=None if implementation == "auto" else implementation,
                    precision=precision,
                )
                name = bandjax_name(label, method, implementation)
                yield jax_candidate(name, "bandjax", label, convolve, arrays, direction=direction)


def bandjax_name(band: str, method: str = "auto", implementation: str = "auto") -> str:
    """``bandjax compression=0.5``, and what was not left to bandjax to choose."""
    chosen = [word for word in (method, implementation) if word != "auto"]
    return " ".join(["bandjax", *chosen, band])


def dense(
    layer: Layer, arrays: Arrays, direction: str, precision: jax.lax.Precision | None
) -> Iterator[Candidate]:
    """``lax.conv_general_dilated``, channels last and channels first."""
    axes = layer.geometry().axes
    pads = [axis.padding for axis in axes]
    space = "DHW"[-len(axes) :]

    for layout in LAYOUTS:
        numbers = _numbers(len(axes), layout)
        kernel_numbers = f"{space}IO" if layout == "last" else f"OI{space}"

        def convolve(
            x: jax.Array,
            kernel: jax.Array,
            numbers: str = numbers,
            kernel_numbers: str = kernel_numbers,
        ) -> jax.Array:
            padding = pads
            if layer.padding == "CIRCULAR":
                widths = [(0, 0)] * x.ndim
                for letter, pair in zip(space, pads, strict=True):
                    widths[numbers.index(letter)] = pair
                x, padding = jnp.pad(x, widths, mode="wrap"), [(0, 0)] * len(pads)
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (layer.strides,) * len(pads),
                padding,
                lhs_dilation=(layer.input_dilation,) * len(pads),
                dimension_numbers=(numbers, kernel_numbers, numbers),
                feature_group_count=layer.groups,
                precision=precision,
            )

        yield jax_candidate(
            f"lax {numbers}", "lax", None, convolve, arrays, direction=direction, layout=layout
        )


def compositions(
    layer: Layer,
    arrays: Arrays,
    direction: str,
    precision: jax.lax.Precision | None,
    *,
    powers_of_two: bool,
) -> Iterator[Candidate]:
    """The ``jnp.fft`` composition at the first band, channels last and channels first.

    Args:
        layer, arrays, direction, precision: what to compute.
        powers_of_two: on the grid of the authors' code in place of bandjax's.
    """
    label = first_band(layer.bands)
    geometry = layer.geometry(parse_band(label)[1], authors_grid(layer) if powers_of_two else None)
    side = "fft-pow2" if powers_of_two else "fft"
    for layout in LAYOUTS:
        convolve = functools.partial(
            fft_convolution, geometry=geometry, layout=layout, precision=precision
        )
        name = f"{side} {_numbers(len(geometry.axes), layout)} {label}"
        yield jax_candidate(name, side, label, convolve, arrays, direction=direction, layout=layout)


def fft_convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    geometry: bandjax.ConvGeometry,
    layout: str,
    precision: jax.lax.Precision | None = None,
) -> jax.Array:
    """A band-limited convolution of stride 1 as one writes it with ``jnp.fft``.

    Transform both on the grid, keep the corners, multiply and sum over channels, put zeros back,
    transform, crop. JAX differentiates it.

    Args:
        x: ``(batch, *size, channels)``; ``(batch, channels, *size)`` in the layout ``first``.
        kernel: ``(*taps, inputs / groups, outputs)``; ``(outputs, inputs / groups, *taps)``.
        geometry: grid, band and padding. One group, or a depthwise layer.
        layout: ``last`` or ``first``.
        precision: of the product over channels.

    Returns:
        The output, in the layout of ``x``.
    """
    grid = geometry.grid
    rank = len(grid)
    space = "XYZ"[:rank]
    first = layout == "first"
    x_axes = tuple(range(2, rank + 2)) if first else tuple(range(1, rank + 1))
    kernel_axes = tuple(range(2, rank + 2)) if first else tuple(range(rank))

    X = keep_corners(jnp.fft.rfftn(x, grid, x_axes), geometry, x_axes)
    W = keep_corners(jnp.fft.rfftn(kernel, grid, kernel_axes), geometry, kernel_axes)
    if geometry.groups == 1:
        sums = f"nc{space},oc{space}->no{space}" if first else f"n{space}c,{space}co->n{space}o"
        Y = jnp.einsum(sums, X, W.conj(), precision=precision)
    else:
        if not geometry.groups == geometry.in_features == geometry.out_features:
            raise ValueError("needs one group, or as many as input and output channels")
        W = jnp.squeeze(W, 1 if first else -2)
        Y = X * W.conj()[None]
    y = jnp.fft.irfftn(restore_zeros(Y, geometry, x_axes), grid, x_axes)
    # Outputs begin before the first sample: that is, at the end of the circle.
    y = jnp.roll(y, [axis.padding[0] for axis in geometry.axes], x_axes)
    for i, axis in zip(x_axes, geometry.axes, strict=True):
        y = jax.lax.slice_in_dim(y, 0, axis.out, axis=i)
    return y


def keep_corners(
    spectrum: jax.Array, geometry: bandjax.ConvGeometry, axes: Sequence[int]
) -> jax.Array:
    """The low frequencies of a half spectrum: both ends of every axis, the start of the last."""
    for i, (axis, g, u) in enumerate(zip(axes, geometry.grid, geometry.modes, strict=True)):
        low = jax.lax.slice_in_dim(spectrum, 0, u + 1, axis=axis)
        if i == len(axes) - 1:
            spectrum = low
        elif 2 * u + 1 < g:
            high = jax.lax.slice_in_dim(spectrum, g - u, g, axis=axis)
            spectrum = jnp.concatenate([low, high], axis)
    return spectrum


def restore_zeros(
    corners: jax.Array, geometry: bandjax.ConvGeometry, axes: Sequence[int]
) -> jax.Array:
    """The half spectrum whose corners are given, zero elsewhere."""
    for i, (axis, g, u) in enumerate(zip(axes, geometry.grid, geometry.modes, strict=True)):
        last = i == len(axes) - 1
        shape = list(corners.shape)
        shape[axis] = g // 2 - u if last else g - min(2 * u + 1, g)
        zeros = jnp.zeros(shape, corners.dtype)
        low = corners if last else jax.lax.slice_in_dim(corners, 0, u + 1, axis=axis)
        parts = [low, zeros]
        if not last:
            parts.append(jax.lax.slice_in_dim(corners, u + 1, corners.shape[axis], axis=axis))
        corners = jnp.concatenate(parts, axis)
    return corners


def _numbers(rank: int, layout: str) -> str:
    """What lax calls a layout, ``NHWC`` for instance."""
    space = "DHW"[-rank:]
    return f"N{space}C" if layout == "last" else f"NC{space}"


def authors_grid(layer: Layer) -> tuple[int, ...]:
    """The powers of two to which the authors' code pads, which has one and two spatial axes.

    For three axes it is the rule of two.
    """
    lengths = []
    for axis in layer.geometry().axes:
        padded = axis.size + sum(axis.padding)
        if len(layer.size) == 1:
            needed = padded + 2 * max(axis.taps - 1, axis.out - 1)
        else:
            needed = padded + max(axis.out, axis.taps) - 1
        lengths.append(1 << (needed - 1).bit_length())
    return tuple(lengths)
