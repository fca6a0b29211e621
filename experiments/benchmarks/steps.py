"""Training steps of whole networks: dense, band-limited, recomputed from spectra."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bandjax
from experiments.models.densenet import DenseNet
from experiments.models.fcn import FCN
from experiments.models.layers import convolutions_of
from experiments.models.resnet import ResNet, resnet50
from experiments.models.unet import UNet3D
from experiments.models.vit import ViT
from experiments.settings.bands import parse_band

DENSE = "none"
EXACT = "exact"  # Dense too, by the library's own convolutions.


@dataclass(frozen=True)
class Task:
    """A network and what it is trained on.

    Attributes:
        make: the network, of an example's shape and a number of classes.
        shape: of an example, channels last.
        classes: of the outputs.
        batch: examples in a step, unless another number is asked for.
        labels: shape of an example's labels; of a volume one a voxel.
    """

    make: Callable[..., nnx.Module]
    shape: tuple[int, ...]
    classes: int
    batch: int
    labels: tuple[int, ...] = ()


_jit = jax.jit  # In one place, so that tests can compile with less effort.
TASKS = {
    "resnet18": Task(ResNet, (32, 32, 3), 10, 32),
    "resnet18-pool": Task(functools.partial(ResNet, stem_pool=True), (32, 32, 3), 10, 64),
    "densenet121": Task(functools.partial(DenseNet, growth=12), (32, 32, 3), 10, 32),
    "resnet50": Task(resnet50, (224, 224, 3), 1000, 8),
    "fcn": Task(FCN, (270, 1), 50, 16),
    "fcn-long": Task(FCN, (16384, 1), 50, 4),
    "unet3d": Task(UNet3D, (32, 32, 32, 1), 2, 2, labels=(32, 32, 32)),
    "vit": Task(ViT, (32, 32, 3), 10, 32),
}


@dataclass(frozen=True)
class Variant:
    """How a step keeps what its backward pass needs.

    Attributes:
        about: for the table.
        residual_dtype: of the spectra.
        whole: makes of the loss another function.
        block: makes of a block's call another function.
    """

    about: str
    residual_dtype: str = "float32"
    whole: Callable[..., Any] | None = None
    block: Callable[..., Any] | None = None


_SPECTRA = functools.partial(jax.checkpoint, policy=bandjax.save_spectra)
VARIANTS = {
    "plain": Variant("everything"),
    "blocks": Variant("each block's input (jax.checkpoint)", block=nnx.remat),
    "spectra": Variant("spectra alone", whole=_SPECTRA),
    "spectra-blocks": Variant("spectra, each block's input", block=bandjax.nnx.remat),
    "bfloat16": Variant("spectra alone, bfloat16", "bfloat16", whole=_SPECTRA),
    "int8": Variant("spectra alone, int8", "int8", whole=_SPECTRA),
}
OF_DENSE = ("plain", "blocks")  # No spectra, nothing to keep of them.


class Step:
    """A training step of one network, band and variant, by SGD with momentum.

    Attributes:
        loss: of parameters, other state, examples and labels; with the new state.
        first: parameters, other state and optimizer before the first step.
        jitted: the step, of a state, examples and labels; returns the new state and the loss.
    """

    def __init__(
        self,
        network: str,
        band: str,
        variant: str,
        batch: int,
        codec: bandjax.codecs.Codec | None = None,
    ) -> None:
        task, how = TASKS[network], VARIANTS[variant]
        options: dict[str, Any] = {"band": None, "convolution": nnx.Conv}
        if band == EXACT:
            options = {"band": None}
        elif band != DENSE:
            options = {"band": parse_band(band)[1]}
        model = task.make(task.shape, task.classes, **options, remat=how.block, rngs=nnx.Rngs(0))
        for layer in convolutions_of(model):
            layer.residual_dtype = jnp.dtype(how.residual_dtype)
        model.train()
        graph, params, stats = nnx.split(model, nnx.Param, ...)
        optimizer = optax.sgd(0.01, momentum=0.9)
        self.first = params, stats, optimizer.init(params)
        self._batch = (batch, *task.shape), (batch, *task.labels)
        self._classes = task.classes

        def loss_of(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params, stats, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
            return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

        self.loss = loss_of if how.whole is None else how.whole(loss_of)
        if codec is not None:
            self.loss = bandjax.compress_saved(self.loss, codec)

        def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
            params, stats, memory = state
            gradient_of = jax.value_and_grad(self.loss, has_aux=True)
            (loss, stats), gradient = gradient_of(params, stats, x, y)
            updates, memory = optimizer.update(gradient, memory, params)
            return (optax.apply_updates(params, updates), stats, memory), loss

        self.jitted = _jit(step, donate_argnums=0)

    def saved(self) -> bandjax.memory.SavedBytes:
        """What the backward pass keeps."""
        params, stats, _ = self.first
        images, labels = self._batch
        x = jax.ShapeDtypeStruct(images, "float32")
        y = jax.ShapeDtypeStruct(labels, "int32")
        return bandjax.memory.saved_bytes(self.loss, params, stats, x, y, argnums=0, has_aux=True)

    def compiled(self) -> tuple[bandjax.memory.CompiledBytes, Callable[[], Any]]:
        """XLA's figures, and the step ready to be timed."""
        rng = np.random.default_rng(0)
        images, labels = self._batch
        x = jnp.asarray(rng.standard_normal(images, np.float32))
        y = jnp.asarray(rng.integers(self._classes, size=labels, dtype=np.int32))
        state = self.first
        used = bandjax.memory.compiled_bytes(self.jitted, state, x, y)

        def call() -> jax.Array:
            nonlocal state
            state, loss = jax.block_until_ready(self.jitted(state, x, y))
            return loss

        return used, call
