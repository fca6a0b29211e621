"""LeNet with two convolutions, for CIFAR-10."""

from __future__ import annotations

import jax
from flax import nnx

import bandjax


class LeNet(nnx.Module):
    """Two 5x5 convolutions with ReLU and 2x2 max pooling, then dense layers of 120, 84, classes.

    The convolutions have 6 and 16 filters and no padding, as in PyTorch's CIFAR-10 tutorial.

    Args:
        example_shape: ``(height, width, channels)``; at least 16x16.
        classes: number of outputs.
        band: the band of both convolutions, None for all frequencies.
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
        if len(example_shape) != 3 or min(example_shape[:2]) < 16:
            raise ValueError("needs images of at least 16x16, (height, width, channels)")
        height, width, channels = example_shape
        self.conv1 = bandjax.BandConv(
            channels, 6, (5, 5), padding="VALID", band=band, method=method, rngs=rngs
        )
        self.conv2 = bandjax.BandConv(
            6, 16, (5, 5), padding="VALID", band=band, method=method, rngs=rngs
        )
        # Each convolution takes 4 off an axis, each pooling halves it.
        flat = 16 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
        self.dense1 = nnx.Linear(flat, 120, rngs=rngs)
        self.dense2 = nnx.Linear(120, 84, rngs=rngs)
        self.head = nnx.Linear(84, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of images ``(batch, height, width, channels)``."""
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        x = nnx.relu(self.dense1(x))
        return self.head(nnx.relu(self.dense2(x)))
