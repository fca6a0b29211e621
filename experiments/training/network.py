"""One network at one band: its compiled step and its evaluation."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import bandjax
from experiments.cluster.devices import ONE, Devices
from experiments.data.examples import Examples
from experiments.data.streaming import StreamedExamples
from experiments.models import build
from experiments.settings.codecs import parse_codec
from experiments.settings.config import Settings
from experiments.settings.errors import UserError
from experiments.training.accounting import compression_report
from experiments.training.augment import flip_and_crop
from experiments.training.optimizer import LossScale

Record = dict[str, Any]

_jit = jax.jit  # In one place, so that tests can compile with less effort.


class State(NamedTuple):
    """What a step changes. It is the same for every band.

    Attributes:
        params: parameters, float32, in dicts.
        stats: batch-norm statistics, float32, in dicts.
        optimizer: the optimizer's and the schedule's state.
        scale: of the loss, None unless the precision is ``fp16``.
    """

    params: Any
    stats: Any
    optimizer: Any
    scale: LossScale | None


class Sums(NamedTuple):
    """What an epoch's steps add up.

    Attributes:
        steps: how many they are.
        loss: sum of the steps' mean losses.
        correct: number of training examples that were classified right.
        bad: the first step, from 1, whose loss or gradient was not finite; 0 if there is none.
    """

    steps: jax.Array
    loss: jax.Array
    correct: jax.Array
    bad: jax.Array

    @staticmethod
    def zero() -> Sums:
        """Before the first step."""
        none = jnp.int32(0)
        return Sums(none, jnp.float32(0), none, none)


class Network:
    """One network at one band: its functions, compiled.

    Args:
        settings: of the run.
        examples: the task.
        band: of every convolution, or a plan.
        optimizer: the trainer's.
        devices: that share the work.

    Attributes:
        compression: the true compression of each layer and in total; of an ``Energy`` band the
            least that it can be.
        compile_seconds: how long the training step took to compile, 0 before the first step.

    Raises:
        UserError: the model does not fit the examples or the band.
    """

    def __init__(
        self,
        settings: Settings,
        examples: Examples | StreamedExamples,
        band: Any,
        optimizer: optax.GradientTransformationExtraArgs,
        devices: Devices = ONE,
    ) -> None:
        self.settings = settings
        self._devices = devices
        self.compile_seconds = 0.0
        self._optimizer = optimizer
        shape = examples.shape
        self.model = partial(
            build,
            settings.model,
            shape,
            examples.classes,
            band=band,
            method=settings.method,
            implementation=settings.implementation,
            residual_dtype=settings.residual_dtype,
            precision=settings.precision,
            param_domain=settings.param_domain,
            remat=settings.remat,
        )
        self._dynamic = isinstance(band, bandjax.Energy)
        codec = parse_codec(settings.saved)
        self.loss = self._loss_of
        if settings.remat in ("spectra", "blocks"):
            self.loss = bandjax.checkpoint(self._loss_of)
        elif codec is not None:
            self.loss = bandjax.compress_saved(self._loss_of, codec)
        try:
            model = self.model()
            # Traces the model: a band that does not fit is found now, not after an hour.
            self.compression = compression_report(model, shape)
        except (TypeError, ValueError) as error:
            raise UserError(f"model {settings.model}: {' '.join(str(error).split())}") from error
        self._inference_graph = nnx.graphdef(model)
        model.train()
        self._training_graph = nnx.graphdef(model)
        self._compiled: tuple[Any, ...] | None = None
        self.evaluate = _jit(self._evaluation_sums)

    def step(self, state: State, sums: Sums, data: tuple[jax.Array, ...]) -> tuple[State, Sums]:
        """Takes an epoch's next step. ``state`` is used up.

        Args:
            state: before the step.
            sums: before the step. They tell which one it is: a number of Python's would have to be
                taken to the device.
            data: examples, labels, their order in this epoch and the epoch's key; or the examples
                of this step alone, their labels, their order and the epoch's key.
        """
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self._compile(state, sums, data)
            self.compile_seconds = time.perf_counter() - start
        first, further, update = self._compiled
        # Not one scan over the batches: XLA's CPU backend computes a convolution inside a loop
        # with a slow generic routine (measured: 60 times slower for the CNN, 5 times for LeNet).
        part = None
        for batch in range(self.settings.accumulate - 1):
            add = first if part is None else further
            stats, part = add(
                state.params, state.stats, part, state.scale, *data, sums.steps, batch
            )
            state = state._replace(stats=stats)
        return update(state, part, sums, *data)

    def _compile(self, state: State, sums: Sums, data: tuple[jax.Array, ...]) -> tuple[Any, ...]:
        """A step's first batch, those between, and its last one with the step itself."""
        count = self.settings.accumulate
        add = _jit(self._add_gradient, donate_argnums=(1, 2))
        first = further = part = None

        def lower(part: Any) -> Any:
            return add.lower(state.params, state.stats, part, state.scale, *data, sums.steps, 0)

        if count > 1:
            lowered = lower(None)
            part = lowered.out_info[1]
            first = lowered.compile()
        if count > 2:
            further = lower(part).compile()
        update = _jit(self._update, donate_argnums=0)
        return first, further, update.lower(state, part, sums, *data).compile()

    @property
    def temporary_bytes(self) -> int | None:
        """Bytes that XLA sets aside for what a step computes on its way, beside the state.

        The most of any of the step's programs; None before the first step, and where XLA does not
        tell.
        """
        programs = [program for program in self._compiled or () if program is not None]
        sizes = [program.memory_analysis() for program in programs]
        if not sizes or None in sizes:
            return None
        return max(int(size.temp_size_in_bytes) for size in sizes)

    def _loss_of(
        self, params: Any, stats: Any, x: jax.Array, y: jax.Array, scale: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        # Batch norm writes its statistics, which must not be those of the caller: copy.
        model = nnx.merge(self._training_graph, params, stats, copy=True)
        logits = model(x).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        share = self.settings.label_smoothing
        if share:
            even = -jax.nn.log_softmax(logits).mean(-1)
            losses = (1 - share) * losses + share * even
        loss = losses.mean()
        correct = jnp.sum(logits.argmax(-1) == y)
        scaled = loss if scale is None else loss * scale
        return scaled, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), loss, correct)

    def _add_gradient(
        self,
        params: Any,
        stats: Any,
        part: Any,
        scale: LossScale | None,
        images: jax.Array,
        labels: jax.Array,
        order: jax.Array,
        key: jax.Array,
        step: jax.Array,
        batch: jax.Array | int,
    ) -> tuple[Any, Any]:
        """The gradient of one of a step's batches, added to the sum ``part`` of those before it."""
        size = self.settings.batch_size
        batch = step * self.settings.accumulate + batch
        # Modulo: the order may be that of the step alone. The rows are gathered all the same, so
        # that the program, and with it the rounding, is that of examples on the device.
        chosen = jax.lax.dynamic_slice_in_dim(order, batch * size % len(order), size)
        x, y = self._devices.constrain_batch((images[chosen], labels[chosen]))
        if self.settings.augment == "flip-crop":
            x = flip_and_crop(jax.random.fold_in(key, batch), x)
        factor = None if scale is None else scale.scale
        (_, (stats, loss, correct)), gradient = jax.value_and_grad(self.loss, has_aux=True)(
            params, stats, x, y, factor
        )
        own = gradient, loss, correct
        total = own if part is None else jax.tree.map(jnp.add, part, own)
        return self._devices.constrain_state((stats, total))

    def _update(self, state: State, part: Any, sums: Sums, *data: jax.Array) -> tuple[State, Sums]:
        """The last batch of a step, and the step."""
        count = self.settings.accumulate
        stats, (gradient, loss, correct) = self._add_gradient(
            state.params, state.stats, part, state.scale, *data, sums.steps, count - 1
        )
        scale = 1.0 if state.scale is None else state.scale.scale
        if count > 1 or state.scale is not None:
            gradient = jax.tree.map(lambda g: g / (count * scale), gradient)
        loss = loss / count
        finite = all_finite(gradient)
        updates, optimizer = self._optimizer.update(
            gradient, state.optimizer, state.params, value=loss
        )
        after = State(optax.apply_updates(state.params, updates), stats, optimizer, None)
        healthy = finite & jnp.isfinite(loss)
        if state.scale is not None:
            # A gradient that overflowed is left out and the scale halved; at a scale of 1 it is
            # the network itself that diverges.
            kept = State(state.params, stats, state.optimizer, None)
            after = _either(finite, jnp.isfinite(loss), after, kept)
            after = after._replace(scale=state.scale.after(finite))
            healthy |= jnp.isfinite(loss) & (state.scale.scale > 1)
        steps = sums.steps + 1
        bad = jnp.where((sums.bad == 0) & ~healthy, steps, sums.bad)
        sums = Sums(steps, sums.loss + loss, sums.correct + correct, bad)
        return self._devices.constrain_state((after, sums))

    def _evaluation_sums(
        self, params: Any, stats: Any, x: jax.Array, y: jax.Array, counts: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Of a test batch the sum of losses, the number of right answers, what each layer dropped.

        ``counts`` is False on examples that pad the batch; what was dropped is told by layers whose
        band follows the energy.
        """
        model = nnx.merge(self._inference_graph, params, stats)
        found = {}
        if self._dynamic:
            logits, sown = nnx.capture(model, nnx.Intermediate)(x)
            found = {
                ".".join(map(str, path[:-1])): value.get_value()[0]
                for path, value in nnx.to_flat_state(sown)
                if path[-1] == "compression"
            }
        else:
            logits = model(x)
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.sum(losses * counts), jnp.sum((logits.argmax(-1) == y) & counts), found

    def compression_of(self, found: list[dict[str, jax.Array]]) -> Record:
        """The compression report, with what an ``Energy`` band dropped on average over batches."""
        if not self._dynamic:
            return self.compression
        layers = {
            path: {**layer, "compression": sum(float(each[path]) for each in found) / len(found)}
            for path, layer in self.compression["layers"].items()
        }
        weights = [layer["total"] * layer["inputs"] for layer in layers.values()]
        dropped = [layer["compression"] for layer in layers.values()]
        total = sum(w * d for w, d in zip(weights, dropped, strict=True)) / sum(weights)
        return {**self.compression, "total": total, "layers": layers}


def all_finite(tree: Any) -> jax.Array:
    """Whether no number of the arrays is NaN or infinite.

    The largest magnitude tells: the maximum with NaN is NaN. A CPU finds it in half of the time
    that it takes for ``isfinite`` of each.
    """
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]
    return jnp.isfinite(jnp.array(largest)).all()


def _either(finite: jax.Array, seen: jax.Array, new: State, old: State) -> State:
    """The new state where the gradient was finite.

    A plateau's means are over epochs, whose steps it counts: it takes every loss that was
    ``seen``, or those of later epochs would be cut elsewhere.
    """

    def is_plateau(part: Any) -> bool:
        return isinstance(part, optax.contrib.ReduceLROnPlateauState)

    def choose(new: Any, old: Any) -> Any:
        taken = seen if is_plateau(new) else finite
        return jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, old)

    return jax.tree.map(choose, new, old, is_leaf=is_plateau)
