"""The backend's own convolution, in three contractions that are closed under differentiation.

    convolve:        y  = lax.conv_general_dilated(x, kernel)
    input_gradient:  dx = its transpose in x
    filter_gradient: dk = its transpose in the kernel

The rules are those of ``lax``, but for two things. The filter's gradient under ``vmap``: there
``lax`` makes one convolution with a group for each example, and XLA (up to jax 0.12) partitions it
wrongly, without an error, where the examples lie on several devices. And a dilated input, that of a
transposed convolution: XLA writes it out with its zeros, and computes the filter's gradient by a
window as large as the map; here the outputs between two samples of the input are channels of one
convolution without zeros, see :func:`by_phases`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bandjax._spectra.bilinear import contractions
from bandjax._spectra.types import Precision


@dataclasses.dataclass(frozen=True)
class DenseConvSpec:
    """The static arguments of one convolution of ``(N, *size, C)`` with ``(*taps, C / groups, O)``.

    Attributes: one entry for each spatial axis, as in ``lax.conv_general_dilated``.
    """

    size: tuple[int, ...]
    taps: tuple[int, ...]
    out: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int
    precision: Precision


def _convolve(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    return _backend(spec, x, kernel)


def _input_gradient(
    spec: DenseConvSpec, y: Float[Array, "N *spatial_out O"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial C"]:
    shape = (y.shape[0], *spec.size, kernel.shape[-2] * spec.groups)
    x = jnp.zeros_like(y, shape=shape)  # Only its shape counts: the map is linear.
    return jax.vjp(lambda x: _backend(spec, x, kernel), x)[1](y)[0]


def _filter_gradient(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], y: Float[Array, "N *spatial_out O"]
) -> Float[Array, "*taps c O"]:
    return _filter_gradient_of(spec)(x, y)


convolve, input_gradient, filter_gradient = contractions(
    _convolve, _input_gradient, _filter_gradient
)


def _backend(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    if 0 in x.shape or 0 in kernel.shape:
        return _lax(spec, x, kernel)
    phases = tuple(
        a if s == d == 1 else 1
        for a, s, d in zip(spec.input_dilation, spec.strides, spec.kernel_dilation, strict=True)
    )
    if max(phases) == 1:
        return _within(spec, x, kernel)
    return by_phases(spec, phases, x, kernel, _within)


def _lax_input_gradient(
    spec: DenseConvSpec, y: Float[Array, "N *spatial_out O"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial C"]:
    shape = (y.shape[0], *spec.size, kernel.shape[-2] * spec.groups)
    x = jnp.zeros_like(y, shape=shape)
    return jax.vjp(lambda x: _lax(spec, x, kernel), x)[1](y)[0]


def _lax_filter_gradient(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], y: Float[Array, "N *spatial_out O"]
) -> Float[Array, "*taps c O"]:
    """By ``lax``, or by one product for each tap where that is faster.

    XLA computes it as a convolution whose window is the whole map. On CPUs that is up to 8 times
    slower than the products, and with groups 100 times; but not of few channels, of series, and of
    maps that are hardly larger than the kernel. GPUs are slow where the kernel is dilated.
    """

    def by_lax(x: jax.Array, y: jax.Array) -> jax.Array:
        shape = (*spec.taps, x.shape[-1] // spec.groups, y.shape[-1])
        kernel = jnp.zeros_like(x, shape=shape)
        return jax.vjp(lambda kernel: _lax(spec, x, kernel), kernel)[1](y)[0]

    by_taps = functools.partial(_by_taps, spec)
    if 0 in x.shape or 0 in y.shape:
        return by_lax(x, y)
    few_taps = math.prod(spec.taps) <= _FEW_TAPS
    # What reads beyond both ends of the map XLA is 50 times slower at.
    within = all(out <= size for out, size in zip(spec.out, spec.size, strict=True))
    rank = len(spec.taps)
    large = rank > 2 or (rank == 2 and math.prod(spec.out) >= _MANY_POINTS)
    many = few_taps and (not within or (large and x.shape[-1] >= _MANY_CHANNELS))
    on_cpu = by_taps if spec.groups > 1 or many else by_lax
    elsewhere = by_taps if spec.groups == 1 and max(spec.kernel_dilation) > 1 else by_lax
    if on_cpu is elsewhere:
        return on_cpu(x, y)
    return jax.lax.platform_dependent(x, y, cpu=on_cpu, default=elsewhere)


# From so many input channels on, and up to so many taps, products are faster than XLA's windows.
_MANY_CHANNELS = 16
_FEW_TAPS = 32
_MANY_POINTS = 64  # of a map's outputs


def _within(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    """By ``lax``, with as much padding as the kernel can reach beyond the map, and not less than 0.

    Where it is more or less, samples are added or taken away first: XLA on CPUs (jax 0.10) computes
    gradients wrongly, of what it reads beyond the map, where their padding would be negative.
    """
    reach = [(k - 1) * d for k, d in zip(spec.taps, spec.kernel_dilation, strict=True)]
    proper = all(
        0 <= low <= most and 0 <= high <= most
        for (low, high), most in zip(spec.padding, reach, strict=True)
    )
    if proper:
        return _plain(spec, x, kernel)
    widths: list[Any] = [
        (*(pad if a > 1 else pad - min(max(pad, 0), most) for pad in pads), a - 1)
        for pads, most, a in zip(spec.padding, reach, spec.input_dilation, strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
    inner = dataclasses.replace(
        spec,
        size=x.shape[1:-1],
        padding=tuple(
            (low - before, high - after)
            for (low, high), (before, after, _) in zip(spec.padding, widths, strict=True)
        ),
        input_dilation=(1,) * len(reach),
    )
    if 0 in inner.size:  # Every sample was taken away: only zeros are read.
        return jnp.zeros_like(x, shape=(x.shape[0], *spec.out, kernel.shape[-1]))
    return _plain(inner, x, kernel)


def strided_input_gradient(
    spec: DenseConvSpec,
    y: Float[Array, "N *spatial_out O"],
    kernel: Float[Array, "*taps c O"],
    convolve: Callable[[DenseConvSpec, jax.Array, jax.Array], jax.Array],
) -> Float[Array, "N *spatial C"]:
    """The input's gradient as a convolution of the cotangent without strides and dilations.

    That of a strided convolution is one of a dilated cotangent, see :func:`by_phases`. Along an
    axis with one tap all phases but one are zero, and are not computed.

    Args:
      spec: without ``input_dilation``; where there are strides without ``kernel_dilation``.
      y, kernel: as for the input's gradient.
      convolve: see :func:`by_phases`.
    """
    rank, groups = len(spec.size), spec.groups
    kernel = jnp.flip(kernel, tuple(range(rank)))
    each, features = kernel.shape[-2], kernel.shape[-1] // groups
    kernel = kernel.reshape(*spec.taps, each, groups, features)
    kernel = jnp.swapaxes(kernel, -1, -3).reshape(*spec.taps, features, groups * each)
    spread = [k == 1 and s > 1 for k, s in zip(spec.taps, spec.strides, strict=True)]
    sizes = [o if put else n for n, o, put in zip(spec.size, spec.out, spread, strict=True)]
    padding = []
    for axis, size in enumerate(sizes):
        reach = (spec.taps[axis] - 1) * spec.kernel_dilation[axis]
        low = 0 if spread[axis] else reach - spec.padding[axis][0]
        padding.append((low, size + reach - spec.out[axis] - low))
    phases = tuple(1 if put else s for s, put in zip(spec.strides, spread, strict=True))
    whole = dataclasses.replace(
        spec,
        size=spec.out,
        out=tuple(sizes),
        strides=(1,) * rank,
        padding=tuple(padding),
        input_dilation=phases,
    )
    x = by_phases(whole, phases, y, kernel, convolve)
    if not any(spread):
        return x
    widths = [
        (-low, n - 1 + low - (o - 1) * s, s - 1) if put else (0, 0, 0)
        for n, o, s, (low, _), put in zip(
            spec.size, spec.out, spec.strides, spec.padding, spread, strict=True
        )
    ]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *widths, (0, 0, 0)])


def by_phases(
    spec: DenseConvSpec,
    phases: tuple[int, ...],
    x: Float[Array, "N *spatial C"],
    kernel: Float[Array, "*taps c O"],
    convolve: Callable[[DenseConvSpec, jax.Array, jax.Array], jax.Array],
) -> Float[Array, "N *spatial_out O"]:
    """A convolution of a dilated input as one of the input, with a channel for each phase.

    Of an axis with dilation ``a``, stride 1 and lower padding ``lo``, output ``a m + r - e`` reads
    the taps ``a p + a - 1 - r`` at the samples ``m - (lo + e + 1 - a) / a + p``, where ``e`` makes
    ``lo + e + 1`` a multiple of ``a``: for every phase ``r`` the same samples, so that the ``a``
    phases are channels of one convolution with ``ceil(taps / a)`` taps.

    Args:
      spec: of the whole convolution.
      phases: of each axis its dilation, or 1 where the axis is convolved as it is.
      x, kernel: as the whole takes them.
      convolve: computes that convolution, of its spec, input and kernel.
    """
    taps, out, padding, early = [], [], [], []
    for axis, a in enumerate(phases):
        low, high = spec.padding[axis]
        if a == 1:
            taps.append(spec.taps[axis])
            out.append(spec.out[axis])
            padding.append((low, high))
            early.append(0)
            continue
        e = (a - 1 - low) % a
        taps.append(-(-spec.taps[axis] // a))
        out.append(-(-(spec.out[axis] + e) // a))
        before = (low + e + 1 - a) // a
        padding.append((before, out[-1] - 1 - before + taps[-1] - spec.size[axis]))
        early.append(e)
    rank, groups = len(phases), spec.groups
    split = [(n, a) for n, a in zip(taps, phases, strict=True)]

    # (*taps, c, O) to (*fewer taps, c, groups, *phases, o)
    widths = [(0, n * a - k) for (n, a), k in zip(split, spec.taps, strict=True)]
    kernel = jnp.pad(kernel, [*widths, (0, 0), (0, 0)])
    c, features = kernel.shape[-2:]
    kernel = kernel.reshape(*(n for pair in split for n in pair), c, groups, features // groups)
    kernel = jnp.flip(kernel, tuple(range(1, 2 * rank, 2)))
    kernel = kernel.transpose(
        *range(0, 2 * rank, 2), 2 * rank, 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank + 2
    ).reshape(*taps, c, math.prod(phases) * features)

    inner = dataclasses.replace(
        spec,
        taps=tuple(taps),
        out=tuple(out),
        padding=tuple(padding),
        input_dilation=tuple(
            1 if a > 1 else d for a, d in zip(phases, spec.input_dilation, strict=True)
        ),
    )
    y = convolve(inner, x, kernel)
    # (N, *fewer, groups, *phases, o) to (N, *out, O)
    y = y.reshape(y.shape[0], *out, groups, *phases, features // groups)
    order = [0, *(i for axis in range(rank) for i in (1 + axis, 2 + rank + axis))]
    y = y.transpose(*order, 1 + rank, 2 + 2 * rank)
    y = y.reshape(y.shape[0], *(n * a for n, a in zip(out, phases, strict=True)), features)
    starts = (0, *early, 0)
    stops = (y.shape[0], *(e + n for e, n in zip(early, spec.out, strict=True)), features)
    return jax.lax.slice(y, starts, stops)


def _lax(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], kernel: Float[Array, "*taps c O"]
) -> Float[Array, "N *spatial_out O"]:
    spatial = "".join(map(str, range(len(spec.size))))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=spec.strides,
        padding=spec.padding,
        lhs_dilation=spec.input_dilation,
        rhs_dilation=spec.kernel_dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=spec.groups,
        precision=spec.precision,
    )


@functools.lru_cache(maxsize=1024)
def _filter_gradient_of(spec: DenseConvSpec) -> Any:
    """The filter's gradient by ``lax``; under ``vmap`` by one product for each tap."""

    @jax.custom_batching.custom_vmap
    def by_lax(x: jax.Array, y: jax.Array) -> jax.Array:
        shape = (*spec.taps, x.shape[-1] // spec.groups, y.shape[-1])
        kernel = jnp.zeros_like(x, shape=shape)  # Only its shape counts: the map is linear.
        return jax.vjp(lambda kernel: _backend(spec, x, kernel), kernel)[1](y)[0]

    @by_lax.def_vmap
    def _(
        axis_size: int, in_batched: list[bool], x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, bool]:
        in_axes = tuple(0 if batched else None for batched in in_batched)
        return jax.vmap(functools.partial(_by_taps, spec), in_axes)(x, y), True

    return by_lax


def _by_taps(
    spec: DenseConvSpec, x: Float[Array, "N *spatial C"], y: Float[Array, "N *spatial_out O"]
) -> Float[Array, "*taps c O"]:
    """The filter's gradient as one matrix product for each tap."""
    padding = [(0, 0, 0)]
    padding += [(*p, d - 1) for p, d in zip(spec.padding, spec.input_dilation, strict=True)]
    padding += [(0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
    # (N, *out, groups, channels of a group), the spatial axes as part of the sum
    y = y.reshape(-1, spec.groups, y.shape[-1] // spec.groups)
    products = []
    for tap in itertools.product(*map(range, spec.taps)):
        start = [t * d for t, d in zip(tap, spec.kernel_dilation, strict=True)]
        stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, spec.out, spec.strides, strict=True)]
        read = jax.lax.slice(
            x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *spec.strides, 1)
        )
        read = read.reshape(-1, spec.groups, x.shape[-1] // spec.groups)
        products.append(jnp.einsum("sgc,sgo->cgo", read, y, precision=spec.precision))
    stacked = jnp.stack(products)
    return stacked.reshape(*spec.taps, stacked.shape[1], math.prod(stacked.shape[2:]))


_plain, _, _ = contractions(_lax, _lax_input_gradient, _lax_filter_gradient)
