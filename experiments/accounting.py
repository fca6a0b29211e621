"""What a network's convolutions keep: frequencies, and bytes for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
from flax import nnx
from jax.extend import core

import bandjax


def saved_bytes(loss: Callable[..., jax.Array], params: Any, *inputs: Any) -> int:
    """Bytes that the forward pass of ``loss(params, *inputs)`` keeps for its backward pass.

    Counted on JAX's own program of the forward pass, before any compiler sees it: each distinct
    array that the backward pass reads, unless it is a parameter, an input or a constant, which
    are in memory in any case.

    Example:
        The product rule needs ``sin(p)`` and its derivative's ``cos(p)``; ``x`` is an input.

        >>> import jax.numpy as jnp
        >>> p = x = jnp.ones(10, jnp.float32)
        >>> saved_bytes(lambda p, x: jnp.sum(jnp.sin(p) * x), p, x)  # cos(p)
        40

    Args:
        loss: differentiated with respect to ``params``.
        params: a tree of arrays.
        inputs: further trees of arrays, passed on.
    """

    def kept(params: Any, inputs: Any) -> list[jax.Array]:
        _, backward = jax.vjp(lambda p: loss(p, *inputs), params)
        return jax.tree.leaves(backward)

    program = jax.make_jaxpr(kept)(params, inputs).jaxpr
    outputs = {v for v in program.outvars if not isinstance(v, core.Literal)}
    outputs -= {*program.invars, *program.constvars}
    return sum(v.aval.size * v.aval.dtype.itemsize for v in outputs)


def conv_geometries(
    model: nnx.Module, input_shape: tuple[int, ...]
) -> dict[str, bandjax.ConvGeometry]:
    """Grid, kept box and true compression of every ``BandConv``, by its path in the model.

    The model runs once on shapes alone, in the order of its layers, while calls of the layer
    class are observed.

    Args:
        model: any model; it is not changed.
        input_shape: ``(batch, *spatial, channels)``.
    """
    shapes: dict[int, tuple[int, ...]] = {}
    call = bandjax.BandConv.__call__

    def observed(layer: bandjax.BandConv, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        shapes[id(layer)] = x.shape
        return call(layer, x, *args, **kwargs)

    def run(x: jax.Array) -> jax.Array:  # new each time: JAX would not trace the model again
        return model(x)

    with mock.patch.object(bandjax.BandConv, "__call__", observed):
        jax.eval_shape(run, jax.ShapeDtypeStruct(input_shape, "float32"))
    return {
        ".".join(map(str, path)): layer.geometry(shapes[id(layer)])
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, bandjax.BandConv) and id(layer) in shapes
    }


def compression_report(model: nnx.Module, example_shape: tuple[int, ...]) -> dict[str, Any]:
    """The true compression of each convolution and of the whole network, ready for JSON.

    The total weighs each layer with its input channels, ``1 - sum(kept * C_in) / sum(total *
    C_in)``: it is the share of all input coefficients that the network drops.
    """
    geometries = conv_geometries(model, (1, *example_shape))
    channels = {
        ".".join(map(str, path)): layer.in_features
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, bandjax.BandConv)
    }
    kept = sum(g.kept * channels[path] for path, g in geometries.items())
    total = sum(g.total * channels[path] for path, g in geometries.items())
    layers = {
        path: {
            "grid": list(g.grid),
            "modes": list(g.modes),
            "kept": g.kept,
            "total": g.total,
            "compression": g.compression,
        }
        for path, g in geometries.items()
    }
    return {"total": 1 - kept / total, "layers": layers}
