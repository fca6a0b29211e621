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
from jaxtyping import Float, UInt8

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
# The scale of a channel is told by one byte: so many steps of it halve the scale.
_STEPS = 16
_LOWEST = 255


class Quantised(NamedTuple):
    """Integers and their scales, which every example has for itself.

    The step of a number is ``frequency * 2**(-channel / 16)``.

    Attributes:
      values: int8, a spectrum (see ``Kept``) or samples ``(N, *spatial, C)``.
      channel: uint8, of each example's channels, ``(1, ..., 1, N, C)`` of a spectrum,
        ``(N, 1, ..., 1, C)`` of samples.
      frequency: bfloat16 (float32 of float64), of each example's frequencies, ``(*box, N, 1)``; of
        samples one for each example, ``(N, 1, ..., 1)``.
    """

    values: Any
    channel: UInt8[Array, "*channel_scales"]
    frequency: Float[Array, "*frequency_scales"]

    def restored(self, dtype: Any) -> Any:
        """Returns the numbers that the integers stand for."""
        step = self.frequency.astype(dtype) * _fraction(self.channel, dtype)
        return jax.tree.map(lambda a: a.astype(dtype) * _for(step, a), self.values)


@jax.custom_jvp
def quantise(residual: Any) -> Quantised:
    """Rounds a spectrum, or samples, to 8 bits.

    A channel's scale is its largest magnitude; a frequency's the largest magnitude that any
    channel, so scaled, has there. Low frequencies are much stronger than high ones, and channels
    differ: one scale for all would leave the weak ones no bits. Examples do not share scales: what
    one keeps does not depend on the others of its batch. Infinity and NaN come back as NaN, in all
    of their frequency or example.
    """
    spectral = isinstance(residual, tuple)
    parts = residual if spectral else (residual,)
    if spectral and len(parts) == 1:
        parts = jnp.split(parts[0], 2, -1)  # packed
    rank, dtype = parts[0].ndim, parts[0].dtype
    magnitude = functools.reduce(jnp.maximum, map(jnp.abs, parts))
    points = tuple(range(rank - 2)) if spectral else tuple(range(1, rank - 1))
    channels = jnp.max(magnitude, points, keepdims=True)
    channel = _steps_below(channels / _positive(jnp.max(channels, rank - 1, keepdims=True)))
    axes = (rank - 1,) if spectral else (*points, rank - 1)
    scaled = magnitude / _fraction(channel, dtype)
    frequency = _positive(jnp.max(scaled, axes, keepdims=True)) / _LARGEST
    # Rounded, it moves the largest number by a quarter of a step at most. (XLA may leave out a
    # rounding that is a mere change of type and back; what is kept would then differ.)
    if dtype == jnp.float64:
        frequency = frequency.astype(jnp.float32)
    else:
        frequency = jax.lax.reduce_precision(frequency, 8, 7).astype(jnp.bfloat16)
    step = frequency.astype(dtype) * _fraction(channel, dtype)

    def rounded(a: jax.Array) -> jax.Array:
        whole = jnp.round(a / _for(step, a))
        return jnp.clip(whole, -_LARGEST, _LARGEST).astype(jnp.int8)

    return Quantised(jax.tree.map(rounded, residual), channel, frequency)


def _positive(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1, scale)


def _steps_below(fraction: jax.Array) -> jax.Array:
    """The largest number of steps whose :func:`_fraction` is no less; that of NaN is any."""
    steps = jnp.floor(-_STEPS * jnp.log2(jnp.clip(fraction, 2.0 ** (-_LOWEST / _STEPS), 1)))
    return jnp.where(jnp.isnan(steps), 0, steps).astype(jnp.uint8)


def _fraction(steps: jax.Array, dtype: Any) -> jax.Array:
    return jnp.exp2(-steps.astype(dtype) / _STEPS)


def _for(scale: jax.Array, a: jax.Array) -> jax.Array:
    """The scales of all channels; of a packed spectrum those of its real and imaginary parts."""
    packed = a.shape[-1] == 2 * scale.shape[-1]
    return jnp.concatenate([scale, scale], -1) if packed else scale


@quantise.defjvp
def _quantise_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "residual_dtype int8 has first derivatives alone: an integer has no derivative; "
        "keep a floating type for higher ones"
    )
