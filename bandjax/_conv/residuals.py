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
# A scale is told by one byte: this many steps of it halve the scale.
_STEPS = 16
_LOWEST = 255


class Quantised(NamedTuple):
    """Integers and their scales, which every example has for itself.

    The step of a number is ``example * 2**(-(channel + frequency) / 16)``.

    Attributes:
      values: int8, a spectrum (see ``Kept``) or samples ``(N, *spatial, C)``.
      example: the largest step of each example, ``(1, ..., 1, N, 1)`` of a spectrum,
        ``(N, 1, ..., 1)`` of samples.
      channel: uint8, of each example's channels, ``(1, ..., 1, N, C)`` or ``(N, 1, ..., 1, C)``.
      frequency: uint8, of each example's frequencies, ``(*box, N, 1)``; None of samples.
    """

    values: Any
    example: Float[Array, "*example_scales"]
    channel: UInt8[Array, "*channel_scales"]
    frequency: UInt8[Array, "*frequency_scales"] | None

    def restored(self, dtype: Any) -> Any:
        """Returns the numbers that the integers stand for."""
        step = self.example * _fraction(self.channel, dtype)
        if self.frequency is not None:
            step = step * _fraction(self.frequency, dtype)
        return jax.tree.map(lambda a: a.astype(dtype) * _for(step.astype(dtype), a), self.values)


@jax.custom_jvp
def quantise(residual: Any) -> Quantised:
    """Rounds a spectrum, or samples, to 8 bits.

    A channel's scale is its largest magnitude; a frequency's the largest magnitude that any
    channel, so scaled, has there. Low frequencies are much stronger than high ones, and channels
    differ: one scale for all would leave the weak ones no bits. Examples do not share scales: what
    one keeps does not depend on the others of its batch. Infinity and NaN come back as NaN, in all
    of their example.
    """
    spectral = isinstance(residual, tuple)
    parts = residual if spectral else (residual,)
    if spectral and len(parts) == 1:
        parts = jnp.split(parts[0], 2, -1)  # packed
    rank, dtype = parts[0].ndim, parts[0].dtype
    magnitude = functools.reduce(jnp.maximum, map(jnp.abs, parts))
    points = tuple(range(rank - 2)) if spectral else tuple(range(1, rank - 1))
    channels = jnp.max(magnitude, points, keepdims=True)
    largest = jnp.max(channels, rank - 1, keepdims=True)
    largest = jnp.where(largest == 0, 1, largest)
    channel = _steps_below(channels / largest)
    step = largest * _fraction(channel, dtype)
    if spectral:
        frequency = _steps_below(jnp.max(magnitude / step, rank - 1, keepdims=True))
        step = step * _fraction(frequency, dtype)
    else:
        frequency = None
    step = step / _LARGEST

    def rounded(a: jax.Array) -> jax.Array:
        whole = jnp.round(a / _for(step, a))
        return jnp.clip(whole, -_LARGEST, _LARGEST).astype(jnp.int8)

    return Quantised(jax.tree.map(rounded, residual), largest / _LARGEST, channel, frequency)


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
