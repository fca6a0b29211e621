"""Convolution with every frequency kept, window by window (overlap-save).

A window of ``g`` samples an axis gives ``T = g - e`` outputs, where the kernel reaches over ``e``
further samples. Its transforms stay in the caches, and the filter's spectrum on the small grid
meets the windows of the whole map: the cost is linear in the samples. The windows of the input
overlap, those of the output lie side by side. In the backward pass the cotangent's windows overlap,
and those of the input lie side by side, so that nothing is added up over windows.

There are two forms of it, of which the cheaper one is taken. :class:`Tiles` makes the spectra of
all windows, then all products: for maps of many channels, whose products are what takes the time.
:class:`FusedTiles` goes from inputs to outputs by one kernel, which keeps a few windows at a time:
for few channels, where most of the time goes into reading and writing, and for volumes and series.

Source: A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", section 8.7.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from bandjax._conv import cost, exact, exact_cost
from bandjax._conv.dense import DenseConvSpec
from bandjax._conv.geometry import Axis, ConvGeometry
from bandjax._conv.methods import FilterDomain
from bandjax._conv.native_dft import NativeDft
from bandjax._conv.residuals import Residual
from bandjax._conv.windows import WindowSpec
from bandjax._native import product as native_product
from bandjax._native import tiles as native_tiles
from bandjax._native.epilogue import Finish
from bandjax._native.tiles import TiledSpec, Tiling
from bandjax._spectra.partial_dft import PartialDFT
from bandjax._spectra.types import FilterSpectrum, compute_dtype

_TAKES = (
    "maps with every frequency kept, strides and input_dilation 1, and no CIRCULAR padding, by the "
    "native kernels on the CPU"
)

# Samples of a window, about. (From 16 to 48 the times of 3x3 layers differ by less than a tenth.)
_WINDOW = 32
# Of a long kernel a window has so many times its reach.
_REACHES = 3
_SHORTEST = 6  # outputs
# Of the cost of as many examples. The transforms are five, not four, but they stay in the cache. Of
# few examples it is the filter's spectrum that takes the time.
_SHARE, _SHARE_FORWARD, _SHARE_FEW = 0.8, 0.6, 0.95


@dataclasses.dataclass(frozen=True)
class _Side:
    """Where the windows of a map are, and their samples on the circle."""

    points: tuple[range, ...]
    tiling: Tiling


class Tiles(NativeDft):
    """Exact convolution of maps by overlapping windows, by the native kernels."""

    name = "tiles"
    takes = _TAKES

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        windows = _windows_as_examples(geometry)
        share = _SHARE_FORWARD if target.inference else _SHARE
        if windows.examples <= cost.FEW_EXAMPLES:
            share = _SHARE_FEW
        return share * cost.native_dft(windows, target)

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """Where every frequency of two axes is kept, and neighbours give neighbours."""
        there = super().supports(geometry, dtype, platform, domain)
        return there and _takes(geometry, platform, domain) and len(geometry.axes) == 2

    def convolve(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        dtype: Any,
        finish: Finish | None = None,
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y`` in ``dtype``."""
        x: Any = residual
        inputs, outputs = self._side(_windows), self._side(_outputs)
        spec = self._spec(inputs, x.dtype, self._analysed_dtype(x, dtype))
        spectrum = native_tiles.analysis(spec, x)
        product = self._product_between(inputs, outputs, dtype)
        spectrum = native_product.multiply_sum(product, spectrum, kernel)
        spec = self._spec(outputs, dtype, spectrum[0].dtype, inverse=True)
        if finish is None:
            return native_tiles.synthesis(spec, spectrum)
        return native_tiles.finished_synthesis(spec, spectrum, finish)

    def gradients(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        filter_spectrum: FilterSpectrum | None,
        ct: Float[Array, "N *spatial_out O"],
        level: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "N *spatial C"], Float[Array, "*taps c O"]]:
        """The cotangent's windows overlap here, those of the input lie side by side."""
        x: Any = residual
        inputs, outputs = self._side(_inputs), self._side(_ct_windows)
        spectrum = native_tiles.analysis(
            self._spec(inputs, x.dtype, self._analysed_dtype(x, ct.dtype)), x
        )
        product = self._product_between(inputs, outputs, ct.dtype)
        stored = product.result_dtype(kernel.dtype, *spectrum)
        spec = self._spec(outputs, ct.dtype, stored, inverse=True)
        ct_output = native_tiles.analysis(spec, ct)
        ct_kernel = native_product.filter_product(product, spectrum, ct_output)
        ct_input = native_product.input_product(product, ct_output, kernel)
        spec = self._spec(inputs, ct.dtype, ct_input[0].dtype)
        return native_tiles.synthesis(spec, ct_input), ct_kernel

    def _side(self, of_axis: Callable[[Axis, int], tuple[range, int, int, int, int]]) -> _Side:
        axes = (of_axis(axis, _length(axis)) for axis in self.geometry.axes)
        points, *tiling = zip(*axes, strict=True)
        return _Side(points, Tiling(*tiling))

    def _dft(self, points: tuple[range, ...], *, inverse: bool = False) -> PartialDFT:
        grid = tuple(_length(axis) + _reach(axis) for axis in self.geometry.axes)
        return PartialDFT(grid, tuple(g // 2 for g in grid), points, inverse)

    def _spec(self, side: _Side, dtype: Any, stored: Any, *, inverse: bool = False) -> TiledSpec:
        dft = self._dft(side.points, inverse=inverse)
        return TiledSpec(self._transform(dft, np.dtype(dtype), stored), side.tiling)

    def _product_between(
        self, inputs: _Side, outputs: _Side, dtype: Any
    ) -> native_product.NativeProductSpec:
        shift = tuple(
            out[0] + out[-1] - into[0] - into[-1]
            for out, into in zip(outputs.points, inputs.points, strict=True)
        )
        dft = self._dft(tuple(axis.kernel_points for axis in self.geometry.axes))
        return native_product.NativeProductSpec(
            dataclasses.replace(dft, shift=shift),
            self.geometry.groups,
            self.precision,
            half=self._half(dtype),
        )


class FusedTiles(NativeDft):
    """The same by one kernel, from inputs to outputs."""

    name = "tiles"
    takes = _TAKES

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        return exact_cost.windows(geometry, _best_lengths(geometry), target)

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """Where every frequency is kept, and neighbours give neighbours."""
        there = super().supports(geometry, dtype, platform, domain)
        return there and _takes(geometry, platform, domain)

    @property
    def spec(self) -> WindowSpec:
        """All that is static about the kernel's call."""
        axes = self.geometry.axes
        ones = (1,) * len(axes)
        return WindowSpec(
            DenseConvSpec(
                size=tuple(axis.size for axis in axes),
                taps=tuple(axis.taps for axis in axes),
                out=tuple(axis.out for axis in axes),
                strides=ones,
                padding=tuple(axis.padding for axis in axes),
                input_dilation=ones,
                kernel_dilation=tuple(axis.kernel_dilation for axis in axes),
                groups=self.geometry.groups,
                precision=self.precision,
            ),
            _best_lengths(self.geometry),
        )

    def convolve(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        dtype: Any,
        finish: Finish | None = None,
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y`` in ``dtype``."""
        x: Any = residual
        return exact.finished(self.spec, _narrow(x, dtype), kernel, finish).astype(dtype)

    def gradients(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        filter_spectrum: FilterSpectrum | None,
        ct: Float[Array, "N *spatial_out O"],
        level: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "N *spatial C"], Float[Array, "*taps c O"]]:
        """Two calls, so that the one that is not needed is left out."""
        x: Any = residual
        ct_kernel = exact.filter_gradient(self.spec, x, ct)
        return exact.input_gradient(self.spec, ct, kernel), ct_kernel


def _narrow(x: Array, dtype: Any) -> Array:
    """Maps are read and written in one type."""
    return x if x.dtype == dtype else x.astype(compute_dtype(x.dtype))


def _takes(geometry: ConvGeometry, platform: str, domain: FilterDomain) -> bool:
    return (
        platform == "cpu"
        and domain == "spatial"
        and geometry.exact
        and all(
            axis.stride == axis.input_dilation == 1 and not axis.circular and axis.out > 0
            for axis in geometry.axes
        )
    )


def _reach(axis: Axis) -> int:
    return (axis.taps - 1) * axis.kernel_dilation


def _length(axis: Axis) -> int:
    """Outputs of a window: windows are no larger than so many of them must be."""
    reach, longest = _reach(axis), max(axis.out, axis.size)
    return _even(longest, max(_WINDOW, _REACHES * reach) - reach)


def _even(longest: int, most: int) -> int:
    """Windows of equal length, ``most`` at most, with as few outputs too many as can be."""
    return -(-longest // -(-longest // most))


_TRAINING = cost.Target("cpu", np.dtype(np.float32))


@functools.lru_cache(maxsize=1024)
def _best_lengths(geometry: ConvGeometry) -> tuple[int, ...]:
    """Outputs of a window of :class:`FusedTiles` along each axis, by the least cost."""
    tried = {
        tuple(_even(max(axis.out, axis.size), max(most, _reach(axis))) for axis in geometry.axes)
        for most in range(_SHORTEST, _WINDOW - 1)
    }
    cached = {lengths for lengths in tried if exact_cost.windows_stay_cached(geometry, lengths)}
    few = sorted(cached or {min(tried)})
    return min(few, key=lambda lengths: exact_cost.windows(geometry, lengths, _TRAINING))


# The samples of a window on the circle, and of its axis size of the map, windows, the first's
# begin and the step.


def _windows(axis: Axis, length: int) -> tuple[range, int, int, int, int]:
    """Of the input: for the outputs of a tile."""
    points = range(length + _reach(axis))
    return points, axis.size, -(-axis.out // length), -axis.padding[0], length


def _ct_windows(axis: Axis, length: int) -> tuple[range, int, int, int, int]:
    """Of the cotangent: for the input's samples of a tile."""
    points = range(length + _reach(axis))
    first = axis.padding[0] - _reach(axis)
    return points, axis.out, -(-axis.size // length), first, length


def _outputs(axis: Axis, length: int) -> tuple[range, int, int, int, int]:
    return range(length), axis.out, -(-axis.out // length), 0, length


def _inputs(axis: Axis, length: int) -> tuple[range, int, int, int, int]:
    """Side by side, where the kernel reaches them from the cotangent's windows."""
    points = range(_reach(axis), _reach(axis) + length)
    return points, axis.size, -(-axis.size // length), 0, length


def _windows_as_examples(geometry: ConvGeometry) -> ConvGeometry:
    """The convolution of every window for itself."""
    axes, count = [], 1
    for axis in geometry.axes:
        length = _length(axis)
        grid = length + _reach(axis)
        count *= -(-max(axis.out, axis.size) // length)
        axes.append(
            dataclasses.replace(
                axis, size=grid, out=length, grid=grid, limit=grid // 2, padding=(0, 0)
            )
        )
    return dataclasses.replace(geometry, axes=tuple(axes), batch=(*geometry.batch, count))
