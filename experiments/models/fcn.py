"""The fully convolutional network for time series."""

from __future__ import annotations

from itertools import pairwise

import jax
from flax import nnx

import bandjax


class FCN(nnx.Module):
    """Three blocks of 1-D convolution, batch norm and ReLU; global average pooling; a dense head.

    Filters of 8, 5 and 3 taps in banks of 128, 256 and 128, SAME padding, no other pooling.

    Reference: Wang, Yan and Oates, "Time series classification from scratch with deep neural
    networks: a strong baseline", IJCNN 2017.

    Args:
        example_shape: ``(length, channels)``.
        classes: number of outputs.
        band: the band of every convolution, None for all frequencies.
        method: how bandjax computes the convolutions.
        rngs: seeds of the parameters.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        classes: int,
        *,
        band: bandjax.Band,
        method: str = "auto",
        rngs: nnx.Rngs,
    ) -> None:
        if len(example_shape) != 2:
            raise ValueError("needs series, (length, channels)")
        taps = (8, 5, 3)
        widths = (example_shape[-1], 128, 256, 128)
        # Batch norm subtracts the mean, so a bias before it would do nothing.
        self.convs = nnx.List(
            bandjax.BandConv(i, o, (k,), use_bias=False, band=band, method=method, rngs=rngs)
            for k, (i, o) in zip(taps, pairwise(widths), strict=True)
        )
        self.norms = nnx.List(nnx.BatchNorm(o, momentum=0.9, rngs=rngs) for o in widths[1:])
        self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of series ``(batch, length, channels)``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean(axis=1))
