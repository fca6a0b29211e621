"""The ways to compute a band-limited convolution: one class each, equal to rounding.

With the partial DFT matrices ``A`` of the input's positions, ``B`` of the taps and ``S`` of the
outputs (weighted, see :mod:`bandjax._spectra.partial_dft`), all compute

    X = A x      W = B w      Y[n, u, o] = sum_c X[n, u, c] conj(W[u, c, o])      y = Re S Y

A class tells how; :mod:`bandjax._conv.operator` has the derivative of all of them, and
:mod:`bandjax._conv.choose` the choice. A further method is a further class in ``classes.CLASSES``.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from bandjax._conv import cost, energy
from bandjax._conv.dense import DenseConvSpec, convolve
from bandjax._conv.geometry import ConvGeometry
from bandjax._conv.residuals import Kept, Residual, ResidualFormat
from bandjax._spectra.partial_dft import PartialDFT, gather_periodic, scatter_periodic
from bandjax._spectra.product import ProductSpec, multiply_sum
from bandjax._spectra.transform import TransformSpec, from_spectrum, to_spectrum
from bandjax._spectra.types import FilterSpectrum, Precision

FilterDomain = Literal["spatial", "spectral", "prepared"]


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """One convolution, all that is static about it, and how to compute it.

    Arrays have one batch axis: ``x`` is ``(N, *spatial, C)``, ``y`` ``(N, *spatial_out, O)``,
    spectra are frequency-major pairs of real arrays ``(*box, N, C)``. ``kernel`` holds taps
    ``(*taps, C / groups, O)`` or, in the "spectral" domain, the filter's spectrum ``(2, *box,
    C / groups, O)`` measured from the filter's centre. In the "prepared" domain it is that spectrum
    as the method's own products take it, which :meth:`prepared` makes once.

    Attributes:
      geometry: grid, box and sample positions.
      residual_dtype: type in which the residual is stored.
      recompute_filter: whether the backward pass derives the filter's spectrum anew.
      precision: of the matrix products.
      filter_domain: what ``kernel`` holds.
      name: of the method, as the argument ``method`` has it.
      takes: what it can compute, in words, where that is not everything.
      native: whether native kernels compute it.
      reads_bfloat16: whether samples and spectra may be bfloat16 while it computes.
      by_taps: whether its products are over taps, not over frequencies: :mod:`counts` counts so.
      finishes: types of maps with which :meth:`convolve` takes an epilogue too.
    """

    geometry: ConvGeometry
    residual_dtype: np.dtype[Any]
    recompute_filter: bool = True
    precision: Precision = None
    filter_domain: FilterDomain = "spatial"

    name: ClassVar[str]
    takes: ClassVar[str] = "what others take"
    native: ClassVar[bool] = False
    reads_bfloat16: ClassVar[bool] = False
    by_taps: ClassVar[bool] = False
    finishes: ClassVar[frozenset[str]] = frozenset()

    @property
    def reads_bfloat16_filter(self) -> bool:
        """Whether a prepared filter may be bfloat16 while it computes."""
        return False

    @classmethod
    @abc.abstractmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """Estimated nanoseconds of one training call, for comparison with the other methods."""

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """Whether the method can compute a convolution of arrays of ``dtype``."""
        return True

    @abc.abstractmethod
    def analyse(self, x: Float[Array, "N *spatial C"]) -> Kept:
        """Returns ``A x``."""

    @abc.abstractmethod
    def analyse_transposed(self, spectrum: Any, like: Any) -> Float[Array, "N *spatial C"]:
        """Returns ``Re A^H X``; ``like`` tells the type of a cotangent."""

    @abc.abstractmethod
    def convolve(
        self, residual: Residual, kernel: Float[Array, "*taps c O"], dtype: Any
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y`` of the spectrum, or the input; linear in it and in ``kernel``.

        ``dtype`` is that of the result with native kernels; it is the kernel's without.
        """

    def prepared(self, spectrum: Float[Array, "2 *box c O"]) -> Float[Array, "2 *box c O"]:
        """Returns a spectral filter as the "prepared" domain has it."""
        return spectrum

    @property
    def keeps_filter(self) -> bool:
        """Whether the filter's spectrum is a residual."""
        return False

    @property
    def format(self) -> ResidualFormat:
        """How residuals are stored."""
        # A mean over the grid cannot overflow where its terms did not; the spectrum, a sum, could.
        overflows = self.residual_dtype == jnp.float16 and not self.geometry.keeps_input
        scale = math.prod(self.geometry.grid) if overflows else 1
        return ResidualFormat(self.residual_dtype, scale, self.reads_bfloat16)

    @property
    def input_dft(self) -> PartialDFT:
        """``A``: of the input samples."""
        return self.dft(tuple(axis.input_points for axis in self.geometry.axes))

    @property
    def kernel_dft(self) -> PartialDFT:
        """``B``: of the taps."""
        return self.dft(tuple(axis.kernel_points for axis in self.geometry.axes))

    @property
    def output_dft(self) -> PartialDFT:
        """``S`` transposed: of the outputs."""
        if self.filter_domain != "spatial":
            points = [range(0, axis.out * axis.stride, axis.stride) for axis in self.geometry.axes]
        else:
            points = [axis.output_points for axis in self.geometry.axes]
        return self.dft(tuple(points), inverse=True)

    def dft(self, points: tuple[range, ...], *, inverse: bool = False) -> PartialDFT:
        """The partial DFT of the kept frequencies at some positions."""
        return PartialDFT(self.geometry.grid, self.geometry.modes, points, inverse)

    def spectrum(self, residual: Residual) -> Any:
        """The spectrum that a residual is or gives."""
        return residual if isinstance(residual, tuple) else self.analyse(residual)

    def read_periodically(
        self, x: Float[Array, "N *spatial C"], points: tuple[range, ...]
    ) -> Float[Array, "N *read C"]:
        """Returns the input, on the circle of the grid, at some positions of each axis."""
        pairs = zip(self.input_dft.points, points, strict=True)
        for i, (sampled, read) in enumerate(pairs, start=1):
            x = scatter_periodic(x, self.geometry.grid[i - 1], sampled, i)
            x = gather_periodic(x, read, i)
        return x

    def cut(self, spectrum: Kept, level: Int[Array, ""] | None) -> Kept:
        """Sets to zero what lies outside the box of a level, if there is one."""
        return spectrum if level is None else energy.cut(self.geometry, spectrum, level)

    @abc.abstractmethod
    def gradients(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        filter_spectrum: FilterSpectrum | None,
        ct: Float[Array, "N *spatial_out O"],
        level: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "N *spatial C"], Float[Array, "*taps c O"]]:
        """Returns the gradients of ``x`` and of ``kernel``.

        Args:
          residual: the spectrum or the input, as :meth:`convolve` takes it.
          kernel: as in the forward pass.
          filter_spectrum: that of the kernel, if it was kept.
          ct: the cotangent of ``y``.
          level: of an Energy band's box; the residual, where it is a spectrum, is cut already.
        """


class XlaMethod(Method):
    """A method in plain JAX."""

    @property
    @abc.abstractmethod
    def transform(self) -> TransformSpec:
        """How transforms are computed."""

    @property
    def keeps_filter(self) -> bool:
        """Whether the filter's spectrum is a residual."""
        return not self.recompute_filter

    def analyse(self, x: Float[Array, "N *spatial C"]) -> Kept:
        """Returns ``A x``."""
        return to_spectrum(self.transform, self.input_dft, jnp.moveaxis(x, 0, -2))

    def analyse_transposed(self, spectrum: Any, like: Any) -> Float[Array, "N *spatial C"]:
        """Returns ``Re A^H X``."""
        return _batch_first(from_spectrum(self.transform, self.input_dft, spectrum))

    def filter_spectrum(self, kernel: Float[Array, "*taps c O"]) -> FilterSpectrum:
        """Returns ``B w``, two times ``(*box, C / groups, O)``."""
        if self.filter_domain != "spatial":
            return kernel[0], kernel[1]
        return to_spectrum(self.transform, self.kernel_dft, kernel)

    def convolve(
        self, residual: Residual, kernel: Float[Array, "*taps c O"], dtype: Any
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y``."""
        return self.convolve_spectra(residual, self.filter_spectrum(kernel))

    def convolve_spectra(
        self, residual: Residual, filter_spectrum: FilterSpectrum
    ) -> Float[Array, "N *spatial_out O"]:
        """Returns ``y`` of the filter's spectrum: multiply-sum, then synthesis."""
        product = ProductSpec(self.geometry.groups, self.precision)
        output_spectrum = multiply_sum(product, self.spectrum(residual), filter_spectrum)
        return _batch_first(from_spectrum(self.transform, self.output_dft, output_spectrum))

    def gradients(
        self,
        residual: Residual,
        kernel: Float[Array, "*taps c O"],
        filter_spectrum: FilterSpectrum | None,
        ct: Float[Array, "N *spatial_out O"],
        level: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "N *spatial C"], Float[Array, "*taps c O"]]:
        """The transposes of the two linear maps: their vjp needs no value but the residuals."""
        if level is not None:
            spectrum = self.spectrum(residual)
            residual = spectrum if isinstance(residual, tuple) else self.cut(spectrum, level)
        if filter_spectrum is None:
            _, pull_back = jax.vjp(
                lambda residual, kernel: self.convolve(residual, kernel, ct.dtype), residual, kernel
            )
            ct_residual, ct_kernel = pull_back(ct)
        else:
            _, pull_back = jax.vjp(self.convolve_spectra, residual, filter_spectrum)
            ct_residual, ct_filter = pull_back(ct)
            (ct_kernel,) = jax.vjp(self.filter_spectrum, kernel)[1](ct_filter)
        if isinstance(ct_residual, tuple):
            ct_residual = self.analyse_transposed(self.cut(ct_residual, level), ct)
        return ct_residual, ct_kernel


class Dft(XlaMethod):
    """Truncated matrix products, axis after axis: nothing outside the band is computed.

    The form that processors without matrix units are fastest at.
    """

    name = "dft"

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """On the CPU; others have another form of it."""
        return platform == "cpu"

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        return cost.dft(geometry, target)

    @property
    def transform(self) -> TransformSpec:
        """How transforms are computed."""
        return TransformSpec("dft", self.precision)


class Fft(XlaMethod):
    """``jnp.fft`` on the whole grid, of which the corners are kept."""

    name = "fft"

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        return cost.fft(geometry, target)

    @property
    def transform(self) -> TransformSpec:
        """How transforms are computed."""
        return TransformSpec("fft", self.precision)


class Direct(XlaMethod):
    """The input's projection on the band, then the backend's own convolution."""

    name = "direct"
    takes = "a filter's taps, not its spectrum"
    by_taps = True

    @classmethod
    def cost(cls, geometry: ConvGeometry, target: cost.Target) -> float:
        """See :class:`Method`."""
        return cost.direct(geometry, target)

    @classmethod
    def supports(
        cls, geometry: ConvGeometry, dtype: np.dtype[Any], platform: str, domain: FilterDomain
    ) -> bool:
        """A filter that is given by its spectrum has no taps."""
        return domain == "spatial"

    @property
    def transform(self) -> TransformSpec:
        """How the input is projected."""
        return TransformSpec(cost.transform_of_projection(self.geometry), self.precision)

    @property
    def keeps_filter(self) -> bool:
        """It has no spectrum of the filter."""
        return False

    @property
    def window_dft(self) -> PartialDFT:
        """Of every point that a tap reads."""
        points = []
        for axis in self.geometry.axes:
            start = axis.output_points.start
            length = (axis.out - 1) * axis.stride + axis.kernel_points[-1] + 1
            points.append(range(start, start + length))
        return self.dft(tuple(points), inverse=True)

    def convolve(
        self, residual: Residual, kernel: Float[Array, "*taps c O"], dtype: Any
    ) -> Float[Array, "N *spatial_out O"]:
        """Evaluates the projection where taps read it, and convolves that."""
        axes = self.geometry.axes
        padding = ((0, 0),) * len(axes)
        dilation = (1,) * len(axes)
        if isinstance(residual, tuple) or not self.geometry.exact:
            spectrum = self.spectrum(residual)
            window = _batch_first(from_spectrum(self.transform, self.window_dft, spectrum))
        elif axes[0].circular:
            window = self.read_periodically(residual, self.window_dft.points)
        else:
            window = residual
            padding = tuple(axis.padding for axis in axes)
            dilation = tuple(axis.input_dilation for axis in axes)
        spec = DenseConvSpec(
            size=window.shape[1:-1],
            taps=kernel.shape[:-2],
            out=tuple(axis.out for axis in axes),
            strides=tuple(axis.stride for axis in axes),
            padding=padding,
            input_dilation=dilation,
            kernel_dilation=tuple(axis.kernel_dilation for axis in axes),
            groups=self.geometry.groups,
            precision=self.precision,
        )
        return convolve(spec, window, kernel)


def _batch_first(samples: Float[Array, "*spatial N C"]) -> Float[Array, "N *spatial C"]:
    """``(*spatial, N, C)`` to ``(N, *spatial, C)``."""
    return jnp.moveaxis(samples, -2, 0)
