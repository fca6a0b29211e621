"""The fully convolutional network for time series."""

from __future__ import annotations

from itertools import pairwise

import jax
from flax import nnx

import bandjax
from experiments.models.layers import Convolution, Remat, conv_block, convolution_of


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
        implementation: with which kernels, see :func:`bandjax.band_conv`.
        precision: of convolutions and of the head, as in ``jax.lax``.
        convolution: makes a layer in place of ``bandjax.BandConv``, from the arguments of
            ``flax.nnx.Conv``; the arguments of the band are then without effect.
        remat: ``bandjax.nnx.remat`` or ``flax.nnx.remat``, applied to each block; None for neither.
        rngs: seeds of the parameters.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        classes: int,
        *,
        band: bandjax.Band,
        method: str = "auto",
        implementation: str | None = None,
        precision: jax.lax.PrecisionLike = None,
        convolution: Convolution | None = None,
        remat: Remat | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if len(example_shape) != 2:
            raise ValueError("needs series, (length, channels)")
        taps = (8, 5, 3)
        widths = (example_shape[-1], 128, 256, 128)
        conv = convolution_of(convolution, band, method, implementation, precision, rngs)
        self.convs = nnx.List(
            conv(i, o, (k,)) for k, (i, o) in zip(taps, pairwise(widths), strict=True)
        )
        self.norms = nnx.List(nnx.BatchNorm(o, momentum=0.9, rngs=rngs) for o in widths[1:])
        self.remat = remat
        self.head = nnx.Linear(widths[-1], classes, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of series ``(batch, length, channels)``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            block = conv_block if self.remat is None else self.remat(conv_block)
            x = block(nnx.List([conv, norm]), x)
        return self.head(x.mean(axis=1))
