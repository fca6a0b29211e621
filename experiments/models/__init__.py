"""The networks, by name. Each takes a band, and is dense where the band is None."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

import bandjax
from experiments.errors import UserError
from experiments.models.cnn import CNN
from experiments.models.fcn import FCN
from experiments.models.layers import keep_spectra_in
from experiments.models.lenet import LeNet

MODELS: dict[str, Callable[..., nnx.Module]] = {"cnn": CNN, "fcn": FCN, "lenet": LeNet}


def build(
    name: str,
    example_shape: tuple[int, ...],
    classes: int,
    *,
    band: bandjax.Band,
    method: str = "auto",
    residual_dtype: str = "float32",
    seed: int = 0,
) -> nnx.Module:
    """Build a network, in inference mode, for examples of a given shape.

    Args:
        name: one of ``MODELS``.
        example_shape: ``(*spatial, channels)`` of one example.
        classes: number of outputs.
        band: the band of every convolution; None is the dense network.
        method: how bandjax computes the convolutions.
        residual_dtype: type in which the convolutions keep spectra for the backward pass.
        seed: of the initial parameters, which do not depend on the band.

    Raises:
        UserError: no such model, or it does not fit the examples.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    try:
        model = MODELS[name](example_shape, classes, band=band, method=method, rngs=nnx.Rngs(seed))
    except ValueError as error:
        raise UserError(f"model {name} on examples {example_shape}: {error}") from error
    keep_spectra_in(model, residual_dtype)
    model.eval()
    return model
