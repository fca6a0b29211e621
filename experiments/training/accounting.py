"""Which frequencies a network's convolutions keep."""

from __future__ import annotations

from typing import Any

from flax import nnx

import bandjax


def compression_report(model: nnx.Module, example_shape: tuple[int, ...]) -> dict[str, Any]:
    """The true compression of each convolution and of the whole network, ready for JSON.

    The total weighs each layer with its input channels, ``1 - sum(kept * C_in) / sum(total *
    C_in)``: it is the share of all input coefficients that the network drops. Of an
    ``bandjax.Energy`` band, which may drop more, both are what it drops at least. Dense layers,
    which have no grid, do not count.

    ``bytes_dropped`` is the share of the bytes that dense convolutions would keep of their inputs
    for the backward pass, and these do not. A spectrum is complex: of a small map it may take as
    many bytes as the map although coefficients are dropped.
    """
    summary = bandjax.summary(model, (1, *example_shape))
    layers = {
        layer.path: {
            "grid": list(layer.geometry.grid),
            "modes": list(layer.geometry.modes),
            "kept": layer.geometry.kept,
            "total": layer.geometry.total,
            "inputs": layer.geometry.in_features,
            "compression": layer.compression,
        }
        for layer in summary.layers
        if layer.geometry is not None
    }
    dropped = 1 - summary.kept_bytes / summary.dense_bytes if summary.dense_bytes else 0.0
    return {"total": summary.compression, "bytes_dropped": dropped, "layers": layers}
