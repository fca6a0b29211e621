"""A ResNet by Flax: band-limited, dense, and with hardly any convolution; steps and inference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bandjax
from experiments.benchmarks.candidates import Candidate, compile_traced, jax_precision
from experiments.benchmarks.examples import LEARNING_RATE, MOMENTUM, random_examples
from experiments.benchmarks.layers import bandjax_name
from experiments.benchmarks.workloads import Network
from experiments.models.layers import Convolution, compute_in
from experiments.models.resnet import ResNet
from experiments.settings.bands import parse_band
from experiments.settings.errors import UserError

REST = "without convolutions"


# In place of a convolution: one of its frequencies. It reads its input and writes its output, and
# hardly computes. What remains of a step is batch norm, ReLU, the additions, the head, and those
# passes over memory: an upper estimate of all but the convolutions.
ONE_FREQUENCY = functools.partial(bandjax.BandConv, band=bandjax.Modes(0, 0))


def band_limited(
    network: Network,
    direction: str,
    precision: str,
    device: str,
    methods: Sequence[str],
    implementations: Sequence[str],
) -> Iterator[Candidate]:
    """The network by bandjax at every band, and without convolutions."""
    same = (network, direction, precision, device)
    for label in network.bands:
        for method in methods:
            for implementation in implementations:
                name = bandjax_name(label, method, implementation)
                kernels = None if implementation == "auto" else implementation
                options = {"method": method, "implementation": kernels}
                yield _candidate(*same, name, "bandjax", label, None, **options)
    yield _candidate(*same, REST, "rest", None, ONE_FREQUENCY)


def dense(network: Network, direction: str, precision: str, device: str) -> Candidate:
    """The network with ``flax.nnx.Conv``."""
    return _candidate(network, direction, precision, device, "flax dense", "flax", None, nnx.Conv)


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
        stem_pool=network.stem_pool,
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
    direction: str,
    precision: str,
    device: str,
    name: str,
    side: str,
    band: str | None,
    convolution: Convolution | None,
    **options: Any,
) -> Candidate:
    """The network as one side computes it, compiled; the arguments are those of its model."""
    images, labels = (jnp.asarray(a) for a in random_examples(network))
    try:
        exactly = jax_precision(precision, device)
        training = direction == "train"
        model = model_of(
            network,
            band,
            training=training,
            precision=exactly,
            convolution=convolution,
            **options,
        )
        compute_in(model, "bf16" if precision == "bf16" else "float32")
        if side != "flax" and not training:
            spectra = jnp.bfloat16 if precision == "bf16" else None
            model, _ = bandjax.nnx.prepare(model, images, dtype=spectra)
        traced, call = _step(model, images, labels) if training else _logits(model, images)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error
    compiled, seconds, temp_bytes = compile_traced(traced)
    return Candidate(
        name,
        side,
        band,
        call=functools.partial(call, compiled),
        results=lambda done: (np.asarray(done, np.float32),),
        compile_seconds=seconds,
        temp_bytes=temp_bytes,
    )


def _step(model: ResNet, images: jax.Array, labels: jax.Array) -> tuple[Any, Callable[..., Any]]:
    """A training step, traced, and what calls it when it is compiled: each time the next step."""
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    graph = nnx.graphdef(model)
    params = nnx.state(model, nnx.Param)
    state = (params, nnx.state(model, nnx.BatchStat), optimizer.init(params))

    def loss_of(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        # Batch norm writes its statistics, which must not be those of the caller: copy.
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(x).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), nnx.state(model, nnx.BatchStat)

    # The examples are arguments: of constants, XLA would compute what it can once and for all.
    def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, stats, memory = state
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, stats, x, y)
        updates, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, updates), stats, memory), loss

    def call(compiled: Callable[..., Any]) -> jax.Array:
        nonlocal state
        state, loss = jax.block_until_ready(compiled(state, images, labels))
        return loss

    return jax.jit(step, donate_argnums=0).trace(state, images, labels), call


def _logits(model: ResNet, images: jax.Array) -> tuple[Any, Callable[..., Any]]:
    """Inference, traced, and what calls it when it is compiled."""
    graph, state = nnx.split(model)

    def logits(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    def call(compiled: Callable[..., Any]) -> jax.Array:
        return jax.block_until_ready(compiled(state, images))

    return jax.jit(logits).trace(state, images), call
