"""The densely connected network."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

import bandjax
from experiments.models.layers import Convolution, Remat, apply, convolution_of


class DenseNet(nnx.Module):
    """DenseNet-BC: each layer reads the outputs of all layers before it in its block.

    A layer is batch norm, ReLU, a 1x1 convolution to four times the growth, batch norm, ReLU and a
    3x3 convolution. Between blocks a 1x1 convolution halves the channels, average pooling the map.
    The defaults are DenseNet-121 of growth 32: with the stem for ImageNet 7,978,856 parameters for
    1000 classes.

    Reference: Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional
    networks", CVPR 2017.

    Args:
        example_shape: ``(height, width, channels)``; at least 8x8, for ImageNet's stem 29x29.
        classes: number of outputs.
        band: the band of every convolution, None for all frequencies.
        method: how bandjax computes the convolutions.
        implementation: with which kernels, see :func:`bandjax.band_conv`.
        precision: of convolutions and of the head, as in ``jax.lax``.
        growth: channels that each layer adds.
        stem: ``"cifar"``, 3x3 of stride 1; ``"imagenet"``, 7x7 of stride 2 and max pooling.
        blocks: layers of each block.
        convolution: makes a layer in place of ``bandjax.BandConv``, from the arguments of
            ``flax.nnx.Conv``; the arguments of the band are then without effect.
        remat: ``bandjax.nnx.remat`` or ``flax.nnx.remat``, applied to each block and transition;
            None for neither.
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
        growth: int = 32,
        stem: str = "cifar",
        blocks: Sequence[int] = (6, 12, 24, 16),
        convolution: Convolution | None = None,
        remat: Remat | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if len(example_shape) != 3:
            raise ValueError("needs images, (height, width, channels)")
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        # One point is left after the last transition, two before it, and so on to the image.
        least = 2 ** (len(blocks) - 1)
        least = 4 * least - 3 if stem == "imagenet" else least
        if min(example_shape[:2]) < least:
            raise ValueError(f"needs images of at least {least}x{least}, (height, width, channels)")
        conv = convolution_of(convolution, band, method, implementation, precision, rngs)
        channels = 2 * growth
        self.pool = stem == "imagenet"
        if self.pool:
            self.stem = conv(example_shape[-1], channels, (7, 7), strides=2, padding=3)
            self.stem_norm = nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)
        else:
            self.stem = conv(example_shape[-1], channels, (3, 3), padding=1)
        self.remat = remat
        parts: list[nnx.Module] = []
        for index, count in enumerate(blocks):
            if index > 0:
                parts.append(Transition(conv, channels, channels // 2, rngs))
                channels //= 2
            parts.append(DenseBlock(conv, channels, growth, count, rngs))
            channels += count * growth
        self.parts = nnx.List(parts)
        self.norm = nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(channels, classes, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of images ``(batch, height, width, channels)``."""
        x = self.stem(x)
        if self.pool:
            x = nnx.relu(self.stem_norm(x))
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for part in self.parts:
            x = apply(self.remat, part, x)
        return self.head(nnx.relu(self.norm(x)).mean(axis=(1, 2)))


class DenseLayer(nnx.Module):
    """One layer of a block: ``growth`` new channels."""

    def __init__(self, conv: Convolution, inputs: int, growth: int, rngs: nnx.Rngs) -> None:
        norm = functools.partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        self.norm1 = norm(inputs)
        self.conv1 = conv(inputs, 4 * growth, (1, 1), padding=0)
        self.norm2 = norm(4 * growth)
        self.conv2 = conv(4 * growth, growth, (3, 3), padding=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, height, width, inputs)`` to ``(batch, height, width, growth)``."""
        x = self.conv1(nnx.relu(self.norm1(x)))
        return self.conv2(nnx.relu(self.norm2(x)))


class DenseBlock(nnx.Module):
    """Layers of which each reads what all before it have made."""

    def __init__(
        self, conv: Convolution, inputs: int, growth: int, count: int, rngs: nnx.Rngs
    ) -> None:
        self.layers = nnx.List(
            DenseLayer(conv, inputs + i * growth, growth, rngs) for i in range(count)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Appends ``count * growth`` channels."""
        for layer in self.layers:
            x = jnp.concatenate([x, layer(x)], axis=-1)
        return x


class Transition(nnx.Module):
    """Between blocks: a 1x1 convolution, and average pooling that halves the map."""

    def __init__(self, conv: Convolution, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(inputs, momentum=0.9, rngs=rngs)
        self.conv = conv(inputs, outputs, (1, 1), padding=0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, height, width, inputs)`` to ``(batch, height // 2, width // 2, outputs)``."""
        x = self.conv(nnx.relu(self.norm(x)))
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))
