"""Spectra of kernels, and kernels of spectra."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._bands.band import Modes
from bandjax._bands.boxes import kept_per_axis
from bandjax._bands.frequencies import hermitian_weights
from bandjax._spectra.partial_dft import PartialDFT
from bandjax._spectra.transform import TransformSpec, to_spectrum
from bandjax._spectra.types import compute_dtype


def modes_of_box(box: Sequence[int], grid: Sequence[int]) -> tuple[int, ...]:
    """Returns the limits ``U`` of a box with as many coefficients on each axis.

    Raises:
      ValueError: no box of the grid has this shape.
    """
    if len(box) != len(grid):
        raise ValueError(f"kernel_grid must have {len(box)} axes, got {tuple(grid)}")
    limits = (*(n // 2 for n in box[:-1]), box[-1] - 1)
    for axis, (g, limit) in enumerate(zip(grid, limits, strict=True)):
        if limit > g // 2:
            raise ValueError(
                f"kernel_spectrum has frequencies up to {limit} on axis {axis}, but its grid of "
                f"{g} has none above {g // 2}"
            )
    if kept_per_axis(tuple(grid), limits) != tuple(box):
        raise ValueError(
            f"kernel_spectrum must hold both signs of each frequency, and u >= 0 on the last axis: "
            f"no box of a grid of {tuple(grid)} has {tuple(box)} coefficients"
        )
    return limits


def kernel_to_spectrum(
    kernel: Float[Array, "*taps c O"],
    grid: Sequence[int],
    modes: Sequence[int],
    *,
    centre: Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "2 *box c O"]:
    """Returns the spectrum of a kernel, measured from its centre.

        W[u] = sum_t w[t] exp(-2 pi i u (d t - centre) / g)

    Args:
      kernel: ``(*taps, in / groups, out)``.
      grid: points on the circle of each axis.
      modes: largest kept frequency of each axis.
      centre: of each axis, in points from the first tap; by default that of SAME padding,
        ``(d (k - 1)) // 2``. That of a convolution is its lower padding.
      dilation: points between taps.

    Returns:
      ``(2, *box, in / groups, out)`` of the type of ``kernel``: real and imaginary part.

    Raises:
      ValueError: not one value for each axis, or a limit beyond the grid.
    """
    dft = _samples(kernel.shape[:-2], grid, modes, centre, dilation)
    compute = compute_dtype(kernel.dtype)
    exactly = TransformSpec("dft", jax.lax.Precision.HIGHEST)
    return jnp.stack(to_spectrum(exactly, dft, kernel.astype(compute))).astype(kernel.dtype)


def spectrum_to_kernel(
    kernel_spectrum: Float[Array, "2 *box c O"],
    kernel_size: Sequence[int],
    grid: Sequence[int],
    *,
    centre: Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*taps c O"]:
    """Returns the kernel of a size whose spectrum is nearest; undoes :func:`kernel_to_spectrum`.

    Nearest by least squares over the box, with the half of it that is not stored. A spectrum that
    :func:`kernel_to_spectrum` made comes back as the kernel it was made of if on each axis the box
    has at least as many frequencies, both signs counted, as the kernel has taps; of kernels that
    the box cannot tell apart it is the one of least norm. With every frequency kept, the taps that
    a filter has elsewhere are cut off. ``kernel_to_spectrum`` of the result tells what is lost. The
    fewer frequencies for the taps, the more is rounding amplified.

    Args:
      kernel_spectrum: ``(2, *box, in / groups, out)``.
      kernel_size: taps of each axis.
      grid, centre, dilation: see :func:`kernel_to_spectrum`.

    Returns:
      ``(*taps, in / groups, out)`` of the type of ``kernel_spectrum``.

    Raises:
      ValueError: not one value for each axis, or no box of ``grid`` has the spectrum's shape.
    """
    taps, grid = tuple(kernel_size), tuple(grid)
    modes = modes_of_box(kernel_spectrum.shape[1:-2], grid)
    dft = _samples(taps, grid, modes, centre, dilation)
    rank = len(taps)
    matrix = functools.reduce(np.multiply.outer, (dft.matrix(axis) for axis in range(rank)))
    matrix = matrix.transpose([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])
    matrix = matrix.reshape(-1, math.prod(taps))
    # A coefficient counts as often as it stands in the whole spectrum.
    weights = np.sqrt(hermitian_weights(grid[-1], modes[-1]))
    weights = np.broadcast_to(weights, dft.box).reshape(-1, 1)
    rows = np.concatenate([matrix.real * weights, matrix.imag * weights])
    inverse = np.linalg.pinv(rows, rcond=len(rows) * np.finfo(rows.dtype).eps)
    inverse = inverse.reshape(*taps, 2, -1) * weights[:, 0]
    inverse = inverse.reshape(*taps, 2, *dft.box)
    compute = compute_dtype(kernel_spectrum.dtype)
    kernel = jnp.tensordot(
        jnp.asarray(inverse, compute),
        kernel_spectrum.astype(compute),
        axes=rank + 1,
        precision=jax.lax.Precision.HIGHEST,
    )
    return kernel.astype(kernel_spectrum.dtype)


def _samples(
    taps: Sequence[int],
    grid: Sequence[int],
    modes: Sequence[int],
    centre: Sequence[int] | None,
    dilation: int | Sequence[int],
) -> PartialDFT:
    """Where the taps of a kernel lie, measured from its centre."""
    rank, grid = len(taps), tuple(grid)
    steps = (dilation,) * rank if isinstance(dilation, int) else tuple(dilation)
    if centre is None:
        centre = [(d * (k - 1)) // 2 for k, d in zip(taps, steps, strict=True)]
    for name, values in (("grid", grid), ("centre", centre)):
        if len(values) != rank:
            raise ValueError(f"{name} must have one value for each of the {rank} axes of taps")
    points = (range(-c, k * d - c, d) for k, d, c in zip(taps, steps, centre, strict=True))
    return PartialDFT(grid, Modes(*modes).modes(grid), tuple(points))
