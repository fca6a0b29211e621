"""Residual networks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import bandjax
from experiments.models.layers import Convolution, Remat, apply, convolution_of


class ResNet(nnx.Module):
    """A stem, stages of residual blocks, global average pooling, a dense head.

    Each stage after the first halves the map and doubles the channels; there a 1x1 convolution of
    stride 2 makes the shortcut fit. The defaults are ResNet-18 for CIFAR: a 3x3 stem of stride 1,
    11,173,962 parameters for 10 classes. :func:`resnet20` is the small network for CIFAR,
    :func:`resnet50` the one for ImageNet.

    Reference: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016.

    Args:
        example_shape: ``(height, width, channels)``.
        classes: number of outputs.
        band: the band of every convolution, None for all frequencies.
        method: how bandjax computes the convolutions.
        implementation: with which kernels, see :func:`bandjax.band_conv`.
        precision: of convolutions and of the head, as in ``jax.lax``.
        stem: ``"cifar"``, 3x3 of stride 1; ``"imagenet"``, 7x7 of stride 2 and max pooling.
        stem_pool: whether a 3x3 max pooling of stride 2 follows the stem, as in the paper's
            CIFAR-10 experiments; by default after the stem for ImageNet alone.
        widths: channels of each stage; of its 3x3 convolutions.
        blocks: residual blocks of each stage.
        block: the kind of block, :class:`BasicBlock`, :class:`PaddedBlock` or :class:`Bottleneck`.
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
        stem: str = "cifar",
        stem_pool: bool | None = None,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        block: type[BasicBlock] | type[Bottleneck] | None = None,
        convolution: Convolution | None = None,
        remat: Remat | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if len(example_shape) != 3:
            raise ValueError("needs images, (height, width, channels)")
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        block = BasicBlock if block is None else block
        conv = convolution_of(convolution, band, method, implementation, precision, rngs)
        if stem == "cifar":
            self.stem = conv(example_shape[-1], widths[0], (3, 3), padding=1)
        else:
            self.stem = conv(example_shape[-1], widths[0], (7, 7), strides=2, padding=3)
        self.norm = nnx.BatchNorm(widths[0], momentum=0.9, rngs=rngs)
        self.stem_pool = stem == "imagenet" if stem_pool is None else stem_pool
        self.remat = remat
        layers: list[nnx.Module] = []
        inputs = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(conv, inputs, width, stride, rngs))
                inputs = width * block.expansion
        self.blocks = nnx.List(layers)
        self.head = nnx.Linear(inputs, classes, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of images ``(batch, height, width, channels)``."""
        x = nnx.relu(self.norm(self.stem(x)))
        if self.stem_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = apply(self.remat, block, x)
        return self.head(x.mean(axis=(1, 2)))


def resnet50(example_shape: tuple[int, ...], classes: int, **options: Any) -> ResNet:
    """ResNet-50 with the stem for ImageNet: 25,557,032 parameters for 1000 classes.

    The stride of a stage is in its 3x3 convolution, as in common implementations, not in the 1x1
    before it as in the paper.
    """
    defaults = {"stem": "imagenet", "blocks": (3, 4, 6, 3), "block": Bottleneck}
    return ResNet(example_shape, classes, **{**defaults, **options})


def resnet8(
    example_shape: tuple[int, ...], classes: int, *, width: int = 16, **options: Any
) -> ResNet:
    """ResNet-20 with one block instead of three in each stage: 75,290 parameters for CIFAR-10."""
    return resnet20(example_shape, classes, width=width, **{"blocks": (1, 1, 1), **options})


def resnet20(
    example_shape: tuple[int, ...],
    classes: int,
    *,
    width: int = 16,
    shortcut: str = "padded",
    **options: Any,
) -> ResNet:
    """ResNet-20 for CIFAR: 269,722 parameters for 10 classes.

    Three stages of three blocks with ``width``, twice and four times as many channels. He et al.
    name the ways in which a shortcut is made to fit: with ``shortcut="padded"`` it has no
    parameters (:class:`PaddedBlock`, their option A, which their networks for CIFAR have); with
    ``"projection"`` it is a 1x1 convolution of stride 2 with batch norm (their option B; 272,474
    parameters), which a band can keep from aliasing.

    Raises:
        ValueError: another ``shortcut``.
    """
    blocks = {"padded": PaddedBlock, "projection": BasicBlock}
    if shortcut not in blocks:
        raise ValueError(f"shortcut must be 'padded' or 'projection', got {shortcut!r}")
    defaults = {
        "widths": (width, 2 * width, 4 * width),
        "blocks": (3, 3, 3),
        "block": blocks[shortcut],
    }
    return ResNet(example_shape, classes, **{**defaults, **options})


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them.

    Args:
        conv: makes a convolution.
        inputs: channels of the input.
        width: channels of the output.
        stride: of the first convolution and of the shortcut.
        rngs: seeds of the parameters.
        projection: whether a 1x1 convolution makes the shortcut fit where it does not.
    """

    expansion = 1

    def __init__(
        self,
        conv: Convolution,
        inputs: int,
        width: int,
        stride: int,
        rngs: nnx.Rngs,
        *,
        projection: bool = True,
    ) -> None:
        norm = functools.partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        # Not SAME, which for stride 2 pads an even map on one side alone.
        self.conv1 = conv(inputs, width, (3, 3), strides=stride, padding=1)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, (3, 3), padding=1)
        self.norm2 = norm(width)
        fits = not projection or (stride == 1 and inputs == width)
        self.shortcut = None if fits else conv(inputs, width, (1, 1), strides=stride, padding=0)
        self.shortcut_norm = None if fits else norm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, height, width, inputs)`` to ``(batch, height / s, width / s, outputs)``."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(y + x)


class PaddedBlock(BasicBlock):
    """A basic block whose shortcut has no parameters.

    Where the map shrinks the shortcut takes every so many points of each axis, from the first on;
    the channels that it lacks are zero.

    Args:
        conv: makes a convolution.
        inputs: channels of the input.
        width: channels of the output, no fewer than those of the input.
        stride: of the first convolution and of the shortcut.
        rngs: seeds of the parameters.
    """

    def __init__(
        self, conv: Convolution, inputs: int, width: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        super().__init__(conv, inputs, width, stride, rngs, projection=False)
        self.stride, self.missing = stride, width - inputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, height, width, inputs)`` to ``(batch, height / s, width / s, outputs)``."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        x = x[:, :: self.stride, :: self.stride]
        return nnx.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.missing))))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm, and a shortcut around them.

    Args:
        conv: makes a convolution.
        inputs: channels of the input.
        width: channels within; the output has four times as many.
        stride: of the 3x3 convolution and of the shortcut.
        rngs: seeds of the parameters.
    """

    expansion = 4

    def __init__(
        self, conv: Convolution, inputs: int, width: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        norm = functools.partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, (1, 1), padding=0)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, (3, 3), strides=stride, padding=1)
        self.norm2 = norm(width)
        self.conv3 = conv(width, outputs, (1, 1), padding=0)
        self.norm3 = norm(outputs)
        fits = stride == 1 and inputs == outputs
        self.shortcut = None if fits else conv(inputs, outputs, (1, 1), strides=stride, padding=0)
        self.shortcut_norm = None if fits else norm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, height, width, inputs)`` to ``(batch, height / s, width / s, outputs)``."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(y + x)
