"""Which frequencies a network's convolutions keep."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax
from flax import nnx

import bandjax


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
