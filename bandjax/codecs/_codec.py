"""What all codecs have in common."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["shape", "dtype"],
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """An array as a codec stores it.

    Attributes:
      arrays: what is stored.
      shape: of the array.
      dtype: of the array.
    """

    arrays: tuple[jax.Array, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes that are stored."""
        return sum(a.size * a.dtype.itemsize for a in self.arrays)


class Codec(abc.ABC):
    """Stores real arrays in fewer bytes, with a loss.

    Arrays are ``(N, *spatial, C)`` with one to three spatial axes, or matrices ``(rows, C)``.
    Examples (rows) are stored each for itself. Floating types of 16, 32 and 64 bits come back in
    their own type; codecs compute in float32, in which a larger number is infinite.
    """

    def pack(self, x: jax.Array) -> Packed:
        """Stores an array.

        Raises:
          TypeError: it is not of real floating-point numbers.
        """
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x must be of real floating-point numbers, got {x.dtype}")
        shape, dtype = tuple(x.shape), np.dtype(x.dtype)
        if 0 in shape:
            return Packed((), shape, dtype)
        return Packed(self._pack(_first_order(x)), shape, dtype)

    def unpack(self, packed: Packed) -> jax.Array:
        """Returns the array, in its shape and type."""
        if 0 in packed.shape:
            return jnp.zeros(packed.shape, packed.dtype)
        return self._unpack(packed.arrays, packed.shape, packed.dtype)

    def nbytes(self, shape: tuple[int, ...], dtype: Any = np.float32) -> int:
        """Bytes that an array of a shape takes. Nothing is computed."""
        packed = jax.eval_shape(self.pack, jax.ShapeDtypeStruct(tuple(shape), dtype))
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in packed.arrays)

    def each(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[Codec]:
        """The codec of each array that a function keeps, of their shapes in order."""
        return [self] * len(shapes)

    @abc.abstractmethod
    def _pack(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Stores an array that is not empty."""

    @abc.abstractmethod
    def _unpack(
        self, arrays: tuple[jax.Array, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> jax.Array:
        """Undoes :meth:`_pack`."""


@jax.custom_jvp
def _first_order(x: jax.Array) -> jax.Array:
    return x


@_first_order.defjvp
def _first_order_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "what is stored by a codec has no derivative: compress_saved has first derivatives in "
        "reverse mode alone; take higher ones of the function itself"
    )


def check_bits(
    name: str, bits: Any, low: float, high: float, *, whole: bool = False, above: bool = False
) -> None:
    """Raises TypeError or ValueError unless ``low <= bits <= high``; ``above``: ``low < bits``."""
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(bits, bool) or not isinstance(bits, kind):
        raise TypeError(f"{name} must be {'an integer' if whole else 'a number'}, got {bits!r}")
    bits = float(bits)
    if not low <= bits <= high or (above and bits == low):
        least = "<" if above else "<="
        raise ValueError(f"{name} must satisfy {low:g} {least} {name} <= {high:g}, got {bits}")
