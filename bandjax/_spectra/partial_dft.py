"""Where samples lie on a periodic grid, and the partial Fourier matrices of these positions."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bandjax._bands.boxes import kept_per_axis
from bandjax._bands.frequencies import frequencies, hermitian_weights
from bandjax._tables import tables


@tables
def fourier_matrix(
    grid: int,
    limit: int,
    points: range,
    *,
    shift: int = 0,
    half: bool = False,
    inverse: bool = False,
) -> np.ndarray:
    """Returns ``M[u, j] = exp(-2 pi i u p_j / grid)``, the kept rows of a sampled DFT.

    Args:
      grid: points on the circle.
      limit: the largest kept frequency.
      points: positions ``p_j`` on the circle, taken modulo ``grid``.
      shift: half points to add to every position.
      half: keep ``u >= 0`` alone.
      inverse: weight row ``u`` by ``c_u / grid``, with ``c_u`` the :func:`hermitian_weights` of a
        half axis and 1 of a full one. Then ``Re M^H`` of the inverse undoes ``M``.

    Returns:
      complex128, shape ``(kept, len(points))``. It is shared between calls: do not write to it.
    """
    u = frequencies(grid, limit, half=half)
    # The exact integer 2 u p mod 2 grid keeps the angle small, and so correct to the last bit.
    phase = np.outer(u, 2 * np.asarray(points, dtype=np.int64) + shift) % (2 * grid)
    matrix = np.exp(-1j * np.pi / grid * phase)
    if inverse:
        weights = hermitian_weights(grid, limit) if half else np.ones(len(u))
        matrix *= weights[:, None] / grid
    matrix.flags.writeable = False
    return matrix


# A transform of few samples is fastest as one matrix product over all axes at once.
_ONE_PRODUCT_SAMPLES = 64
_ONE_PRODUCT_ENTRIES = 1 << 19


@dataclasses.dataclass(frozen=True)
class PartialDFT:
    """Where the samples of every axis lie on the circles, and which frequencies are kept.

    Attributes:
      grid: points on the circle of each axis.
      modes: largest kept frequency of each axis.
      points: position of each sample, for each axis.
      inverse: whether the frequencies carry the weights ``c_u / g`` of an inverse transform.
      shift: half points to add to all positions of an axis, for each axis ("dft" alone).
    """

    grid: tuple[int, ...]
    modes: tuple[int, ...]
    points: tuple[range, ...]
    inverse: bool = False
    shift: tuple[int, ...] = ()

    @property
    def centred(self) -> PartialDFT:
        """The same samples, each axis shifted so that its middle lies at position zero."""
        return dataclasses.replace(self, shift=tuple(-(p[0] + p[-1]) for p in self.points))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of samples of each axis."""
        return tuple(len(points) for points in self.points)

    @property
    def box(self) -> tuple[int, ...]:
        """Number of kept frequencies of each axis."""
        return kept_per_axis(self.grid, self.modes)

    def matrix(self, axis: int) -> np.ndarray:
        """The sampled DFT matrix of one axis, complex128 ``(kept, samples)``."""
        return fourier_matrix(
            self.grid[axis],
            self.modes[axis],
            self.points[axis],
            shift=self.shift[axis] if self.shift else 0,
            half=axis == len(self.grid) - 1,
            inverse=self.inverse,
        )

    @property
    def one_product(self) -> bool:
        """Whether all axes are transformed by one matrix product."""
        dft = math.prod(self.shape)
        entries = 2 * math.prod(self.box) * dft
        return len(self.grid) == 1 or (
            dft <= _ONE_PRODUCT_SAMPLES and entries <= _ONE_PRODUCT_ENTRIES
        )


@tables
def _kronecker(dft: PartialDFT) -> np.ndarray:
    """The matrix of all axes together, complex128 ``(*box, *spatial)``."""
    rank = len(dft.grid)
    matrix = functools.reduce(np.multiply.outer, (dft.matrix(axis) for axis in range(rank)))
    return matrix.transpose([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])


def scatter_periodic(
    x: Float[Array, "*samples"], g: int, points: range, axis: int
) -> Float[Array, "*result"]:
    """Adds sample ``j`` of an axis to point ``points[j]`` (modulo g) of a circle of zeros."""
    used = (len(points) - 1) * points.step + 1
    turns = -(-used // g)
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (0, turns * g - used, points.step - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
    if turns > 1:
        x = x.reshape(*x.shape[:axis], turns, g, *x.shape[axis + 1 :]).sum(axis)
    return jnp.roll(x, points.start, axis)


def gather_periodic(x: Float[Array, "*grid"], points: range, axis: int) -> Float[Array, "*result"]:
    """Reads point ``points[i]`` (modulo g) of an axis as sample ``i``."""
    used = (len(points) - 1) * points.step + 1
    x = jnp.roll(x, -points.start, axis)
    turns = -(-used // x.shape[axis])
    if turns > 1:
        x = jnp.concatenate([x] * turns, axis)
    return jax.lax.slice_in_dim(x, 0, used, points.step, axis)
