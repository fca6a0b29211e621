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
    return {"total": summary.compression, "layers": layers}
