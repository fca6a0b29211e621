"""What is saved for the backward pass: the input's spectrum or the input, in a narrower type."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from bandjax._spectra.types import InputSpectrum, PackedSpectrum, compute_dtype

SPECTRUM_NAME = "bandjax_spectrum"
FILTER_NAME = "bandjax_filter_spectrum"

Kept: TypeAlias = InputSpectrum | tuple[PackedSpectrum]
"""A spectrum as a method keeps it: two times ``(*box, N, C)``, or packed ``(*box, N, 2 C)``."""

Residual: TypeAlias = Kept | Float[Array, "N *spatial C"]
"""The input's spectrum, or the input, ``(N, *spatial, C)``."""


def with_name(tree: Any, name: str) -> Any:
    """Names every array of a tree, for ``jax.checkpoint`` policies."""
    return jax.tree.map(lambda a: checkpoint_name(a, name), tree)


@dataclasses.dataclass(frozen=True)
class ResidualFormat:
    """In which numbers a residual is stored.

    Attributes:
      dtype: floating, or int8 (then with scales, see :class:`Quantised`).
      scale: what a floating residual is divided by while it is stored.
      read_as_stored: whether the reader takes bfloat16 as it is, beside float32.
    """

    dtype: np.dtype[Any]
    scale: int = 1
    read_as_stored: bool = False

    def encode(self, residual: Residual, dtype: np.dtype[Any]) -> Residual | Quantised:
        """Rounds a residual of an input of type ``dtype``."""
        if self.dtype == jnp.int8:
            return quantise(jax.tree.map(lambda a: a.astype(compute_dtype(dtype)), residual))
        if self.scale != 1:
            residual = jax.tree.map(lambda a: a / self.scale, residual)
        return jax.tree.map(lambda a: a.astype(self.dtype), residual)

    def decode(self, stored: Residual | Quantised, dtype: np.dtype[Any]) -> Residual:
        """Returns the stored numbers in ``dtype``, in which the reader computes."""
        if isinstance(stored, Quantised):
            return stored.restored(dtype)
        if self.read_as_stored and self.dtype == jnp.bfloat16 and dtype != jnp.float64:
            return stored
        residual: Residual = jax.tree.map(lambda a: a.astype(dtype), stored)
        if self.scale != 1:
            residual = jax.tree.map(lambda a: a * self.scale, residual)
        return residual


_LARGEST = 127


class Quantised(NamedTuple):
    """Integers and their scales.

    Attributes:
      values: int8, a spectrum (see ``Kept``) or samples ``(N, *spatial, C)``.
      channel: scales ``(1, ..., 1, C)``.
      frequency: scales ``(*box, 1, 1)``, which multiply the channel's; a single one of samples.
    """

    values: Any
    channel: Float[Array, "*channel_scales"]
    frequency: Float[Array, "*frequency_scales"]

    def restored(self, dtype: Any) -> Any:
        """Returns the numbers that the integers stand for."""
        scale = (self.channel * self.frequency).astype(dtype)
        return jax.tree.map(lambda a: a.astype(dtype) * _for(scale, a), self.values)


@jax.custom_jvp
def quantise(residual: Any) -> Quantised:
    """Rounds a spectrum, or samples, to 8 bits.

    A channel's scale is its largest magnitude; a frequency's the largest magnitude that any
    channel, so scaled, has there. Low frequencies are much stronger than high ones, and channels
    differ: one scale for all would leave the weak ones no bits. Infinity and NaN come back as NaN.
    """
    spectral = isinstance(residual, tuple)
    parts = residual if spectral else (residual,)
    if spectral and len(parts) == 1:
        parts = jnp.split(parts[0], 2, -1)  # packed
    rank = parts[0].ndim
    magnitude = functools.reduce(jnp.maximum, map(jnp.abs, parts))
    channel = _positive(jnp.max(magnitude, tuple(range(rank - 1)), keepdims=True))
    axes = (rank - 2, rank - 1) if spectral else tuple(range(rank))
    frequency = _positive(jnp.max(magnitude / channel, axes, keepdims=True)) / _LARGEST
    scale = channel * frequency
    values = jax.tree.map(lambda a: jnp.round(a / _for(scale, a)).astype(jnp.int8), residual)
    return Quantised(values, channel, frequency)


@quantise.defjvp
def _quantise_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "residual_dtype int8 has first derivatives alone: an integer has no derivative; "
        "keep a floating type for higher ones"
    )


def _for(scale: jax.Array, a: jax.Array) -> jax.Array:
    """The scales of all channels; of a packed spectrum those of its real and imaginary parts."""
    packed = a.shape[-1] == 2 * scale.shape[-1]
    return jnp.concatenate([scale, scale], -1) if packed else scale


def _positive(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1, scale)
