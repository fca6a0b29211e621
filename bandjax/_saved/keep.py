"""Values as they are kept: by a codec, in bits, or as they are."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from bandjax._saved.choice import is_mask
from bandjax.codecs._bits import pack_bits, unpack_bits
from bandjax.codecs._codec import Codec

PREFIX = "bandjax_saved "
BITS = "bits"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["stored"], meta_fields=["how", "aval"]
)
@dataclasses.dataclass(frozen=True)
class Kept:
    """One value.

    Attributes:
      stored: arrays.
      how: a codec; "bits" for booleans; or the number of bits of small integers; None for as it is.
      aval: shape and type.
    """

    stored: Any
    how: Codec | str | int | None
    aval: jax.ShapeDtypeStruct

    @property
    def value(self) -> jax.Array:
        """The value, as far as it was kept."""
        if self.how is None:
            return self.stored
        if isinstance(self.how, Codec):
            return self.how.unpack(self.stored)
        shape = self.aval.shape
        if self.how == BITS:
            return unpack_bits(self.stored, shape)
        kind: Any = np.dtype(self.aval.dtype).type
        planes = (unpack_bits(plane, shape).astype(kind) for plane in self.stored)
        total: Any = sum(plane << kind(bit) for bit, plane in enumerate(planes))
        return total

    def held(self, hold: Any) -> Kept:
        """The same, with ``hold`` applied to each array that was packed."""
        if self.how is None:
            return self
        return dataclasses.replace(self, stored=jax.tree.map(hold, self.stored))


def keep(value: jax.Array, codec: Codec | None, bits: bool) -> Kept:
    """Keeps a value: by a codec, if there is one; booleans in bits, if they may be; or as it is."""
    aval = jax.ShapeDtypeStruct(value.shape, value.dtype)
    if codec is not None:
        return Kept(_named(codec.pack(value), repr(codec)), codec, aval)
    if bits and is_mask(aval):
        return Kept(_named(pack_bits(value), BITS), BITS, aval)
    return Kept(value, None, aval)


def keep_signs(value: jax.Array) -> Kept:
    """Keeps in bits which numbers are above zero."""
    return Kept(_named(pack_bits(value), BITS), BITS, jax.ShapeDtypeStruct(value.shape, jnp.bool_))


def keep_integers(value: jax.Array, count: int) -> Kept:
    """Keeps integers from 0 to ``count - 1``, unsigned, as planes of bits."""
    bits = max(1, (count - 1).bit_length())
    kind = np.dtype(value.dtype).type
    planes = [pack_bits(((value >> kind(bit)) & kind(1)).astype(jnp.uint8)) for bit in range(bits)]
    aval = jax.ShapeDtypeStruct(value.shape, value.dtype)
    return Kept(_named(planes, BITS), bits, aval)


def _named(tree: Any, label: str) -> Any:
    """Names packed arrays, so that what is kept can be told by codec."""
    return jax.tree.map(lambda a: checkpoint_name(a, PREFIX + label), tree)
