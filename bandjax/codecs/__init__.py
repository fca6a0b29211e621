"""Ways to store the arrays that a backward pass needs, see :func:`bandjax.compress_saved`.

A codec is a small frozen object with ``pack(x)``, ``unpack(packed)`` and ``nbytes(shape)``.
"""

from __future__ import annotations

from bandjax.codecs._codec import Codec, Packed
from bandjax.codecs._dct import Dct
from bandjax.codecs._groups import Average, Uniform
from bandjax.codecs._plain import Cast, Offload

__all__ = ["Average", "Cast", "Codec", "Dct", "Offload", "Packed", "Uniform"]
