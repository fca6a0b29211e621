"""The training loop: jitted steps on data that stays on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bandjax
from experiments.accounting import compression_report
from experiments.config import Settings
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.models import build


class State(NamedTuple):
    """What a step changes: parameters, batch-norm statistics, the optimizer's state."""

    params: Any
    stats: Any
    optimizer: Any


class Epoch(NamedTuple):
    """One row of the curves. Training figures are means over the epoch's own steps."""

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float


class Examples(NamedTuple):
    """A data set on the device.

    Attributes:
        x: training examples.
        y: their labels.
        test: equal batches ``(x, y, counts)`` that cover every test example; ``counts`` is False
            on what pads the last one.
        test_count: number of test examples.
        classes: number of classes.
    """

    x: jax.Array
    y: jax.Array
    test: list[tuple[jax.Array, jax.Array, jax.Array]]
    test_count: int
    classes: int


def place(dataset: Dataset, evaluation_batch: int = 256) -> Examples:
    """Move a data set to the device, once for all the trainers that use it."""
    count = len(dataset.x_test)
    batches = math.ceil(count / evaluation_batch)
    size = math.ceil(count / batches)
    # Padding repeats the first example; it is computed but not counted.
    rows = np.arange(batches * size)
    counts = rows < count
    rows[count:] = 0
    split = (np.split(a, batches) for a in (dataset.x_test[rows], dataset.y_test[rows], counts))
    return Examples(
        x=jax.device_put(dataset.x_train),
        y=jax.device_put(dataset.y_train),
        test=[jax.device_put(batch) for batch in zip(*split, strict=True)],
        test_count=count,
        classes=dataset.classes,
    )


class Trainer:
    """Trains one network at one band; the seeds share what it compiles.

    Every epoch visits the training examples in a fresh random order. Its last ``n mod
    batch_size`` examples are left out, so that all batches are equal; which ones those are
    changes from epoch to epoch. The order depends on the seed and the epoch alone, so that every
    band sees the same batches. Evaluation counts every test example.

    Args:
        settings: of the run.
        examples: the task.
        band: of every convolution.

    Attributes:
        compression: the true compression of each layer and in total.
        compile_seconds: how long the training step took to compile, 0 before the first epoch.

    Raises:
        UserError: the model does not fit the examples or the band, or a batch is larger than the
            training set.
    """

    def __init__(self, settings: Settings, examples: Examples, band: bandjax.Band) -> None:
        self.settings = settings
        self.examples = examples
        self.compile_seconds = 0.0
        self._steps = len(examples.x) // settings.batch_size
        if self._steps == 0:
            raise UserError(
                f"batch_size must be at most the number of training examples, "
                f"{len(examples.x)}, got {settings.batch_size}"
            )
        self._build = partial(
            build,
            settings.model,
            examples.x.shape[1:],
            examples.classes,
            band=band,
            method=settings.method,
            residual_dtype=settings.residual_dtype,
        )
        remat = settings.remat == "spectra"
        self._loss = bandjax.checkpoint(self._loss_of) if remat else self._loss_of
        self._optimizer = _optimizer(settings, self._steps)
        model = self.model()
        try:
            # Traces the model: a band that does not fit is found now, not after an hour.
            self.compression = compression_report(model, examples.x.shape[1:])
        except (TypeError, ValueError) as error:
            raise UserError(f"model {settings.model}: {' '.join(str(error).split())}") from error
        self._inference_graph = nnx.graphdef(model)
        model.train()
        self._training_graph = nnx.graphdef(model)
        self._step: Callable[..., Any] | None = None
        self._evaluate = jax.jit(self._evaluation_sums)

    def model(self, seed: int = 0) -> nnx.Module:
        """The network with the seed's initial parameters, in inference mode."""
        return self._build(seed=seed)

    def start(self, seed: int) -> State:
        """The state before the first step."""
        model = self.model(seed)
        params = nnx.state(model, nnx.Param)
        return State(params, nnx.state(model, nnx.BatchStat), self._optimizer.init(params))

    def run_epoch(self, state: State, seed: int, epoch: int) -> tuple[State, Epoch]:
        """Train for one epoch (numbered from 1) and evaluate. ``state`` is used up.

        Raises:
            UserError: the training loss or a parameter is no longer finite.
        """
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = jax.random.permutation(key, len(self.examples.x))
        sums = jnp.zeros(()), jnp.zeros((), jnp.int32)
        data = self.examples.x, self.examples.y
        if self._step is None:
            start = time.perf_counter()
            step = jax.jit(self._training_step, donate_argnums=(0, 1))
            self._step = step.lower(state, sums, *data, order, 0).compile()
            self.compile_seconds = time.perf_counter() - start
        start = time.perf_counter()
        # Not one scan over the epoch: XLA's CPU backend computes a convolution inside a loop with
        # a slow generic routine (measured: 60 times slower for the CNN, 5 times for LeNet).
        for index in range(self._steps):
            state, sums = self._step(state, sums, *data, order, index)
        loss, correct = float(sums[0]), int(sums[1])
        seconds = time.perf_counter() - start
        loss /= self._steps
        # The loss alone would not tell: XLA's fast maximum makes ReLU turn NaN into zero.
        if not (math.isfinite(loss) and _all_finite(state.params)):
            raise UserError(
                f"training diverged in epoch {epoch} (seed {seed}): the loss ({loss:.4g}) or a "
                "parameter is not finite; check the data or try a smaller --learning-rate"
            )
        test_loss, test_accuracy = self.evaluate(state)
        accuracy = correct / (self._steps * self.settings.batch_size)
        rate = _learning_rate(self.settings, self._steps, state.optimizer, epoch)
        return state, Epoch(loss, accuracy, test_loss, test_accuracy, rate, seconds)

    def evaluate(self, state: State) -> tuple[float, float]:
        """Mean loss and accuracy over all test examples, with the running batch statistics."""
        sums = [self._evaluate(state.params, state.stats, *batch) for batch in self.examples.test]
        loss = sum(float(loss) for loss, _ in sums)
        correct = sum(int(correct) for _, correct in sums)
        return loss / self.examples.test_count, correct / self.examples.test_count

    @cached_property
    def saved_bytes(self) -> int:
        """Bytes that one training step keeps from its forward to its backward pass."""
        params, stats, _ = self.start(0)
        size = self.settings.batch_size
        batch = self.examples.x[:size], self.examples.y[:size]
        saved = bandjax.memory.saved_bytes(
            self._loss, params, stats, *batch, argnums=0, has_aux=True
        )
        return saved.total

    def _loss_of(
        self, params: Any, stats: Any, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, Any]:
        # Batch norm writes its statistics, which must not be those of the caller: copy.
        model = nnx.merge(self._training_graph, params, stats, copy=True)
        logits = model(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        correct = jnp.sum(logits.argmax(-1) == y)
        return loss, (nnx.state(model, nnx.BatchStat), correct)

    def _training_step(
        self,
        state: State,
        sums: tuple[jax.Array, jax.Array],
        images: jax.Array,
        labels: jax.Array,
        order: jax.Array,
        index: jax.Array,
    ) -> tuple[State, tuple[jax.Array, jax.Array]]:
        size = self.settings.batch_size
        chosen = jax.lax.dynamic_slice_in_dim(order, index * size, size)
        (loss, (stats, correct)), gradient = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.stats, images[chosen], labels[chosen]
        )
        updates, optimizer = self._optimizer.update(
            gradient, state.optimizer, state.params, value=loss
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, stats, optimizer), (sums[0] + loss, sums[1] + correct)

    def _evaluation_sums(
        self, params: Any, stats: Any, x: jax.Array, y: jax.Array, counts: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(self._inference_graph, params, stats)(x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.sum(losses * counts), jnp.sum((logits.argmax(-1) == y) & counts)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _optimizer(settings: Settings, steps: int) -> optax.GradientTransformationExtraArgs:
    rate: optax.ScalarOrSchedule = settings.learning_rate
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, settings.epochs * steps)
    if settings.optimizer == "adam":
        optimizer = optax.adam(rate)
    else:
        optimizer = optax.sgd(rate, momentum=settings.momentum)
    if settings.schedule == "plateau":
        optimizer = optax.chain(
            optimizer,
            optax.contrib.reduce_on_plateau(
                settings.plateau_factor,
                settings.plateau_patience,
                accumulation_size=steps,  # compare means over epochs
            ),
        )
    return optax.with_extra_args_support(optimizer)


def _learning_rate(settings: Settings, steps: int, optimizer: Any, epoch: int) -> float:
    """The learning rate at the end of an epoch."""
    if settings.schedule == "plateau":
        return settings.learning_rate * float(optimizer[-1].scale)  # the chain's last member
    if settings.schedule == "cosine":
        decay = optax.cosine_decay_schedule(settings.learning_rate, settings.epochs * steps)
        return float(decay(epoch * steps))
    return settings.learning_rate
