"""Estimated times, by which ``method="auto"`` compares methods.

Each function returns the nanoseconds of one training call (output and both gradients), or of the
forward pass alone, from shapes, band and :class:`Target` alone:

* :func:`dft` and :func:`fft` transform input and output four times in all and the kernel three
  times, multiply, and pass over the spectra of the filter.
* :func:`packed_dft` is ``dft`` by a few large products of real matrices.
* :func:`native_dft` is ``dft`` by the native kernels on the CPU.
* :func:`direct` transforms the input five times, and convolves densely three times. With every
  frequency kept it is the backend's own convolution.

The estimates rank methods; they do not predict times. The constants of the CPU were fitted to
timings of layers of one to three axes with jax 0.10.2: those of :func:`dft`, :func:`fft`, and of
native products of few examples on two AVX-512 cores, those of the other native kernels and of XLA's
own convolution on two AVX2 cores, and of its maps of few channels on both. Those of accelerators
were fitted to timings of ResNet-18's layers, and of grouped, three-dimensional and transposed ones,
on an H200 with jax 0.11.2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bandjax._conv.geometry import ConvGeometry
from bandjax._native.product import LANES, sums_of_taps, whole_filter
from bandjax._native.transform import fast_line
from bandjax._spectra.precision import matrix_unit_precision
from bandjax._spectra.types import Precision


@dataclasses.dataclass(frozen=True)
class Target:
    """Where and how something is computed.

    Attributes:
      platform: as ``jax.default_backend()`` names it.
      dtype: of the arrays.
      precision: of products.
      given: whether the filter is given by its spectrum, which no transform need make.
      inference: whether the forward pass alone is computed; on a CPU.
    """

    platform: str
    dtype: np.dtype[Any]
    precision: Precision = None
    given: bool = False
    inference: bool = False

    @property
    def products(self) -> int:
        """Of input, output and filter: what a call computes."""
        return 1 if self.inference else 3

    @property
    def transforms(self) -> int:
        """Of input or output, there and back."""
        return 1 if self.inference else 2


@dataclasses.dataclass(frozen=True)
class _Rates:
    """Nanoseconds on one target.

    Attributes:
      multiply: one real multiply-add of a matrix product.
      sample: reading, transposing and writing one number of a transform.
      filter: all passes over one number of a filter's spectrum.
      fft: one number on a grid, for one fast Fourier transform.
      dense: one multiply-add of a dense convolution of one spatial axis.
      dense_nd: the same of more axes, unpadded (XLA's CPU backend is fast on SAME alone).
      wide: input channels from which on a dense convolution reaches these rates.
      wide_group: the same, in each of several groups.
      sure: the share of a dense convolution's cost that another method of an exact one must stay
        below, to be surely no slower.
      calls: of all products of a call together, however small.
    """

    multiply: float
    sample: float
    filter: float
    fft: float
    dense: float
    dense_nd: float
    wide: int
    wide_group: int
    sure: float
    calls: float = 0.0


_CPU = _Rates(
    multiply=0.012,
    sample=2.5,
    filter=4.0,
    fft=4.5,
    dense=0.011,
    dense_nd=0.025,
    wide=4,
    wide_group=32,
    sure=0.9,
)
# By what multiplies: TF32, full float32, or half precision. The fast transform has no other type
# than float32. A depthwise convolution uses no matrix unit: it takes 4e-4 ns a multiply-add.
_TF32 = _Rates(
    multiply=1.2e-5,
    sample=1.2e-3,
    filter=8e-3,
    fft=2e-2,
    dense=1.1e-5,
    dense_nd=1.1e-5,
    wide=16,
    wide_group=36,
    sure=0.5,
    calls=1e5,
)
_FULL = dataclasses.replace(
    _TF32, multiply=4.8e-5, dense=6e-5, dense_nd=6e-5, wide_group=7, calls=1.5e5
)
_HALF = dataclasses.replace(
    _TF32, multiply=5.5e-6, sample=3.3e-4, dense=6e-6, dense_nd=6e-6, wide_group=66, calls=8e4
)


def _rates(target: Target) -> _Rates:
    if target.platform == "cpu":
        return _CPU
    if target.dtype.itemsize == 2:
        return _HALF
    try:
        arithmetic = matrix_unit_precision(target.precision, target.dtype)
    except ValueError:  # A preset for other numbers.
        arithmetic = "tf32"
    full = arithmetic == "tf32x3" or target.dtype.itemsize > 4
    return _FULL if full else _TF32


# Beyond this many points a Fourier matrix costs more than the fast transform, and much memory.
_LONG_GRID = 768


def transform_of_projection(geometry: ConvGeometry) -> Literal["dft", "fft"]:
    """Returns how ``direct`` projects the input on the band."""
    return "fft" if max(geometry.grid) > _LONG_GRID else "dft"


def dft(geometry: ConvGeometry, target: Target) -> float:
    """Of truncated matrix products."""
    rates, batch = _rates(target), geometry.examples
    size, out, taps = ([getattr(a, n) for a in geometry.axes] for n in ("size", "out", "taps"))
    transforms = _matrices(geometry, rates, size, batch * geometry.in_features)
    transforms += _matrices(geometry, rates, out, batch * geometry.out_features)
    of_filter = rates.multiply * pairs(geometry) * transform_multiply_adds(taps, geometry)
    products = _product(geometry, rates) + of_filter
    return target.products * products + target.transforms * transforms


def packed_dft(geometry: ConvGeometry, target: Target, of_input: int, of_output: int) -> float:
    """Of the same as a few large products of real matrices.

    ``of_input`` and ``of_output`` are the multiply-adds of one channel's transform.
    """
    rates, batch, kept = _rates(target), geometry.examples, geometry.kept
    sides = [
        (geometry.in_features, of_input, [axis.size for axis in geometry.axes]),
        (geometry.out_features, of_output, [axis.out for axis in geometry.axes]),
    ]
    multiply_adds = 12 * kept * batch * pairs(geometry)
    multiply_adds += sum(2 * batch * c * each for c, each, _ in sides)
    moved = sum(2 * batch * c * (math.prod(samples) + 2 * kept) for c, _, samples in sides)
    return rates.multiply * multiply_adds + rates.sample * moved + rates.calls


def fft(geometry: ConvGeometry, target: Target) -> float:
    """Of fast transforms of the whole grid."""
    rates, batch = _rates(target), geometry.examples
    circle = rates.fft * math.prod(geometry.grid)
    channels = target.transforms * batch * (geometry.in_features + geometry.out_features)
    channels += target.products * pairs(geometry)
    return target.products * _product(geometry, rates) + circle * channels


def direct(geometry: ConvGeometry, target: Target) -> float:
    """Of the projection on the band and the backend's convolution."""
    if geometry.exact:
        return _exact(geometry, target)
    rates, axes = _rates(target), geometry.axes
    inputs = geometry.examples * geometry.in_features
    dense = rates.dense if len(axes) == 1 else rates.dense_nd
    dense *= _narrow(geometry, rates)
    products = target.products * math.prod(axis.out * axis.taps for axis in axes) * pairs(geometry)
    # Of the input, and of the windows that the taps read: the backward pass makes both anew.
    once, again = (1, 1) if target.inference else (2, 3)
    if transform_of_projection(geometry) == "fft":
        projection = (once + again) * rates.fft * math.prod(geometry.grid) * inputs
    else:
        size = [axis.size for axis in axes]
        window = [axis.size + axis.taps - 1 for axis in axes]
        projection = once * _matrices(geometry, rates, size, inputs)
        projection += again * _matrices(geometry, rates, window, inputs)
    return dense * geometry.examples * products + projection


def pairs(geometry: ConvGeometry) -> int:
    """Pairs of an input and an output channel that a filter connects."""
    return geometry.in_features // geometry.groups * geometry.out_features


def _narrow(geometry: ConvGeometry, rates: _Rates) -> float:
    """How much slower a dense convolution is for want of input channels."""
    per_group = geometry.in_features // geometry.groups
    return max(1.0, (rates.wide if geometry.groups == 1 else rates.wide_group) / per_group)


def _product(geometry: ConvGeometry, rates: _Rates) -> float:
    """A multiply-sum, and its part of the passes over the filter's spectrum."""
    coefficients = geometry.kept * pairs(geometry)
    return (rates.multiply * 3 * geometry.examples + rates.filter * 2 / 3) * coefficients


def _matrices(
    geometry: ConvGeometry, rates: _Rates, samples: Sequence[int], channels: int
) -> float:
    """One transform by matrix products."""
    return max(
        rates.sample * math.prod(samples) * channels,
        rates.multiply * channels * transform_multiply_adds(samples, geometry),
    )


# Nanoseconds of the native kernels on the CPU, fitted to some seventy layers of one to three axes.
_NATIVE_MULTIPLY = 0.0124  # one multiply-add of a product, outputs in whole vectors
_NATIVE_DEPTHWISE = 0.0035  # the same of a depthwise convolution
_NATIVE_TAP = 0.18  # one tap in one coefficient of the filter's spectrum, in a product
_NATIVE_TAP_FEW = 0.05  # the same of few examples, whose kernels keep that coefficient in registers
FEW_EXAMPLES = 12  # kRows of ffi/cpu/narrow.h
_NATIVE_WHOLE = 5.0  # one coefficient, where the filter is transformed as a whole
_NATIVE_GIVEN = 1.3  # one coefficient of a spectrum that is given
_NATIVE_GIVEN_FEW = 0.2  # the same in the forward pass of few examples
NATIVE_TABLE = 0.004  # one multiply-add of a transform
NATIVE_SAMPLE = 0.56  # one number that is moved
NATIVE_CALLS = 5.5e4


def native_dft(geometry: ConvGeometry, target: Target) -> float:
    """Of the native kernels, on the CPU."""
    batch, kept, connected = geometry.examples, geometry.kept, pairs(geometry)
    inputs, outputs = geometry.in_features, geometry.out_features
    sums = sums_of_taps([axis.taps for axis in geometry.axes], geometry.box[0])
    if connected == inputs == outputs:  # depthwise
        products = 3 * _NATIVE_DEPTHWISE * kept * batch * connected
    elif target.given:
        read_once = target.inference and batch <= FEW_EXAMPLES
        each = _NATIVE_GIVEN_FEW if read_once else _NATIVE_GIVEN
        products = kept * connected * (3 * _NATIVE_MULTIPLY * batch + each)
    elif whole_filter(sums, outputs // geometry.groups):
        products = kept * connected * (3 * _NATIVE_MULTIPLY * batch + _NATIVE_WHOLE)
    else:
        lanes = connected // outputs * geometry.groups * whole_lanes(outputs // geometry.groups)
        few = batch <= FEW_EXAMPLES and len(geometry.axes) > 1
        tap = _NATIVE_TAP_FEW if few else _NATIVE_TAP
        products = kept * lanes * (3 * _NATIVE_MULTIPLY * batch + tap * sums)
    sides = [
        (inputs, [axis.size for axis in geometry.axes]),
        (outputs, [axis.out for axis in geometry.axes]),
    ]
    transforms = sum(batch * whole_lanes(c) * native_transform(n, geometry) for c, n in sides)
    moved = sum(2 * batch * c * (math.prod(n) + 4 * kept) for c, n in sides)
    in_transforms = NATIVE_TABLE * transforms + NATIVE_SAMPLE * moved
    in_all = target.products * products + target.transforms / 2 * in_transforms
    return in_all + NATIVE_CALLS * target.products / 3


def native_transform(samples: Sequence[int], geometry: ConvGeometry) -> float:
    """Multiply-adds of one channel's transform, each axis by its table or fast."""
    box = geometry.box
    total = 0.0
    for axis in reversed(range(len(box))):
        parts = 2 if axis == len(box) - 1 else 4  # the last axis starts from real samples
        table, fast = parts * box[axis] * samples[axis], parts / 4 * fast_line(geometry.grid[axis])
        total += math.prod(samples[:axis]) * math.prod(box[axis + 1 :]) * min(table, fast)
    return total


def whole_lanes(channels: int) -> int:
    """Channels that are computed: whole vectors."""
    return -(-channels // LANES) * LANES


# Of XLA's own convolution on a CPU at its best, with every frequency kept.
_DENSE_MULTIPLY = 0.015  # of one and two axes, with many channels
_DENSE_MULTIPLY_3D = 0.022
_DENSE_FEW_IN, _DENSE_FEW_OUT, _DENSE_GROUP = 3, 12, 96  # channels, of which it then does double
_DENSE_PARTLY, _DENSE_PARTLY_MOST = 400, 1.6  # for tiles of output channels, filled in part
_DENSE_FORWARD_1D = 0.6  # of the rate of a training call, for the forward pass alone
_DENSE_SMALL_MAP = 20  # how much slower it is on a map smaller than the kernel


def _exact(geometry: ConvGeometry, target: Target) -> float:
    """What a method must stay below to be surely no slower than XLA's own convolution."""
    rates = _rates(target)
    products = geometry.examples * math.prod(a.out * a.taps for a in geometry.axes)
    if target.platform == "cpu":
        rate = dense_rate(geometry) / math.prod(a.input_dilation for a in geometry.axes)
        if target.inference and len(geometry.axes) == 1:
            rate *= _DENSE_FORWARD_1D
    else:
        rate = rates.dense * _narrow(geometry, rates)
    return rates.sure * rate * target.products * products * pairs(geometry)


def dense_rate(geometry: ConvGeometry) -> float:
    """Nanoseconds of a multiply-add of XLA's own convolution on a CPU."""
    inputs = geometry.in_features // geometry.groups
    outputs = geometry.out_features // geometry.groups
    rate = _DENSE_MULTIPLY_3D if len(geometry.axes) == 3 else _DENSE_MULTIPLY
    if geometry.groups > 1:
        rate *= max(1.0, _DENSE_GROUP / inputs)
    else:
        maps = len(geometry.axes) > 1 and all(axis.input_dilation == 1 for axis in geometry.axes)
        partly = min(_DENSE_PARTLY / outputs**2, _DENSE_PARTLY_MOST) if maps else 0
        rate *= (1 + _DENSE_FEW_IN / inputs) * (1 + _DENSE_FEW_OUT / outputs + partly)
    small = any(axis.size < axis.taps for axis in geometry.axes)
    return rate * (_DENSE_SMALL_MAP if small else 1)


def transform_multiply_adds(samples: Sequence[int], geometry: ConvGeometry) -> int:
    """Multiply-adds of one channel's transform, an axis after another, the last axis first."""
    box = geometry.box
    total = 0
    for axis in reversed(range(len(box))):
        parts = 2 if axis == len(box) - 1 else 4  # the last axis starts from real samples
        others = math.prod(samples[:axis]) * math.prod(box[axis + 1 :])
        total += parts * box[axis] * samples[axis] * others
    return total
