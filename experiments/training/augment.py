"""Random flips and shifts of images, inside the jitted step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

SHIFT = 4


def flip_and_crop(key: jax.Array, images: jax.Array) -> jax.Array:
    """Flip and crop each image by chance, as is usual for CIFAR.

    An image is mirrored left to right with probability one half, then shifted along each axis by
    a whole number of pixels from -4 to 4, all alike likely. What moves in is zero, which is the
    mean colour of standardised images.

    Args:
        key: of all the random numbers.
        images: ``(batch, height, width, channels)``.

    Returns:
        Images of the same shape.
    """
    count = len(images)
    for_flip, for_shift = jax.random.split(key)
    flip = jax.random.bernoulli(for_flip, 0.5, (count, 1, 1, 1))
    images = jnp.where(flip, images[:, :, ::-1], images)
    edges = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    padded = jnp.pad(images, edges)
    corners = jax.random.randint(for_shift, (count, 2), 0, 2 * SHIFT + 1)
    # Of each image for itself, so that no device needs the images of another.
    crop = functools.partial(jax.lax.dynamic_slice, slice_sizes=images.shape[1:])
    return jax.vmap(lambda image, corner: crop(image, (corner[0], corner[1], 0)))(padded, corners)
