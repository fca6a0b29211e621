"""What the larger networks share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import bandjax

Convolution = Callable[..., nnx.Module]
Remat = Callable[[Callable[..., Any]], Callable[..., Any]]


def convolution_of(
    convolution: Convolution | None,
    band: bandjax.Band,
    method: str,
    implementation: str | None,
    precision: jax.lax.PrecisionLike,
    rngs: nnx.Rngs,
) -> Convolution:
    """Makes the layers of a network; ``bandjax.BandConv`` unless another kind is given."""
    if convolution is None:
        convolution = functools.partial(
            bandjax.BandConv, band=band, method=method, implementation=implementation
        )
    # Batch norm subtracts the mean, so a bias before it would do nothing.
    return functools.partial(convolution, use_bias=False, precision=precision, rngs=rngs)


def apply(remat: Remat | None, block: nnx.Module, *args: Any) -> Any:
    """Calls a block, by ``remat`` if there is one."""
    call = type(block).__call__
    return (call if remat is None else remat(call))(block, *args)


def conv_block(layers: nnx.List, x: jax.Array) -> jax.Array:
    """Convolution, batch norm and ReLU; ``layers`` are the first two."""
    conv, norm = layers
    return nnx.relu(norm(conv(x)))


def convolutions_of(model: nnx.Module) -> Iterator[bandjax.BandConv]:
    """Every ``bandjax.BandConv`` of a model."""
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, bandjax.BandConv):
            yield layer


PRECISIONS = {"bf16": jnp.bfloat16, "fp16": jnp.float16}


def compute_in(model: nnx.Module, precision: str) -> None:
    """Sets the type in which every layer of a model computes and gives its output.

    A layer rounds its input and parameters itself, so that parameters and their gradients stay
    float32; batch norm takes its statistics in float32 whatever the type.

    Args:
        model: changed in place.
        precision: ``float32``, ``bf16`` or ``fp16``.
    """
    if precision == "float32":
        return
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Conv | nnx.Linear | nnx.BatchNorm):
            layer.dtype = PRECISIONS[precision]
