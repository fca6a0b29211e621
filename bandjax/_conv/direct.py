"""The method "direct" by the native kernels: ``ffi/cpu/direct.h`` tells how."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from bandjax._conv import cost, exact, exact_cost
from bandjax._conv.dense import DenseConvSpec
from bandjax._conv.exact import ExactSpec
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.methods import Direct, FilterDomain
from bandjax._conv.native_dft import NativeDft
from bandjax._conv.residuals import Residual
from bandjax._native import transform as native_transform
from bandjax._native.epilogue import Finish
from bandjax._spectra.types import FilterSpectrum, compute_dtype


@dataclasses.dataclass(frozen=True)
class DirectSpec(ExactSpec):
    """One convolution by its sums, with ``input_dilation`` 1."""

    target: ClassVar[str] = "direct"
    reads_bfloat16: ClassVar[bool] = False

    def attributes(self, which: str) -> dict[str, Any]:
        """Those of the handler for a contraction."""
        return {**super().attributes(which), "strides": np.array(self.dense.strides, np.int64)}


class NativeDirect(NativeDft):
    """:class:`Direct` by the native kernels, the projection too."""

    name = "direct"
    takes = f"{Direct.takes}, and input_dilation 1, by the native kernels on the CPU"
    by_taps = True
    finishes = frozenset(["float32", "float64"])

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        return exact_cost.direct(geometry, target)

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """On the CPU, of maps that are read as they are."""
        there = super().supports(geometry, dtype, platform, domain)
        axes = geometry.axes
        return (
            there
            and platform == "cpu"
            and domain == "spatial"
            and all(axis.input_dilation == 1 and axis.size > 0 and axis.out > 0 for axis in axes)
        )

    def convolve(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        dtype: Any,
        finish: Finish | None = None,
    ) -> Float[Array, "N *spatial_out O"]:
        """Evaluates the projection where taps read it, and convolves that."""
        window = self._window(residual, dtype)
        return exact.finished(self._spec(window, kernel), window, kernel, finish)

    def gradients(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        filter_spectrum: FilterSpectrum | None,
        ct: Float[Array, "N *spatial_out O"],
        level: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "N *spatial C"], Float[Array, "*taps c O"]]:
        """The two transposes, and of the projection its own."""
        if level is not None and not isinstance(residual, tuple):
            residual = self.cut(self.spectrum(residual), level)
        window = self._window(residual, ct.dtype)
        spec = self._spec(window, kernel)
        ct_kernel = exact.filter_gradient(spec, window, ct)
        ct_window = exact.input_gradient(spec, ct, kernel)
        if self.geometry.exact:
            sizes = (axis.size for axis in self.geometry.axes)
            like = jnp.zeros_like(ct, shape=(ct.shape[0], *sizes, self.geometry.in_features))
            return jax.vjp(self._exact_window, like)[1](ct_window)[0], ct_kernel
        to_window = self._to_window(ct.dtype, compute_dtype(ct.dtype))
        spectrum = self.cut(native_transform.analysis(to_window, ct_window), level)
        return self.analyse_transposed(spectrum, ct), ct_kernel

    def _window(self, residual: Residual, dtype: Any) -> Float[Array, "N *spatial C"]:
        """What the taps read, in ``dtype``: the input, or its projection."""
        if self.geometry.exact and not isinstance(residual, tuple):
            return self._exact_window(residual.astype(dtype))
        spectrum = self.spectrum(residual)
        to_window = self._to_window(dtype, spectrum[0].dtype)
        return native_transform.synthesis(to_window, spectrum)

    def _exact_window(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *spatial C"]:
        if not self.geometry.axes[0].circular:
            return x
        return self.read_periodically(x, tuple(points for points, _ in self._reads))

    def _to_window(self, dtype: Any, spectrum_dtype: Any) -> native_transform.NativeTransformSpec:
        dft = self.dft(tuple(points for points, _ in self._reads), inverse=True)
        return self._transform(dft, np.dtype(dtype), spectrum_dtype)

    @property
    def _reads(self) -> list[tuple[range, int]]:
        """Of every axis what taps read, and before it points that they do not.

        Its middle is that of the input, from which the kernels measure spectra: one of both ends
        may lie further out.
        """
        found = []
        for axis in self.geometry.axes:
            first = axis.output_points.start
            last = first + (axis.out - 1) * axis.stride + axis.kernel_points[-1]
            ends = axis.input_points[0] + axis.input_points[-1]
            begin, end = min(first, ends - last), max(last, ends - first)
            found.append((range(begin, end + 1), first - begin))
        return found

    def _spec(self, window: Array, kernel: Array) -> DirectSpec:
        """Of the convolution of what taps read: of it all but what lies before it is padding."""
        axes = self.geometry.axes
        if self.geometry.exact and not axes[0].circular:
            padding = [axis.padding for axis in axes]
        else:
            padding = []
            for axis, (points, before) in zip(axes, self._reads, strict=True):
                last = (axis.out - 1) * axis.stride + axis.kernel_points[-1]
                padding.append((-before, before + last + 1 - len(points)))
        return DirectSpec(
            DenseConvSpec(
                size=window.shape[1:-1],
                taps=kernel.shape[:-2],
                out=tuple(axis.out for axis in axes),
                strides=tuple(axis.stride for axis in axes),
                padding=tuple(padding),
                input_dilation=(1,) * len(axes),
                kernel_dilation=tuple(axis.kernel_dilation for axis in axes),
                groups=self.geometry.groups,
                precision=self.precision,
            )
        )
