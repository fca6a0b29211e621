"""Estimated cost of the native kernels of exact convolutions; :mod:`bandjax._conv.cost` has others.

Their constants were fitted to layers of one to three axes on two AVX-512 cores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from bandjax._conv import cost
from bandjax._conv.cost import Target
from bandjax._conv.geometry import ConvGeometry
from bandjax._native.product import LANES

# Of convolutions by their sums.
_DIRECT_MULTIPLY = 0.0085  # one multiply-add, with four vectors of outputs
_DIRECT_NARROW = 1.4  # times that, with one or two
_DIRECT_VECTORS = 4  # of a panel
_DIRECT_TAP = 0.3  # one tap of one point and panel, whose inputs are looked up
_DIRECT_SAMPLE = 0.15  # one number of the maps
_DIRECT_FILTER = 1.45  # of the filter's gradient, the forward pass being one


def direct(geometry: ConvGeometry, target: Target) -> float:
    """Of the native kernel, behind the projection on the band if there is one."""
    axes, batch, calls = geometry.axes, geometry.examples, cost.NATIVE_CALLS / 3
    inputs, outputs = geometry.in_features, geometry.out_features
    forward = _direct_pass(geometry, inputs, outputs)
    read = [(a.out - 1) * a.stride + a.kernel_points[-1] + 1 for a in axes]
    projection = 0.0
    for samples in () if geometry.exact else ([a.size for a in axes], read):
        transform = batch * cost.whole_lanes(inputs) * cost.native_transform(samples, geometry)
        moved = 2 * batch * inputs * (math.prod(samples) + 2 * geometry.kept)
        projection += cost.NATIVE_TABLE * transform + cost.NATIVE_SAMPLE * moved
    if target.inference:
        return forward + projection + calls
    if any(axis.stride > 1 and axis.kernel_dilation > 1 for axis in axes):  # The backend's.
        reads = batch * math.prod(axis.out * axis.taps for axis in axes)
        back = reads * cost.pairs(geometry) * cost.dense_rate(geometry)
    else:
        back = _direct_pass(*_phases(geometry))
    return (1 + _DIRECT_FILTER) * forward + back + 3 * (projection + calls)


def _phases(geometry: ConvGeometry) -> tuple[ConvGeometry, int, int]:
    """Of the input's gradient, whose phases are channels: geometry, input and output channels."""
    axes, phases = [], 1
    for axis in geometry.axes:
        stride = axis.stride if axis.taps > 1 else 1
        early = (axis.padding[0] - axis.taps) % stride  # as dense.by_phases has it
        points = -(-(axis.size + early) // stride) if axis.taps > 1 else axis.out
        taps = -(-axis.taps // stride)
        axes.append(dataclasses.replace(axis, size=axis.out, out=points, taps=taps))
        phases *= stride
    whole = dataclasses.replace(geometry, axes=tuple(axes))
    return whole, geometry.out_features, phases * geometry.in_features


def _direct_pass(geometry: ConvGeometry, inputs: int, outputs: int) -> float:
    axes, each = geometry.axes, outputs // geometry.groups
    wide = each > 2 * LANES
    panels = -(-each // (_DIRECT_VECTORS * LANES)) if wide else 1
    lanes = panels * _DIRECT_VECTORS * LANES if wide else cost.whole_lanes(each)
    multiply = _DIRECT_MULTIPLY * (1 if wide else _DIRECT_NARROW) * inputs * lanes
    reads = math.prod(axis.out * axis.taps for axis in axes)
    numbers = inputs * math.prod(a.size for a in axes) + outputs * math.prod(a.out for a in axes)
    in_sums = reads * (multiply + geometry.groups * panels * _DIRECT_TAP)
    return geometry.examples * (in_sums + _DIRECT_SAMPLE * numbers)


# Of convolutions by windows.
_WINDOWS_MULTIPLY = 0.0074  # one multiply-add of a complex product
_WINDOWS_NUMBER = 0.75, 0.3, 0.5  # one number of a window, by the axes
_WINDOWS_TABLE = 0.009  # the same, for each point of an axis
_WINDOWS_PART = 5  # vectors that one that is filled in part takes as long as, beside itself
_WINDOWS_PASSES = 3.4  # of a training call, the forward pass being one
_WINDOWS_CACHED = 1.25e6  # bytes of the filter's spectrum that stay in the second-level cache
_WINDOWS_FAR = 3e-8, 3e-8, 9e-8  # the part that a byte beyond that adds, by the axes
_WINDOWS_FAR_FROM = 0.1
_WINDOWS_FILTER = 2.4  # one coefficient of the filter's spectrum
_WINDOWS_READ_TAP = 0.3  # one tap of an axis in one coefficient of the gradient's, of each part
_WINDOWS_FEW_TAPS, _WINDOWS_ADDED = 16, 64e6  # of more, spectra of up to so many bytes are added
_WINDOWS_ADD, _WINDOWS_READ_MANY = 1.0, 0.03  # one coefficient of one of these; a tap in it, then
_WINDOWS_PARTS, _WINDOWS_GROUP = 16, 12  # of that gradient, and the least windows of one


def windows_stay_cached(geometry: ConvGeometry, lengths: Sequence[int]) -> bool:
    """Whether the filter's spectrum on the circle of such windows does."""
    return _window_spectrum(geometry, lengths) <= _WINDOWS_CACHED


def _window_spectrum(geometry: ConvGeometry, lengths: Sequence[int]) -> float:
    grid = _window_grid(geometry, lengths)
    return 8.0 * (grid[0] // 2 + 1) * math.prod(grid[1:]) * cost.pairs(geometry)


def _window_grid(geometry: ConvGeometry, lengths: Sequence[int]) -> list[int]:
    return [
        length + (axis.taps - 1) * axis.kernel_dilation
        for length, axis in zip(lengths, geometry.axes, strict=True)
    ]


def windows(geometry: ConvGeometry, lengths: Sequence[int], target: Target) -> float:
    """Of windows with so many outputs an axis, convolved by the native kernel in one call."""
    axes, grid = geometry.axes, _window_grid(geometry, lengths)
    count = geometry.examples * math.prod(
        -(-max(axis.out, axis.size) // length) for axis, length in zip(axes, lengths, strict=True)
    )
    points = (grid[0] // 2 + 1) * math.prod(grid[1:])
    outputs = geometry.out_features
    if cost.pairs(geometry) == geometry.in_features == outputs:  # depthwise
        multiplied = 8 * points * cost.whole_lanes(outputs)
    else:
        multiplied = (
            4 * points * geometry.in_features * cost.whole_lanes(outputs // geometry.groups)
        )
    numbers = math.prod(grid) * _read_lanes(geometry.in_features)
    numbers += math.prod(lengths) * _read_lanes(outputs)
    number = _WINDOWS_NUMBER[len(axes) - 1] + _WINDOWS_TABLE * sum(grid) / len(axes)
    forward = count * (_WINDOWS_MULTIPLY * multiplied + number * numbers)
    beyond = _window_spectrum(geometry, lengths) - _WINDOWS_CACHED
    if beyond > 0:
        forward *= 1 + _WINDOWS_FAR_FROM + min(_WINDOWS_FAR[len(axes) - 1] * beyond, 1)
    coefficients = points * geometry.in_features // geometry.groups * cost.whole_lanes(outputs)
    if target.inference:
        return forward + _WINDOWS_FILTER * coefficients + cost.NATIVE_CALLS / 3
    parts = min(_WINDOWS_PARTS, max(1, count // _WINDOWS_GROUP))
    read = _WINDOWS_READ_TAP * sum(axis.taps for axis in axes)
    if max(a.taps for a in axes) > _WINDOWS_FEW_TAPS and parts * 8 * coefficients <= _WINDOWS_ADDED:
        read = _WINDOWS_READ_MANY * sum(a.taps for a in axes) + (parts - 1) * _WINDOWS_ADD
    else:
        read *= parts
    of_filter = (2 * _WINDOWS_FILTER + read) * coefficients
    return _WINDOWS_PASSES * forward + of_filter + cost.NATIVE_CALLS


def _read_lanes(channels: int) -> int:
    """Channels that reading or writing takes as long as: the last vector may be filled in part."""
    return cost.whole_lanes(channels) + (_WINDOWS_PART * LANES if channels % LANES else 0)
