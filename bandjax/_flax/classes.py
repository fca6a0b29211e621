"""Flax's own convolutions, as they are when this module is imported.

Later on somebody may put ``BandConv`` in their place, ``nnx.Conv = bandjax.nnx.BandConv``.
"""

from __future__ import annotations

from flax.linen import BatchNorm as LinenBatchNorm
from flax.linen import Conv as LinenConv
from flax.linen import ConvLocal as LinenConvLocal
from flax.linen import ConvTranspose as LinenConvTranspose
from flax.linen import Dense as LinenDense
from flax.nnx import BatchNorm as NnxBatchNorm
from flax.nnx import Conv as NnxConv
from flax.nnx import ConvTranspose as NnxConvTranspose
from flax.nnx import Linear as NnxLinear

__all__ = [
    "LinenBatchNorm",
    "LinenConv",
    "LinenConvLocal",
    "LinenConvTranspose",
    "LinenDense",
    "NnxBatchNorm",
    "NnxConv",
    "NnxConvTranspose",
    "NnxLinear",
]
