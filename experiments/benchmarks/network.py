"""A ResNet's training step by Flax: band-limited, dense, and with hardly any convolution."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bandjax
from experiments.benchmarks.candidates import Candidate, compile_traced
from experiments.benchmarks.layers import bandjax_name
from experiments.benchmarks.workloads import Network
from experiments.models.layers import Convolution
from experiments.models.resnet import ResNet
from experiments.settings.bands import parse_band
from experiments.settings.errors import UserError

LEARNING_RATE = 0.01
MOMENTUM = 0.9
REST = "without convolutions"


# In place of a convolution: one of its frequencies. It reads its input and writes its output, and
# hardly computes. What remains of a step is batch norm, ReLU, the additions, the head, and those
# passes over memory: an upper estimate of all but the convolutions.
ONE_FREQUENCY = functools.partial(bandjax.BandConv, band=bandjax.Modes(0, 0))


def random_examples(network: Network, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(batch, height, width, channels)``, normally distributed, and labels."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((network.batch, *network.image), np.float32)
    return images, rng.integers(network.classes, size=network.batch, dtype=np.int32)


def steps(
    network: Network,
    precision: jax.lax.Precision | None,
    methods: Sequence[str],
    implementations: Sequence[str],
    *,
    with_dense: bool,
) -> Iterator[Candidate]:
    """The step with bandjax at every band, without convolutions, and with ``flax.nnx.Conv``."""
    step = functools.partial(_candidate, network, precision)
    if with_dense:
        yield step("flax dense", "flax", None, nnx.Conv)
    for label in network.bands:
        for method in methods:
            for implementation in implementations:
                name = bandjax_name(label, method, implementation)
                yield step(
                    name,
                    "bandjax",
                    label,
                    None,
                    method=method,
                    implementation=None if implementation == "auto" else implementation,
                )
    yield step(REST, "rest", None, ONE_FREQUENCY)


def model_of(
    network: Network, band: str | None, *, training: bool = True, **options: Any
) -> ResNet:
    """The network at a band, dense where that is None."""
    model = ResNet(
        network.image,
        network.classes,
        band=None if band is None else parse_band(band)[1],
        widths=network.widths,
        blocks=network.blocks,
        rngs=nnx.Rngs(0),
        **options,
    )
    if training:
        model.train()
    else:
        model.eval()
    return model


def _candidate(
    network: Network,
    precision: jax.lax.Precision | None,
    name: str,
    side: str,
    band: str | None,
    convolution: Convolution | None,
    **options: Any,
) -> Candidate:
    """The network's training step as one side computes it, compiled; a call takes the next step."""
    images, labels = (jnp.asarray(a) for a in random_examples(network))
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)

    def loss_of(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        # Batch norm writes its statistics, which must not be those of the caller: copy.
        model = nnx.merge(graph, params, stats, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
        return losses.mean(), nnx.state(model, nnx.BatchStat)

    # The examples are arguments: of constants, XLA would compute what it can once and for all.
    def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, stats, memory = state
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, stats, x, y)
        updates, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, updates), stats, memory), loss

    try:
        model = model_of(network, band, precision=precision, convolution=convolution, **options)
        graph = nnx.graphdef(model)
        params = nnx.state(model, nnx.Param)
        state = (params, nnx.state(model, nnx.BatchStat), optimizer.init(params))
        traced = jax.jit(step, donate_argnums=0).trace(state, images, labels)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    compiled, seconds, temp_bytes = compile_traced(traced)

    def call() -> jax.Array:
        nonlocal state
        state, loss = jax.block_until_ready(compiled(state, images, labels))
        return loss

    return Candidate(
        name,
        side,
        band,
        call=call,
        results=lambda loss: (np.asarray(loss),),
        compile_seconds=seconds,
        temp_bytes=temp_bytes,
    )
