"""Codecs that store numbers as numbers: in a narrower type, or elsewhere."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandjax.codecs._codec import Codec


@dataclasses.dataclass(frozen=True)
class Cast(Codec):
    """Stores numbers in another floating-point type, rounded to nearest.

    Args:
      dtype: such as ``jnp.bfloat16`` or ``jnp.float8_e4m3fn``. An array whose own type has no more
        bits stays as it is.

    Round trip: the rounding error of the type, 2**-8 of a number for ``bfloat16``; not unbiased for
    one number, the same in every call. Numbers beyond the type's range become what the type makes
    of them: infinity, or NaN where it has no infinity.

    Raises:
      TypeError: no floating-point type.

    Example:
      >>> Cast(jnp.bfloat16).pack(jnp.ones((2, 3))).nbytes
      12
    """

    dtype: Any = jnp.bfloat16

    def __post_init__(self) -> None:
        try:
            dtype = jnp.dtype(self.dtype)
        except TypeError as error:
            raise TypeError(f"dtype must be a floating-point type, got {self.dtype!r}") from error
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        object.__setattr__(self, "dtype", dtype)

    def __repr__(self) -> str:
        return f"Cast({self.dtype.name})"

    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        wide = x.dtype.itemsize > self.dtype.itemsize
        return (x.astype(self.dtype) if wide else x,)

    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        return arrays[0].astype(dtype)


@dataclasses.dataclass(frozen=True)
class Offload(Codec):
    """Moves arrays to the host's pinned memory, as they are, and back for the backward pass.

    Where the backend has no such memory of its own, as on the CPU, they stay where they are.

    Round trip: exact.

    Example:
      >>> bool((Offload().unpack(Offload().pack(jnp.ones(3))) == 1).all())
      True
    """

    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        return (jax.device_put(x, jax.memory.Space.Host) if _has_host() else x,)

    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        (x,) = arrays
        return jax.device_put(x, jax.memory.Space.Device) if _has_host() else x


@functools.cache
def _has_host() -> bool:
    """Whether devices have memory of their own beside the host's."""
    device = jax.devices()[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    return device.platform != "cpu" and "pinned_host" in kinds
