"""Where the samples of a convolution lie on the circle of its grid.

Every axis of the input lies on a circle of ``g`` points (the *grid*). Input sample ``j`` sits at
``a * j``, kernel tap ``t`` reads ``d * t`` further on, and output ``i`` starts reading at
``s * i - lo``. Stride, dilations and padding are nothing but these positions.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.export
import numpy as np
from scipy.fft import next_fast_len

from bandjax._bands.band import Band, Energy, at_strides, check_band, resolve_modes
from bandjax._bands.boxes import kept_per_axis

PaddingLike: TypeAlias = str | int | Sequence[int | tuple[int, int]]

# Examples by which the cost rule chooses where the batch is symbolic.
_NOMINAL_BATCH = 32
PADDING_NAMES = ("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "CAUSAL", "REFLECT")


def canonical_padding(padding: Any) -> Any:
    """Returns the one form of a padding: names in upper case, as lax takes them; arrays as tuples.

    Raises:
      TypeError: it is an array whose values are not known while tracing.
    """
    if isinstance(padding, str):
        return padding.upper() if padding.upper() in PADDING_NAMES else padding
    return listed("padding", padding)


def listed(name: str, value: Any) -> Any:
    """Returns nested tuples in place of an array of NumPy or JAX."""
    if not isinstance(value, np.ndarray | jax.Array):
        return value
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} must be known while tracing, got {value!r}")
    entries = np.asarray(value).tolist()
    rows = entries if isinstance(entries, list) else [entries]
    listed = tuple(tuple(row) if isinstance(row, list) else row for row in rows)
    return listed if isinstance(entries, list) else entries


@dataclasses.dataclass(frozen=True)
class Axis:
    """One spatial axis: its sizes, and where its samples lie on the circle of ``grid`` points.

    Attributes:
      size: input samples h.
      taps: kernel taps k.
      out: output samples.
      stride: s, in points of the circle.
      input_dilation: a, points from one input sample to the next.
      kernel_dilation: d, points from one kernel tap to the next.
      padding: (lo, hi), points before and after the dilated input; negative ones crop.
      grid: g, points on the circle.
      limit: U, the largest kept frequency.
      circular: whether the axis is periodic (then ``g = h * a``).
    """

    size: int
    taps: int
    out: int
    stride: int
    input_dilation: int
    kernel_dilation: int
    padding: tuple[int, int]
    grid: int
    limit: int
    circular: bool

    @property
    def input_points(self) -> range:
        """Positions of the input samples."""
        return range(0, self.size * self.input_dilation, self.input_dilation)

    @property
    def kernel_points(self) -> range:
        """Positions of the kernel taps, relative to the output's."""
        return range(0, self.taps * self.kernel_dilation, self.kernel_dilation)

    @property
    def output_points(self) -> range:
        """Positions at which the outputs start reading."""
        start = -self.padding[0]
        return range(start, start + self.out * self.stride, self.stride)


@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """Grid, kept box and sizes of one band-limited convolution.

    Attributes:
      axes: the spatial axes, in order; with REFLECT padding those of the reflected input.
      in_features: input channels.
      out_features: output channels.
      groups: feature groups.
      batch: batch dimensions of the input.
      energy: the band, if it is an :class:`bandjax.Energy`; the box and the compression are then
        those of the largest box that it may keep.
    """

    axes: tuple[Axis, ...]
    in_features: int
    out_features: int
    groups: int
    batch: tuple[int, ...]
    energy: Energy | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Points on the circle of each axis."""
        return tuple(axis.grid for axis in self.axes)

    @property
    def modes(self) -> tuple[int, ...]:
        """The largest kept frequency ``U`` of each axis."""
        return tuple(axis.limit for axis in self.axes)

    @property
    def box(self) -> tuple[int, ...]:
        """Kept coefficients of each axis: both signs of u, only ``u >= 0`` on the last."""
        return kept_per_axis(self.grid, self.modes)

    @property
    def kept(self) -> int:
        """Kept coefficients of the half spectrum, for each channel."""
        return math.prod(self.box)

    @property
    def total(self) -> int:
        """All coefficients of the half spectrum, for each channel."""
        return math.prod(kept_per_axis(self.grid, tuple(g // 2 for g in self.grid)))

    @property
    def compression(self) -> float:
        """The true share of coefficients that is dropped."""
        return 1 - self.kept / self.total

    @property
    def examples(self) -> int:
        """Examples in the batch; a nominal number where ``jax.export`` leaves it open."""
        known = all(isinstance(n, int) for n in self.batch)
        return math.prod(self.batch) if known else _NOMINAL_BATCH

    @property
    def exact(self) -> bool:
        """Whether every frequency is kept."""
        return self.energy is None and all(axis.limit == axis.grid // 2 for axis in self.axes)

    @property
    def keeps_input(self) -> bool:
        """Whether the backward pass keeps the input, its spectrum holding no fewer reals."""
        return 2 * self.kept >= math.prod(axis.size for axis in self.axes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output, ``(batch..., *spatial, out)``."""
        return (*self.batch, *(axis.out for axis in self.axes), self.out_features)


def reads_nothing(geometry: ConvGeometry) -> bool:
    """Whether the output is zero by its positions alone: on some axis no tap meets a sample.

    By a transform such zeros would come with its rounding. Of an axis that is not kept whole the
    low-pass moves samples in between.
    """
    return geometry.energy is None and any(
        axis.limit == axis.grid // 2 and not _meets_a_sample(axis) for axis in geometry.axes
    )


def _meets_a_sample(axis: Axis) -> bool:
    reads = (o + t for o in axis.output_points for t in axis.kernel_points)
    return any((r % axis.grid if axis.circular else r) in axis.input_points for r in reads)


def conv_geometry(
    input_shape: Sequence[int],
    kernel_shape: Sequence[int],
    band: Band = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: PaddingLike = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    grid: int | Sequence[int] | None = None,
) -> ConvGeometry:
    """Returns the grid, the kept box and the true compression of a band-limited convolution.

    Nothing is computed: the arguments are those of :func:`bandjax.band_conv`, with shapes in place
    of arrays.

    Args:
      input_shape: ``(batch..., *spatial, in)``.
      kernel_shape: ``(*taps, in / groups, out)``.
      band: see :func:`bandjax.band_conv`, as for all further arguments.

    Raises:
      TypeError, ValueError: as :func:`bandjax.band_conv`.

    Example:
      >>> geometry = conv_geometry((128, 32, 32, 64), (3, 3, 64, 64), Compression(0.5))
      >>> geometry.grid, geometry.modes, round(geometry.compression, 3)
      ((33, 33), (11, 11), 0.508)
    """
    check_band(band)
    padding = canonical_padding(padding)
    input_shape = _sizes("x", input_shape)
    kernel_shape = _sizes("kernel", kernel_shape)
    rank = len(kernel_shape) - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            f"kernel must have 1, 2 or 3 spatial axes, as (*taps, in / groups, out), "
            f"got shape {kernel_shape}"
        )
    if len(input_shape) < rank + 1:
        raise ValueError(
            f"x must have the {rank} spatial axes of the kernel and a channel axis, as "
            f"(batch..., *spatial, in), got shape {input_shape} with a kernel of {kernel_shape}"
        )
    batch, spatial = input_shape[: -rank - 1], input_shape[-rank - 1 : -1]
    taps = kernel_shape[:rank]
    if not all(isinstance(n, int) for n in (*spatial, input_shape[-1], *kernel_shape)):
        raise ValueError(
            "only the batch can be symbolic, for grid and box depend on the other sizes; got x of "
            f"shape {input_shape} and kernel of shape {kernel_shape}"
        )
    if 0 in spatial:
        raise ValueError(f"the spatial axes of x must not be empty, got shape {input_shape}")
    if 0 in taps:
        raise ValueError(f"the taps of kernel must not be empty, got shape {kernel_shape}")
    _check_channels(input_shape, kernel_shape, feature_group_count)

    strides = _per_axis("strides", strides, rank)
    input_dilation = _per_axis("input_dilation", input_dilation, rank)
    kernel_dilation = _per_axis("kernel_dilation", kernel_dilation, rank)
    extents = tuple((h - 1) * a + 1 for h, a in zip(spatial, input_dilation, strict=True))
    windows = tuple((k - 1) * d + 1 for k, d in zip(taps, kernel_dilation, strict=True))
    if padding == "REFLECT":  # The caller reflects the input, as Flax does, and then pads no more.
        spatial = tuple(h + w - 1 for h, w in zip(spatial, windows, strict=True))
        extents = tuple((h - 1) * a + 1 for h, a in zip(spatial, input_dilation, strict=True))
        padding = "VALID"
    pads = _resolve_padding(padding, extents, windows, strides, input_dilation)
    circular = padding == "CIRCULAR"
    if circular:
        periods = tuple(h * a for h, a in zip(spatial, input_dilation, strict=True))
        grids = _circular_grid(grid, periods)
        outs = tuple(-(-g // s) for g, s in zip(grids, strides, strict=True))
    else:
        grids = _resolve_grid(grid, extents, pads)
        outs = tuple(
            max((e + lo + hi - w) // s + 1, 0)
            for e, w, s, (lo, hi) in zip(extents, windows, strides, pads, strict=True)
        )
    settled = at_strides(band, grids, strides)
    modes = resolve_modes(settled, grids)
    axes = tuple(
        Axis(
            size=spatial[i],
            taps=taps[i],
            out=outs[i],
            stride=strides[i],
            input_dilation=input_dilation[i],
            kernel_dilation=kernel_dilation[i],
            padding=pads[i],
            grid=grids[i],
            limit=modes[i],
            circular=circular,
        )
        for i in range(rank)
    )
    return ConvGeometry(
        axes=axes,
        in_features=input_shape[-1],
        out_features=kernel_shape[-1],
        groups=feature_group_count,
        batch=batch,
        energy=settled if isinstance(settled, Energy) else None,
    )


def _resolve_padding(
    padding: PaddingLike,
    extents: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
    input_dilation: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """Returns ``(lo, hi)`` of every axis, in points of the circle.

    ``extents`` are the dilated input sizes and ``windows`` the dilated kernel sizes.
    """
    rank = len(extents)
    if isinstance(padding, str):
        match padding:
            case "VALID" | "SAME" | "SAME_LOWER":
                pads = jax.lax.padtype_to_pads(extents, windows, strides, padding)
                return tuple((int(low), int(high)) for low, high in pads)
            case "CIRCULAR":
                return tuple(((w - 1) // 2, w // 2) for w in windows)
            case "CAUSAL":
                if rank != 1:
                    raise ValueError(
                        f"padding 'CAUSAL' is for one spatial axis, got a kernel with {rank}"
                    )
                # Flax pads before it dilates the input.
                return (((windows[0] - 1) * input_dilation[0], 0),)
            case _:
                raise ValueError(
                    f"padding must be one of {', '.join(PADDING_NAMES)}, an int, or one int or "
                    f"(low, high) pair for each spatial axis, got {padding!r}"
                )
    if isinstance(padding, Sequence):
        if len(padding) != rank:
            raise ValueError(
                f"padding must have one entry for each of the {rank} spatial axes, got {padding!r}"
            )
        return tuple(_pad_pair(entry, padding) for entry in padding)
    return (_pad_pair(padding, padding),) * rank


def _pad_pair(entry: Any, padding: Any) -> tuple[int, int]:
    pair = entry if isinstance(entry, Sequence) and not isinstance(entry, str) else (entry, entry)
    if len(pair) != 2:
        raise ValueError(f"padding entries must be an int or a (low, high) pair, got {padding!r}")
    try:
        low, high = (operator.index(p) for p in pair)
    except TypeError:
        raise TypeError(f"padding must consist of integers, got {padding!r}") from None
    return low, high


def _sizes(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    sizes: Any = tuple(n if jax.export.is_symbolic_dim(n) else operator.index(n) for n in shape)
    if any(isinstance(n, int) and n < 0 for n in sizes):
        raise ValueError(f"the shape of {name} must not have negative sizes, got {sizes}")
    return sizes


def _check_channels(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], groups: Any
) -> None:
    channels, (per_group, features) = input_shape[-1], kernel_shape[-2:]
    if channels == 0 or features == 0:
        raise ValueError(
            f"channel axes must not be empty, got x of shape {input_shape} and kernel of shape "
            f"{kernel_shape}"
        )
    check_groups(channels, features, groups)
    if per_group * groups != channels:
        raise ValueError(
            f"kernel must have in / feature_group_count = {channels} / {groups} input channels, "
            f"got {per_group} (shape {kernel_shape})"
        )


def check_groups(channels: int, features: int, groups: Any) -> None:
    """Raises TypeError or ValueError unless the groups divide input and output channels."""
    if isinstance(groups, bool) or not hasattr(groups, "__index__"):
        raise TypeError(f"feature_group_count must be an integer, got {groups!r}")
    if groups < 1:
        raise ValueError(f"feature_group_count must be >= 1, got {groups}")
    if channels % groups or features % groups:
        raise ValueError(
            f"feature_group_count must divide the input and the output channels, got {groups} "
            f"with {channels} input and {features} output channels"
        )


def _per_axis(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """Returns one positive integer for each axis."""
    value = listed(name, value)
    values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(values) != rank:
        raise ValueError(
            f"{name} must be an integer or one for each of the {rank} spatial axes, got {value!r}"
        )
    if any(isinstance(v, bool) or not hasattr(v, "__index__") for v in values):
        raise TypeError(f"{name} must consist of integers, got {value!r}")
    if any(v < 1 for v in values):
        raise ValueError(f"{name} must be >= 1, got {value!r}")
    return tuple(operator.index(v) for v in values)


def _resolve_grid(
    grid: Any, extents: Sequence[int], pads: Sequence[tuple[int, int]]
) -> tuple[int, ...]:
    minimum = tuple(e + max(lo, hi, 0) for e, (lo, hi) in zip(extents, pads, strict=True))
    if grid is None:
        return tuple(g if g <= 64 else next_fast_len(g, real=True) for g in minimum)
    grids = _per_axis("grid", grid, len(minimum))
    if any(g < least for g, least in zip(grids, minimum, strict=True)):
        raise ValueError(
            f"grid must be at least {minimum}, the dilated input and the wider padding of each "
            f"axis, got {grid!r}"
        )
    return grids


def _circular_grid(grid: Any, periods: tuple[int, ...]) -> tuple[int, ...]:
    if grid is not None and _per_axis("grid", grid, len(periods)) != periods:
        raise ValueError(
            f"grid of a CIRCULAR convolution is its period {periods}, the input size times the "
            f"input dilation; got {grid!r}"
        )
    return periods
