"""The residual network for CIFAR-sized images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

import bandjax

Convolution = Callable[..., nnx.Module]


class ResNet(nnx.Module):
    """ResNet-18: a stem, stages of basic blocks, global average pooling, a dense head.

    The stem is a 3x3 convolution of stride 1. Each later stage halves the map and doubles the
    channels; there a 1x1 convolution of stride 2 makes the shortcut fit. The defaults give
    11,173,962 parameters for 10 classes.

    Reference: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016.

    Args:
        example_shape: ``(height, width, channels)``.
        classes: number of outputs.
        band: the band of every convolution, 3x3 and 1x1, None for all frequencies.
        method: how bandjax computes the convolutions.
        implementation: with which kernels, see :func:`bandjax.band_conv`.
        precision: of convolutions and of the head, as in ``jax.lax``.
        stem_pool: whether a 3x3 max pooling of stride 2 follows the stem, as in the paper's
            CIFAR-10 experiments.
        widths: channels of each stage.
        blocks: basic blocks of each stage.
        convolution: makes a layer in place of ``bandjax.BandConv``, from the arguments of
            ``flax.nnx.Conv``; the three arguments of the band are then without effect.
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
        stem_pool: bool = False,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        convolution: Convolution | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if len(example_shape) != 3:
            raise ValueError("needs images, (height, width, channels)")
        if convolution is None:
            convolution = functools.partial(
                bandjax.BandConv, band=band, method=method, implementation=implementation
            )
        # Batch norm subtracts the mean, so a bias before it would do nothing.
        conv = functools.partial(convolution, use_bias=False, precision=precision, rngs=rngs)
        self.stem = conv(example_shape[-1], widths[0], (3, 3), padding=1)
        self.norm = nnx.BatchNorm(widths[0], momentum=0.9, rngs=rngs)
        self.stem_pool = stem_pool
        layers = []
        inputs = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(conv, inputs, width, stride, rngs))
                inputs = width
        self.blocks = nnx.List(layers)
        self.head = nnx.Linear(inputs, classes, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of images ``(batch, height, width, channels)``."""
        x = nnx.relu(self.norm(self.stem(x)))
        if self.stem_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them.

    Args:
        conv: makes a convolution.
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution and of the shortcut.
        rngs: seeds of the parameters.
    """

    def __init__(
        self, conv: Convolution, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        norm = functools.partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        # Not SAME, which for stride 2 pads an even map on one side alone.
        self.conv1 = conv(inputs, outputs, (3, 3), strides=stride, padding=1)
        self.norm1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, (3, 3), padding=1)
        self.norm2 = norm(outputs)
        fits = stride == 1 and inputs == outputs
        self.shortcut = None if fits else conv(inputs, outputs, (1, 1), strides=stride, padding=0)
        self.shortcut_norm = None if fits else norm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, height, width, inputs)`` to ``(batch, height / s, width / s, outputs)``."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(y + x)
