"""The method of accelerators: :class:`Dft` in the form that their matrix units are fastest at."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from bandjax._conv import cost
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.methods import Dft, FilterDomain
from bandjax._conv.residuals import Kept, Residual
from bandjax._spectra import packed
from bandjax._spectra.product import ProductSpec
from bandjax._spectra.types import FilterSpectrum


class PackedDft(Dft):
    """:class:`Dft` by a few large products of real matrices, see :mod:`bandjax._spectra.packed`.

    It computes in float32, float64 or bfloat16 (with sums in float32), as ``x`` is. The spectrum is
    a tuple of one array.
    """

    reads_bfloat16 = True

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        method = cls(geometry, target.dtype)
        of_input, of_output = (
            packed.multiply_adds(dft, target.dtype) for dft in (method.input_dft, method.output_dft)
        )
        return cost.packed_dft(geometry, target, of_input, of_output)

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """Where products are cheap against passes over memory."""
        return platform != "cpu"

    def analyse(self, x: Float[Array, "N *spatial C"]) -> Kept:
        """Returns ``A x``."""
        return (packed.to_packed(self.input_dft, x, self.precision),)

    def analyse_transposed(self, spectrum: Any, like: Any) -> Float[Array, "N *spatial C"]:
        """Returns ``Re A^H X`` in the type of ``like``."""
        return packed.from_packed(self.input_dft, spectrum[0].astype(like.dtype), self.precision)

    def convolve(
        self, residual: Residual, kernel: Float[Array, "*taps c O"], dtype: Any
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y`` in ``dtype``."""
        (spectrum,) = self.spectrum(residual)
        return self.convolve_spectra((spectrum.astype(dtype),), self.filter_spectrum(kernel))

    def gradients(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        filter_spectrum: FilterSpectrum | None,
        ct: Float[Array, "N *spatial_out O"],
        level: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "N *spatial C"], Float[Array, "*taps c O"]]:
        """In the type of ``ct``, so that no gradient is rounded to a narrower residual's."""
        residual = jax.tree.map(lambda a: a.astype(ct.dtype), residual)
        return super().gradients(residual, kernel, filter_spectrum, ct, level)

    def convolve_spectra(
        self, residual: Residual, filter_spectrum: FilterSpectrum
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y`` of the filter's spectrum, in the type of the residual."""
        product = ProductSpec(self.geometry.groups, self.precision)
        (spectrum,) = self.spectrum(residual)
        output_spectrum = packed.multiply_sum(product, spectrum, filter_spectrum)
        return packed.from_packed(self.output_dft, output_spectrum, self.precision)
