"""Layers whose parameters are the spectra of their filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bandjax._bands.band import Energy, Modes
from bandjax._bands.frequencies import frequencies
from bandjax._conv.complex_numbers import is_complex
from bandjax._conv.geometry import Axis, ConvGeometry, canonical_padding, conv_geometry
from bandjax._conv.spectral_conv import modes_at, spectral_conv
from bandjax._flax.layer import arguments_of
from bandjax._spectra.kernels import kernel_to_spectrum, modes_of_box, spectrum_to_kernel

DOMAINS = ("spatial", "spectral")


def check(layer: Any) -> None:
    """Raises TypeError or ValueError for what does not go with ``param_domain``."""
    if layer.param_domain not in DOMAINS:
        raise ValueError(
            f"param_domain must be one of {', '.join(DOMAINS)}, got {layer.param_domain!r}"
        )
    decay = layer.spectral_decay
    if isinstance(decay, bool) or not isinstance(decay, int | float):
        raise TypeError(f"spectral_decay must be a real number, got {decay!r}")
    if not 0 <= decay < float("inf"):
        raise ValueError(f"spectral_decay must be >= 0 and finite, got {decay}")
    if layer.param_domain == "spatial":
        if decay:
            raise ValueError("spectral_decay is for param_domain='spectral'")
        return
    dtype = layer.dtype or layer.param_dtype
    if is_complex(dtype):
        raise ValueError(
            f"param_domain='spectral' holds spectra of real filters, got {jnp.dtype(dtype)}"
        )
    if isinstance(layer.band, Energy):
        raise ValueError(
            "a band of Energy changes from call to call and cannot hold parameters: with "
            f"param_domain='spectral' give Compression, Modes or None, got {layer.band!r}"
        )
    for name, plain in (
        ("mask", None),
        ("recompute_filter", True),
        ("preferred_element_type", None),
    ):
        if getattr(layer, name, plain) is not plain:
            raise ValueError(f"{name} does not go with param_domain='spectral'")
    if layer.implementation == "jax":
        raise ValueError("implementation 'jax' does not go with param_domain='spectral'")
    if canonical_padding(layer.padding) == "REFLECT":
        raise ValueError("padding 'REFLECT' does not go with param_domain='spectral'")


def initial(layer: Any, kernel: jax.Array, geometry: ConvGeometry) -> jax.Array:
    """Returns the spectrum of an initial kernel, its high frequencies damped if so asked for.

    The factor is ``(1 + |u|) ** -spectral_decay``, with ``|u|`` the length of the frequency vector.
    """
    spectrum = to_spectrum(kernel, geometry)
    if not layer.spectral_decay:
        return spectrum
    last = len(geometry.axes) - 1
    squares: Any = 0.0
    for axis, (g, limit) in enumerate(zip(geometry.grid, geometry.modes, strict=True)):
        u = frequencies(g, limit, half=axis == last).astype(np.float64)
        squares = squares + u.reshape([-1 if i == axis else 1 for i in range(last + 1)]) ** 2
    factor = (1 + np.sqrt(squares)) ** -float(layer.spectral_decay)
    return spectrum * jnp.asarray(factor[None, ..., None, None], spectrum.dtype)


def to_spectrum(kernel: jax.Array, geometry: ConvGeometry) -> jax.Array:
    """Returns the spectrum with which the layer equals that of ``kernel``."""
    centre = [axis.padding[0] for axis in geometry.axes]
    return kernel_to_spectrum(
        kernel, geometry.grid, geometry.modes, centre=centre, dilation=_dilation(geometry)
    )


def to_kernel(spectrum: jax.Array, geometry: ConvGeometry) -> jax.Array:
    """Returns the kernel of the layer's size that comes nearest; geometry as in `to_spectrum`."""
    return spectrum_to_kernel(
        spectrum,
        [axis.taps for axis in geometry.axes],
        geometry.grid,
        centre=[axis.padding[0] for axis in geometry.axes],
        dilation=_dilation(geometry),
    )


def own_geometry(
    layer: Any,
    spatial_shape: Sequence[int],
    kernel_shape: tuple[int, ...],
    box: Sequence[int] | None = None,
) -> ConvGeometry:
    """Returns the geometry that parameters belong to; its box, if given, is theirs.

    Without a box it is that of the layer's band.
    """
    shape = (1, *spatial_shape, kernel_shape[-2] * layer.feature_group_count)
    geometry = conv_geometry(shape, kernel_shape, layer.band, **_arguments(layer))
    if box is None:
        return geometry
    modes = Modes(*modes_of_box(box, geometry.grid))
    return conv_geometry(shape, kernel_shape, modes, **_arguments(layer))


def geometry_at(
    layer: Any,
    input_shape: Sequence[int],
    kernel_shape: tuple[int, ...],
    own: ConvGeometry,
) -> ConvGeometry:
    """Returns the geometry at an input of any size of a layer whose parameters belong to ``own``.

    Circles keep their proportion to the input, to the nearest integer, so that a frequency is the
    same wave at every resolution. A grid that the layer sets stays, and a periodic layer has its
    period.
    """
    at = _arguments(layer)
    whole = conv_geometry(input_shape, kernel_shape, None, **at)
    if at["grid"] is None and not whole.axes[0].circular:
        at["grid"] = tuple(
            max((2 * a.grid * b.size + a.size) // (2 * a.size), _least_grid(b))
            for a, b in zip(own.axes, whole.axes, strict=True)
        )
        whole = conv_geometry(input_shape, kernel_shape, None, **at)
    modes = modes_at(own.modes, own.grid, whole.grid)
    return conv_geometry(input_shape, kernel_shape, Modes(*modes), **at)


def call(
    layer: Any,
    inputs: jax.Array,
    spectrum: jax.Array,
    bias: jax.Array | None,
    own: ConvGeometry,
    out_sharding: Any = None,
) -> jax.Array:
    """Applies the layer to ``(batch..., *spatial, in)``; all arrays are of one type."""
    taps = tuple(axis.taps for axis in own.axes)
    kernel_shape = (*taps, *spectrum.shape[-2:])
    y = spectral_conv(
        inputs,
        spectrum,
        taps,
        kernel_grid=own.grid,
        **{**_arguments(layer), "grid": geometry_at(layer, inputs.shape, kernel_shape, own).grid},
        method=layer.method,
        implementation=layer.implementation,
        residual_dtype=layer.residual_dtype,
        precision=layer.precision,
        out_sharding=out_sharding,
    )
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def metadata_with_planes(metadata: dict[str, Any], planes: bool) -> dict[str, Any]:
    """Returns a kernel's metadata as its spectrum has it, or (not ``planes``) the way back.

    A sharding names the axes of the kernel. The spectrum has one more in front, and frequencies
    where the kernel has taps.
    """
    change: Callable[[Any], tuple[Any, ...]] = (
        (lambda names: (None, *names)) if planes else (lambda names: tuple(names)[1:])
    )
    metadata = dict(metadata)
    for name in ("out_sharding", "sharding_names", "sharding"):
        names = metadata.get(name)
        if isinstance(names, NamedSharding):
            metadata[name] = NamedSharding(names.mesh, PartitionSpec(*change(names.spec)))
        elif isinstance(names, PartitionSpec):
            metadata[name] = PartitionSpec(*change(names))
        elif names:
            metadata[name] = change(names)
    return metadata


def _arguments(layer: Any) -> dict[str, Any]:
    return {**arguments_of(layer), "grid": layer.grid}


def _least_grid(axis: Axis) -> int:
    return (axis.size - 1) * axis.input_dilation + 1 + max(*axis.padding, 0)


def _dilation(geometry: ConvGeometry) -> tuple[int, ...]:
    return tuple(axis.kernel_dilation for axis in geometry.axes)
