"""A U-Net for volumes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

import bandjax
from experiments.models.layers import Convolution, Remat, apply, convolution_of


class UNet3D(nnx.Module):
    """Levels of two 3x3x3 convolutions, down and up again, with skips between equal sizes.

    Average pooling halves the volume on the way down, nearest-neighbour enlargement doubles it on
    the way up, where the level's own maps are appended.

    Reference: Cicek, Abdulkadir, Lienkamp, Brox and Ronneberger, "3D U-Net: learning dense
    volumetric segmentation from sparse annotation", MICCAI 2016.

    Args:
        example_shape: ``(depth, height, width, channels)``, each size divisible by two to the
            number of levels less one.
        classes: number of outputs of each voxel.
        band: the band of every convolution but the last 1x1x1, None for all frequencies.
        method: how bandjax computes the convolutions.
        implementation: with which kernels, see :func:`bandjax.band_conv`.
        precision: of convolutions and of the head, as in ``jax.lax``.
        widths: channels of each level.
        convolution: makes a layer in place of ``bandjax.BandConv``, from the arguments of
            ``flax.nnx.Conv``; the arguments of the band are then without effect.
        remat: ``bandjax.nnx.remat`` or ``flax.nnx.remat``, applied to each level; None for
            neither.
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
        widths: Sequence[int] = (16, 32, 64),
        convolution: Convolution | None = None,
        remat: Remat | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if len(example_shape) != 4:
            raise ValueError("needs volumes, (depth, height, width, channels)")
        step = 2 ** (len(widths) - 1)
        if any(size % step for size in example_shape[:-1]):
            raise ValueError(f"needs sizes divisible by {step}, got {example_shape[:-1]}")
        conv = convolution_of(convolution, band, method, implementation, precision, rngs)
        level = functools.partial(Level, conv, rngs=rngs)
        inputs = (example_shape[-1], *widths[:-1])
        self.down = nnx.List(level(i, o) for i, o in zip(inputs, widths, strict=True))
        self.up = nnx.List(
            level(below + own, own)
            for below, own in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.remat = remat
        self.head = nnx.Linear(widths[0], classes, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, *size, classes)`` of volumes ``(batch, *size, channels)``."""
        skips = []
        for level in self.down:
            if skips:
                x = nnx.avg_pool(x, (2, 2, 2), strides=(2, 2, 2))
            x = apply(self.remat, level, x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            for axis in (1, 2, 3):
                x = jnp.repeat(x, 2, axis)
            x = apply(self.remat, level, jnp.concatenate([x, skips.pop()], axis=-1))
        return self.head(x)


class Level(nnx.Module):
    """Two 3x3x3 convolutions with batch norm and ReLU."""

    def __init__(self, conv: Convolution, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = conv(inputs, outputs, (3, 3, 3), padding=1)
        self.norm1 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.conv2 = conv(outputs, outputs, (3, 3, 3), padding=1)
        self.norm2 = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, *size, inputs)`` to ``(batch, *size, outputs)``."""
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(x)))
