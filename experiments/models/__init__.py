"""The networks, by name. Each takes a band, and is dense where the band is None."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import bandjax
from experiments.models.cnn import CNN
from experiments.models.densenet import DenseNet
from experiments.models.fcn import FCN
from experiments.models.layers import compute_in, convolutions_of
from experiments.models.lenet import LeNet
from experiments.models.resnet import ResNet, resnet8, resnet20, resnet50
from experiments.settings.compiler import quick_jit
from experiments.settings.errors import UserError

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "cnn": CNN,
    "fcn": FCN,
    "lenet": LeNet,
    "resnet8": resnet8,
    "resnet20": resnet20,  # for CIFAR
    "resnet20-projection": functools.partial(resnet20, shortcut="projection"),
    "resnet18": ResNet,  # the stem for CIFAR
    "resnet18-pool": functools.partial(ResNet, stem_pool=True),  # as the paper trains it
    "resnet50": resnet50,  # the stem for ImageNet
    "densenet121": functools.partial(DenseNet, stem="imagenet"),
    "densenet121-12": functools.partial(DenseNet, growth=12),  # the stem for CIFAR, as the paper's
    "densenet13-12": functools.partial(DenseNet, growth=12, blocks=(1, 1, 1, 1)),  # to try things
}
WITHOUT_BLOCKS = {"lenet"}


def build(
    name: str,
    example_shape: tuple[int, ...],
    classes: int,
    *,
    band: Any,
    method: str = "auto",
    implementation: str = "auto",
    residual_dtype: str = "float32",
    precision: str = "float32",
    param_domain: str = "spatial",
    remat: str = "none",
    seed: int = 0,
) -> nnx.Module:
    """Build a network, in inference mode, for examples of a given shape.

    Args:
        name: one of ``MODELS``.
        example_shape: ``(*spatial, channels)`` of one example.
        classes: number of outputs.
        band: the band of every convolution, or a ``bandjax.Plan``; None is the dense network.
        method: how bandjax computes the convolutions.
        implementation: ``xla``, ``native``, or ``auto`` for the one that bandjax chooses.
        residual_dtype: type in which the convolutions keep spectra for the backward pass.
        precision: ``float32``, ``bf16`` or ``fp16``, in which the layers compute; parameters and
            batch statistics are float32 with each.
        param_domain: ``spectral`` for filters that live in the frequency domain.
        remat: ``blocks`` for blocks that are recomputed one by one from their spectra for the
            backward pass; ``inputs`` for blocks that are recomputed from their inputs.
        seed: of the initial parameters, which do not depend on the band.

    Raises:
        UserError: no such model, or it does not fit the examples.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    if remat in ("blocks", "inputs") and name in WITHOUT_BLOCKS:
        raise UserError(f"model {name} has no blocks to recompute one by one, choose remat=spectra")
    try:
        planned = isinstance(band, bandjax.Plan)
        options = {"band": None if planned else band, "method": method}
        if remat == "blocks":
            options["remat"] = bandjax.nnx.remat
        elif remat == "inputs":
            options["remat"] = nnx.remat
        model = _begin(MODELS[name], example_shape, classes, options, jax.random.key(seed))
        if planned:
            bandjax.nnx.band_limit(model, band, method=method)
        if param_domain == "spectral":
            bandjax.nnx.to_spectral(model, (1, *example_shape))
    except ValueError as error:
        raise UserError(f"model {name} on examples {example_shape}: {error}") from error
    for layer in convolutions_of(model):
        layer.residual_dtype = jnp.dtype(residual_dtype)
        layer.implementation = None if implementation == "auto" else implementation
    compute_in(model, precision)
    model.eval()
    return model


def _begin(
    make: Callable[..., nnx.Module],
    example_shape: tuple[int, ...],
    classes: int,
    options: dict[str, Any],
    key: jax.Array,
) -> nnx.Module:
    """A network with the parameters and statistics that it begins with.

    They are made by one program: of each layer's kernel by itself, random normal numbers take XLA
    more than a second to compile, together as long as a small network's training step.
    """

    def network(key: jax.Array) -> nnx.Module:
        return make(example_shape, classes, **options, rngs=nnx.Rngs(key))

    if isinstance(key, jax.core.Tracer):  # Within another program.
        return network(key)
    model = nnx.eval_shape(lambda: network(key))
    nnx.update(model, _initial(make, example_shape, classes)(key))
    return model


@functools.cache
def _initial(
    make: Callable[..., nnx.Module], example_shape: tuple[int, ...], classes: int
) -> Callable[[jax.Array], Any]:
    """Makes parameters and statistics, in dicts. They do not depend on the band."""

    def initial(key: jax.Array) -> Any:
        model = make(example_shape, classes, band=None, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(model))

    return quick_jit(initial)
