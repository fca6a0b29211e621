"""Flax's own convolutions, as they are when this module is imported.

Later on somebody may put ``BandConv`` in their place, ``nnx.Conv = bandjax.nnx.BandConv``.
"""

from __future__ import annotations

from flax.linen import Conv as LinenConv
from flax.linen import ConvLocal as LinenConvLocal
from flax.linen import ConvTranspose as LinenConvTranspose
from flax.nnx import Conv as NnxConv
from flax.nnx import ConvTranspose as NnxConvTranspose

__all__ = ["LinenConv", "LinenConvLocal", "LinenConvTranspose", "NnxConv", "NnxConvTranspose"]
