"""A small CNN for 8x8 images."""

from __future__ import annotations

from itertools import pairwise

import jax
from flax import nnx

import bandjax
from experiments.models.layers import Remat, conv_block


class CNN(nnx.Module):
    """Three 3x3 convolutions with batch norm and ReLU, global average pooling, a dense head.

    There is no pooling in between: on maps smaller than 8x8 a band is too coarse to choose.

    Args:
        example_shape: ``(height, width, channels)``.
        classes: number of outputs.
        band: the band of every convolution, None for all frequencies.
        method: how bandjax computes the convolutions.
        remat: ``bandjax.nnx.remat`` or ``flax.nnx.remat``, applied to each convolution with what
            follows it; None for neither.
        rngs: seeds of the parameters.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        classes: int,
        *,
        band: bandjax.Band,
        method: str = "auto",
        remat: Remat | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if len(example_shape) != 3:
            raise ValueError("needs images, (height, width, channels)")
        widths = (example_shape[-1], 32, 64, 64)
        # Batch norm subtracts the mean, so a bias before it would do nothing.
        self.convs = nnx.List(
            bandjax.BandConv(i, o, (3, 3), use_bias=False, band=band, method=method, rngs=rngs)
            for i, o in pairwise(widths)
        )
        self.norms = nnx.List(nnx.BatchNorm(o, momentum=0.9, rngs=rngs) for o in widths[1:])
        self.remat = remat
        self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of images ``(batch, height, width, channels)``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            block = conv_block if self.remat is None else self.remat(conv_block)
            x = block(nnx.List([conv, norm]), x)
        return self.head(x.mean(axis=(1, 2)))
