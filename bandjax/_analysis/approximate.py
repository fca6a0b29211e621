"""What a choice of coefficients costs: a compressed convolution beside the exact one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bandjax._analysis.masks import compression, energy, energy_mask, lead_mask, top_mask
from bandjax._conv.geometry import PaddingLike, canonical_padding, conv_geometry
from bandjax._spectra.half import analysis, irfftn
from bandjax._spectra.partial_dft import gather_periodic, scatter_periodic


def relative_error(actual: jax.Array, exact: jax.Array, *, order: int = 1) -> jax.Array:
    """Returns the norm of ``actual - exact`` over the norm of ``exact``, a scalar.

    Args:
      actual: real, any shape; the norms are over all entries.
      exact: real, the same shape.
      order: 1 for sums of absolute values, as the paper has it; 2 for the Euclidean norm.

    Raises:
      ValueError: another order, or shapes that differ.

    Example:
      >>> float(relative_error(jnp.array([1.0, 4.0]), jnp.array([1.0, 3.0])))
      0.25

    Source: Dziedzic et al., supplement 2.10, for order 1.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")
    if actual.shape != exact.shape:
        raise ValueError(
            f"actual and exact must have the same shape, got {actual.shape} and {exact.shape}"
        )
    norms = [jnp.linalg.norm(values.ravel(), order) for values in (actual - exact, exact)]
    return norms[0] / norms[1]


class Variant(Protocol):
    """A way to choose the coefficients that :func:`approximate` keeps."""

    def masks(
        self, x_spectrum: jax.Array, kernel_spectrum: jax.Array, grid: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the masks of the input's and of the filters' spectrum.

        Args:
          x_spectrum: complex, ``(batch, *frequencies, in)``, the whole half spectrum.
          kernel_spectrum: complex, ``(out, *frequencies, in)``.
          grid: points on the circle of each axis.

        Returns:
          two boolean arrays that broadcast against the spectra.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Lead:
    """Drops rows and columns from the high end, of input and filters alike.

    Args:
      dropped: how many frequencies of each axis, see :func:`lead_mask`; it may be traced.
    """

    dropped: jax.typing.ArrayLike

    def masks(
        self, x_spectrum: jax.Array, kernel_spectrum: jax.Array, grid: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """See :class:`Variant`."""
        mask = lead_mask(grid, self.dropped)
        return mask, mask


@dataclasses.dataclass(frozen=True)
class Top:
    """Zeroes the smallest magnitudes, of each example and of each filter apart.

    Args:
      zeroed: how many of the coefficients of all channels together, see :func:`top_mask`; it may be
        traced.
    """

    zeroed: jax.typing.ArrayLike

    def masks(
        self, x_spectrum: jax.Array, kernel_spectrum: jax.Array, grid: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """See :class:`Variant`."""
        return top_mask(x_spectrum, self.zeroed), top_mask(kernel_spectrum, self.zeroed)


@dataclasses.dataclass(frozen=True)
class Growth:
    """Keeps the least growth from DC that holds a share of the input's energy; filters cut alike.

    Args:
      share: of the energy of all examples and channels together, see :func:`energy_mask`; it may be
        traced.
      fine: element by element, instead of whole L-shaped steps.
    """

    share: jax.typing.ArrayLike
    fine: bool = False

    def masks(
        self, x_spectrum: jax.Array, kernel_spectrum: jax.Array, grid: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """See :class:`Variant`."""
        mask = energy_mask(energy(x_spectrum, grid), grid, self.share, fine=self.fine)
        return mask, mask


class Approximation(NamedTuple):
    """What :func:`approximate` returns: a compressed convolution beside the exact one.

    Attributes:
      output: of the compressed convolution, ``(batch, *spatial_out, out)``.
      exact: the convolution's exact output, of the same shape.
      x_mask: coefficients of the input's spectrum that are kept; broadcasts against
        ``(batch, *frequencies, in)``.
      kernel_mask: those of the filters' spectrum; broadcasts against ``(out, *frequencies, in)``.
    """

    output: jax.Array
    exact: jax.Array
    x_mask: jax.Array
    kernel_mask: jax.Array

    @property
    def compression(self) -> jax.Array:
        """The share of the input's coefficients that is dropped."""
        return compression(self.x_mask)

    @property
    def error(self) -> jax.Array:
        """Sum of the absolute deviations over the sum of the exact outputs' absolute values.

        A share, not per cent: 0 for no error. See :func:`relative_error`.
        """
        return relative_error(self.output, self.exact)


Strides: TypeAlias = int | Sequence[int]


def approximate(
    x: Float[Array, "N *spatial C"],
    kernel: Float[Array, "*taps C O"],
    variant: Variant,
    *,
    strides: Strides = 1,
    padding: PaddingLike = "SAME",
    input_dilation: Strides = 1,
    kernel_dilation: Strides = 1,
    grid: int | Sequence[int] | None = None,
) -> Approximation:
    """Convolves with compressed spectra, and exactly, to compare them.

    Input and filters are transformed whole; what ``variant`` does not choose is zeroed. It saves
    neither time nor memory. It may be jitted, and mapped by ``jax.vmap`` over examples or over what
    the variant takes.

    Args:
      x: real, ``(batch, *spatial, in)``.
      kernel: real, ``(*taps, in, out)``.
      variant: :class:`Lead`, :class:`Top`, :class:`Growth`, or any other :class:`Variant`.
      strides, padding, input_dilation, kernel_dilation, grid: as in :func:`bandjax.band_conv`, but
        without REFLECT padding.

    Returns:
      the output, the exact one, and the masks.

    Raises:
      TypeError, ValueError: as :func:`bandjax.band_conv`; or another number of batch axes than one,
        or REFLECT padding.

    Example:
      The paper's: an image of 32 x 32 and filters of 5 x 5 on a grid of 59 x 59, one index dropped.

      >>> x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
      >>> kernel = jax.random.normal(jax.random.key(1), (5, 5, 3, 1))
      >>> result = approximate(x, kernel, Lead(1), padding="VALID", grid=59)
      >>> round(float(result.compression), 4), result.output.shape
      (0.0661, (1, 28, 28, 1))
      >>> bool(result.error < 0.5)
      True

    Source: Dziedzic et al., supplement 2.10.
    """
    from bandjax._conv.band_conv import band_conv

    padding = canonical_padding(padding)
    if padding == "REFLECT":
        raise ValueError("approximate has no padding 'REFLECT'; pad x by jnp.pad, and pass 'VALID'")
    geometry = conv_geometry(
        x.shape,
        kernel.shape,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        grid=grid,
    )
    if len(geometry.batch) != 1:
        raise ValueError(f"x must be (batch, *spatial, in), got shape {x.shape}")
    exact = band_conv(
        x,
        kernel,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        grid=grid,
    )
    axes = geometry.axes
    x_spectrum = _spectrum_on_grid(x, geometry.grid, [axis.input_points for axis in axes])
    kernel_spectrum = _spectrum_on_grid(
        jnp.moveaxis(kernel, -1, 0), geometry.grid, [axis.kernel_points for axis in axes]
    )
    x_mask, kernel_mask = variant.masks(x_spectrum, kernel_spectrum, geometry.grid)
    product = jnp.einsum(
        "n...c,o...c->n...o",
        jnp.where(x_mask, x_spectrum, 0),
        jnp.where(kernel_mask, kernel_spectrum, 0).conj(),
        precision="highest",
    )
    y = irfftn(product, geometry.grid)
    for number, axis in enumerate(axes, start=1):
        y = gather_periodic(y, axis.output_points, number)
    return Approximation(y.astype(exact.dtype), exact, x_mask, kernel_mask)


def _spectrum_on_grid(x: jax.Array, grid: tuple[int, ...], points: list[range]) -> jax.Array:
    """The half spectrum of ``x`` ``(batch, *samples, channels)``, its samples at ``points``."""
    x = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    for number, (g, where) in enumerate(zip(grid, points, strict=True), start=1):
        x = scatter_periodic(x, g, where, number)
    return analysis(x, grid)
