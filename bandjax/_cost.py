"""The rule by which ``method="auto"`` chooses.

It estimates the nanoseconds of one training call (output and both gradients) from shapes, band and
platform alone, and takes the cheapest method:

* ``dft`` and ``fft`` transform input and output four times in all and the kernel three times,
  multiply, and pass over the spectra of the filter.
* ``native`` is ``dft`` by the native kernels. On the CPU it is taken wherever it is cheaper; on
  accelerators it is not measured yet, and so not taken unasked.
* ``direct`` transforms the input five times, and convolves densely three times. With every
  frequency kept it is the backend's own convolution, to the last bit, and only ``native`` can be
  cheaper.

The estimates rank methods; they do not predict times. The constants of the CPU were fitted to
timings of ResNet-18, FCN, depthwise and three-dimensional layers on two AVX-512 cores with jax
0.10.2. Those of accelerators follow data-sheet ratios and are not measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from bandjax._geometry import ConvGeometry


@dataclasses.dataclass(frozen=True)
class _Rates:
    """Nanoseconds on one platform.

    Attributes:
      multiply: one real multiply-add of a matrix product.
      sample: reading, transposing and writing one number of a transform.
      filter: all passes over one number of a filter's spectrum.
      fft: one number on a grid, for one fast Fourier transform.
      dense: one multiply-add of a dense convolution of one spatial axis.
      dense_nd: the same of more axes, unpadded (XLA's CPU backend is fast on SAME alone).
      wide: input channels from which on a dense convolution reaches these rates.
      wide_group: the same, in each of several groups.
    """

    multiply: float
    sample: float
    filter: float
    fft: float
    dense: float
    dense_nd: float
    wide: int
    wide_group: int


_CPU = _Rates(
    multiply=0.012,
    sample=2.5,
    filter=4.0,
    fft=4.5,
    dense=0.011,
    dense_nd=0.025,
    wide=4,
    wide_group=32,
)
_ACCELERATOR = _Rates(
    multiply=2e-5,
    sample=4e-3,
    filter=8e-3,
    fft=2e-2,
    dense=2e-5,
    dense_nd=2e-5,
    wide=16,
    wide_group=32,
)


# Beyond this many points a Fourier matrix costs more than the fast transform, and much memory.
_LONG_GRID = 768


def transform_of_projection(geometry: ConvGeometry) -> Literal["dft", "fft"]:
    """Returns how ``direct`` projects the input on the band."""
    return "fft" if max(geometry.grid) > _LONG_GRID else "dft"


def cheapest(geometry: ConvGeometry, platform: str, *, native: bool) -> tuple[str, bool]:
    """Returns "direct", "dft" or "fft", and whether native kernels are to compute it.

    Args:
      geometry: shapes and band.
      platform: as ``jax.default_backend()`` names it.
      native: whether there are native kernels.
    """
    native = native and platform == "cpu"
    if geometry.exact:
        gains = native and _native_cost(geometry) < _MARGIN * _dense_cost(geometry)
        return ("dft", True) if gains else ("direct", False)
    costs = estimated_costs(geometry, platform)
    if native:
        costs["native"] = _native_cost(geometry)
    best = min(costs, key=lambda method: costs[method])
    return ("dft", True) if best == "native" else (best, False)


# Nanoseconds of the native kernels on the CPU, and lanes of a vector.
_NATIVE_MULTIPLY = 0.005
_NATIVE_FILTER = 0.92  # one coefficient of the filter's spectrum, in all three products
_NATIVE_SAMPLE = 0.16  # one number that is moved
_NATIVE_CALLS = 2.2e5
_LANES = 16
# Of XLA's own convolution at its best, with every frequency kept; in three dimensions it is slow.
_DENSE_MULTIPLY = 0.0063
_DENSE_MULTIPLY_3D = 0.04
_MARGIN = 0.9  # of its cost that the native kernels must stay below, to be surely no slower


def _native_cost(geometry: ConvGeometry) -> float:
    batch, kept = math.prod(geometry.batch), geometry.kept
    inputs, outputs = geometry.in_features, geometry.out_features
    pairs = inputs // geometry.groups * outputs
    depthwise = pairs == inputs == outputs
    sides = [
        (inputs, [axis.size for axis in geometry.axes]),
        (outputs, [axis.out for axis in geometry.axes]),
    ]
    transforms = sum(
        batch * _whole_lanes(c) * transform_multiply_adds(n, geometry) for c, n in sides
    )
    if max(geometry.grid) > _LONG_GRID:
        transforms *= 2  # The table is larger than the caches.
    moved = sum(2 * batch * c * (math.prod(n) + 4 * kept) for c, n in sides)
    return (
        _NATIVE_MULTIPLY * (9 * kept * batch * pairs * (4 if depthwise else 1) + transforms)
        + _NATIVE_FILTER * kept * pairs
        + _NATIVE_SAMPLE * moved
        + _NATIVE_CALLS
    )


def _whole_lanes(channels: int) -> int:
    """Channels that are computed: whole vectors."""
    return -(-channels // _LANES) * _LANES


def _dense_cost(geometry: ConvGeometry) -> float:
    """Of the backend's own convolution and its gradients, on the CPU."""
    axes = geometry.axes
    per_group = geometry.in_features // geometry.groups
    narrow = max(1.0, (_CPU.wide if geometry.groups == 1 else _CPU.wide_group) / per_group)
    rate = _DENSE_MULTIPLY_3D if len(axes) == 3 else _DENSE_MULTIPLY
    products = math.prod(geometry.batch) * math.prod(axis.out * axis.taps for axis in axes)
    return rate * narrow * 3 * products * per_group * geometry.out_features


def estimated_costs(geometry: ConvGeometry, platform: str) -> dict[str, float]:
    """Returns estimated nanoseconds of one training call, for each method."""
    rates = _CPU if platform == "cpu" else _ACCELERATOR
    axes = geometry.axes
    batch = math.prod(geometry.batch)
    per_group = geometry.in_features // geometry.groups
    channel_pairs = per_group * geometry.out_features
    size = [axis.size for axis in axes]
    out = [axis.out for axis in axes]
    taps = [axis.taps for axis in axes]
    window = [axis.size + axis.taps - 1 for axis in axes]

    def matrices(samples: Sequence[int], channels: int) -> float:
        numbers = math.prod(samples) * channels
        return max(
            rates.sample * numbers,
            rates.multiply * channels * transform_multiply_adds(samples, geometry),
        )

    product = rates.multiply * 9 * geometry.kept * batch * channel_pairs
    filters = rates.filter * 2 * geometry.kept * channel_pairs
    circle = rates.fft * math.prod(geometry.grid)
    dense = rates.dense if len(axes) == 1 else rates.dense_nd
    dense *= max(1.0, (rates.wide if geometry.groups == 1 else rates.wide_group) / per_group)
    inputs, outputs = batch * geometry.in_features, batch * geometry.out_features
    if transform_of_projection(geometry) == "fft":
        projection = 5 * circle * inputs
    else:
        projection = 2 * matrices(size, inputs) + 3 * matrices(window, inputs)
    return {
        "dft": product
        + filters
        + 2 * (matrices(size, inputs) + matrices(out, outputs))
        + rates.multiply * 3 * channel_pairs * transform_multiply_adds(taps, geometry),
        "fft": product + filters + circle * (2 * inputs + 2 * outputs + 3 * channel_pairs),
        "direct": dense * 3 * batch * math.prod(out) * math.prod(taps) * channel_pairs + projection,
    }


def transform_multiply_adds(samples: Sequence[int], geometry: ConvGeometry) -> int:
    """Multiply-adds of one channel's transform, an axis after another, the last axis first."""
    box = geometry.box
    total = 0
    for axis in reversed(range(len(box))):
        parts = 2 if axis == len(box) - 1 else 4  # the last axis starts from real samples
        others = math.prod(samples[:axis]) * math.prod(box[axis + 1 :])
        total += parts * box[axis] * samples[axis] * others
    return total
