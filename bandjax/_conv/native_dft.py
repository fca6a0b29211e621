"""The method "dft" by the native kernels."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from bandjax._conv import cost
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.methods import FilterDomain, Method
from bandjax._conv.residuals import Residual
from bandjax._native import call as native_call
from bandjax._native import columns, given
from bandjax._native import product as native_product
from bandjax._native import transform as native_transform
from bandjax._native.epilogue import Finish
from bandjax._spectra.partial_dft import PartialDFT
from bandjax._spectra.precision import matrix_unit_precision
from bandjax._spectra.types import FilterSpectrum, InputSpectrum, compute_dtype


class NativeDft(Method):
    """:class:`Dft` by the native kernels, which never make the filter's spectrum as a whole."""

    name = "dft"
    native = True
    reads_bfloat16 = True
    finishes = frozenset(["float32", "float64", "bfloat16"])

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        return cost.native_dft(geometry, target)

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """Where the kernels were built; a GPU's take taps alone."""
        there = native_call.supports(compute_dtype(dtype), platform)
        return there and (domain == "spatial" or platform == "cpu")

    def _transform(
        self, dft: PartialDFT, dtype: Any, spectrum_dtype: Any
    ) -> native_transform.NativeTransformSpec:
        return native_transform.NativeTransformSpec(
            dft.centred, dtype, np.dtype(spectrum_dtype), self.precision
        )

    def _half(self, dtype: Any) -> bool:
        """Whether products of arrays of a type are those of bfloat16 spectra."""
        # A GPU's kernels have spectra of products in float32 alone.
        if dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
            return False
        return matrix_unit_precision(self.precision, dtype) == "bf16"

    def _product(self, dtype: Any) -> native_product.NativeProductSpec:
        """Of arrays of a type: taps, or a spectrum, measured from the centres of both sides."""
        spectral = self.filter_domain != "spatial"
        outputs = self.output_dft.points
        shift = tuple(
            out[0] + out[-1] - axis.input_points[0] - axis.input_points[-1]
            for out, axis in zip(outputs, self.geometry.axes, strict=True)
        )
        if self.filter_domain == "prepared":
            shift = (0,) * len(shift)
        dft = self.dft((range(1),) * len(shift)) if spectral else self.kernel_dft
        dft = dataclasses.replace(dft, shift=shift)
        return native_product.NativeProductSpec(
            dft,
            self.geometry.groups,
            self.precision,
            spectral=spectral,
            of_real=self.filter_domain == "prepared",
            half=self._half(dtype),
        )

    @property
    def reads_bfloat16_filter(self) -> bool:
        """On the CPU, but for depthwise convolutions."""
        geometry = self.geometry
        depthwise = geometry.groups == geometry.in_features == geometry.out_features
        return self.filter_domain == "prepared" and not depthwise

    def prepared(self, spectrum: Float[Array, "2 *box c O"]) -> Float[Array, "2 *box c O"]:
        """Turned to where the centres of input and output are, from which the kernels measure.

        As that of a real filter, of which they compute fewer frequencies.
        """
        dft = dataclasses.replace(self, filter_domain="spectral")._product(spectrum.dtype).dft
        return given.of_real_filter(dft, given.turned(dft, spectrum))

    def analyse(self, x: Float[Array, "N *spatial C"]) -> InputSpectrum:
        """Returns ``A x``, in the type in which it is stored if that is bfloat16."""
        dtype = compute_dtype(x.dtype)
        if self.residual_dtype == jnp.bfloat16 and not self.geometry.keeps_input:
            dtype = dtype if dtype == jnp.float64 else self.residual_dtype
        return native_transform.analysis(self._transform(self.input_dft, x.dtype, dtype), x)

    def _spectrum_for(self, residual: Residual, dtype: Any) -> InputSpectrum:
        """The spectrum that a residual is or gives, for products of arrays of ``dtype``."""
        if isinstance(residual, tuple):
            return self.spectrum(residual)
        spectrum_dtype = self._analysed_dtype(residual, dtype)
        spec = self._transform(self.input_dft, residual.dtype, spectrum_dtype)
        return native_transform.analysis(spec, residual)

    def _analysed_dtype(self, x: jax.Array, dtype: Any) -> np.dtype[Any]:
        """The type of the spectrum of an input that is kept."""
        half = self._half(dtype) and x.dtype == jnp.bfloat16
        return jnp.dtype(jnp.bfloat16) if half else compute_dtype(x.dtype)

    def analyse_transposed(self, spectrum: Any, like: Any) -> Float[Array, "N *spatial C"]:
        """Returns ``Re A^H X`` in the type of ``like``."""
        spec = self._transform(self.input_dft, like.dtype, spectrum[0].dtype)
        return native_transform.synthesis(spec, spectrum)

    def _columns(
        self, spectrum: InputSpectrum, kernel: Float[Array, "*taps c O"], dtype: Any
    ) -> columns.ColumnsSpec | None:
        """How to take column by column, where that is faster."""
        if jax.default_backend() != "cpu" or self.filter_domain != "spatial":
            return None
        spec = columns.ColumnsSpec(
            self._product(dtype),
            self._transform(self.input_dft, np.dtype(dtype), spectrum[0].dtype),
            self._transform(self.output_dft, np.dtype(dtype), spectrum[0].dtype),
        )
        return spec if spec.pays(spectrum, kernel) else None

    def convolve(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        dtype: Any,
        finish: Finish | None = None,
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y`` in ``dtype``, and what an epilogue makes of it."""
        product, spectrum = self._product(dtype), self._spectrum_for(residual, dtype)
        by_columns = self._columns(spectrum, kernel, dtype)
        if by_columns is not None:
            y = columns.convolve(by_columns, spectrum, kernel)
            return y if finish is None else finish(y)
        spectrum = native_product.multiply_sum(product, spectrum, kernel)
        spec = self._transform(self.output_dft, jnp.dtype(dtype), spectrum[0].dtype)
        if finish is None:
            return native_transform.synthesis(spec, spectrum)
        return native_transform.finished_synthesis(spec, spectrum, finish)

    def gradients(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        filter_spectrum: FilterSpectrum | None,
        ct: Float[Array, "N *spatial_out O"],
        level: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "N *spatial C"], Float[Array, "*taps c O"]]:
        """Step by step, so that no gradient is rounded to the type of the residual.

        But to that of the arrays, where they have it too.
        """
        spectrum, product = self._spectrum_for(residual, ct.dtype), self._product(ct.dtype)
        by_columns = self._columns(spectrum, kernel, ct.dtype) if level is None else None
        if by_columns is not None:
            return columns.gradients(by_columns, spectrum, ct, kernel)
        stored = product.result_dtype(kernel.dtype, *spectrum)
        spec = self._transform(self.output_dft, ct.dtype, stored)
        # The cotangent is cut, and with it both products.
        ct_output = self.cut(native_transform.analysis(spec, ct), level)
        ct_kernel = native_product.filter_product(product, spectrum, ct_output)
        ct_spectrum = native_product.input_product(product, ct_output, kernel)
        return self.analyse_transposed(ct_spectrum, ct), ct_kernel
