"""A small vision transformer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import Remat, apply


class ViT(nnx.Module):
    """Patches as tokens, encoder blocks, the mean of the tokens, a dense head. No convolution.

    Reference: Dosovitskiy et al., "An image is worth 16x16 words: transformers for image
    recognition at scale", ICLR 2021.

    Args:
        example_shape: ``(height, width, channels)``, the sizes divisible by ``patch``.
        classes: number of outputs.
        patch: points of a patch along each axis.
        width: features of a token.
        depth: encoder blocks.
        heads: of the attention.
        remat: ``flax.nnx.remat``, applied to each block; None for neither.
        rngs: seeds of the parameters.
        options: those of convolutions, which it does without.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        classes: int,
        *,
        patch: int = 4,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        remat: Remat | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        height, wide, channels = example_shape
        if height % patch or wide % patch:
            raise ValueError(f"the sizes must be divisible by {patch}, got {height}x{wide}")
        self.patch, self.remat = patch, remat
        self.embed = nnx.Linear(patch * patch * channels, width, rngs=rngs)
        tokens = height * wide // patch**2
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, width)))
        self.blocks = nnx.List([EncoderBlock(width, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``(batch, classes)`` of images ``(batch, height, width, channels)``."""
        batch, height, wide, channels = x.shape
        p = self.patch
        x = x.reshape(batch, height // p, p, wide // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        x = self.embed(x.reshape(batch, -1, p * p * channels)) + self.position[None]
        for block in self.blocks:
            x = apply(self.remat, block, x)
        return self.head(self.norm(x).mean(1))


class EncoderBlock(nnx.Module):
    """Attention and a two-layer network, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Of tokens ``(batch, tokens, width)``."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(jnp.asarray(nnx.gelu(self.up(self.norm2(x)))))
