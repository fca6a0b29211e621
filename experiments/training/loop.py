"""The training loop: jitted steps on data that stays on the device, or is streamed to it."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

import bandjax
from bandjax.schedule import band_key
from experiments.cluster.devices import ONE, Devices
from experiments.cluster.processes import share
from experiments.data.examples import Examples
from experiments.data.streaming import StreamedExamples
from experiments.settings.config import Settings
from experiments.settings.errors import UserError
from experiments.training.network import Network, State, Sums, all_finite
from experiments.training.optimizer import LossScale, learning_rate, make_optimizer
from experiments.training.pace import Pace

CALIBRATION_BATCHES = 8


class Epoch(NamedTuple):
    """One row of the curves. Training figures are means over the epoch's own steps."""

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float
    compression: float = 0.0  # of the whole network; with an Energy band on the test examples
    bytes_dropped: float = 0.0  # share of dense convolutions' bytes that is not kept for backward


class Watch(Protocol):
    """Called after each step, which may still be running on the device.

    ``state`` and ``sums`` are those after ``done`` steps of the epoch, valid until it returns;
    ``before`` are the sums of an earlier step, which has ended, and ``seconds`` is the epoch's
    time so far.
    """

    def __call__(
        self, done: int, state: State, sums: Sums, before: Sums, seconds: float
    ) -> None: ...


class Trainer:
    """Trains one network; the seeds share what it compiles.

    Every epoch visits the training examples in a fresh random order. Its last examples, fewer
    than a step takes, are left out, so that all batches are equal; which ones those are changes
    from epoch to epoch. Order and augmentation depend on the seed, the epoch and the step alone,
    so that every band sees the same batches and a resumed run those that it would have seen.
    Evaluation counts every test example.

    Args:
        settings: of the run.
        examples: the task.
        band: of every convolution, or a plan, until :meth:`use` changes it.
        devices: that share the work; the examples were placed on them.

    Attributes:
        steps: steps in an epoch.
        network: the one in use.
        compression: the report of the network in use, after an evaluation with what an ``Energy``
            band dropped.

    Raises:
        UserError: the model does not fit the examples or the band, or a step takes more examples
            than there are.
    """

    def __init__(
        self,
        settings: Settings,
        examples: Examples | StreamedExamples,
        band: Any,
        devices: Devices = ONE,
    ) -> None:
        self.settings = settings
        self.examples = examples
        self.devices = devices
        size = settings.batch_size * settings.accumulate
        self.steps = examples.count // size
        if self.steps == 0:
            times = "" if settings.accumulate == 1 else " times accumulate"
            raise UserError(
                f"batch_size{times} must be at most the number of training examples, "
                f"{examples.count}, got {size}"
            )
        if settings.batch_size % devices.data:
            raise UserError(
                f"batch_size must be a multiple of the {devices.data} parts that the mesh makes of "
                f"a batch, got {settings.batch_size}"
            )
        if settings.augment != "none" and len(examples.shape) != 3:
            raise UserError(f"augment needs images, got examples {examples.shape}")
        self._optimizer = make_optimizer(settings, self.steps)
        self._networks: dict[Any, Network] = {}
        self._drawn: dict[tuple[int, int], tuple[jax.Array, jax.Array]] = {}
        self.network = self.use(band)
        self.compression = self.network.compression

    def use(self, band: Any) -> Network:
        """Change the band of the following epochs; each band is compiled once.

        Raises:
            UserError: the band does not fit, or another one has spectral parameters.
        """
        key = band_key(band)
        if key not in self._networks:
            if self._networks and self.settings.param_domain == "spectral":
                raise UserError("spectral parameters belong to one band, which cannot change")
            self._networks[key] = Network(
                self.settings, self.examples, band, self._optimizer, self.devices
            )
        self.network = self._networks[key]
        self._pace = Pace()
        return self.network

    def forget_all_but(self, bands: Iterable[Any]) -> None:
        """Drop what was compiled for other bands, plans of another run for instance."""
        keys = set(map(band_key, bands))
        self._networks = {key: net for key, net in self._networks.items() if key in keys}

    def calibrate(self, state: State, energy: bandjax.Energy) -> bandjax.Plan:
        """A plan for the network as it is, from its first training examples.

        Of several processes the first one's: rounding elsewhere may give a larger box.
        """
        model = self.network.model()
        nnx.update(model, *self.devices.gather((state.params, state.stats)))
        size = self.settings.batch_size
        x, _ = self.devices.gather(self.examples.head(CALIBRATION_BATCHES * size))
        batches = [x[i : i + size] for i in range(0, len(x) - size + 1, size)]
        plan = share(lambda: json.dumps(bandjax.calibrate(model, batches, energy).as_dict()))
        return bandjax.Plan.from_dict(json.loads(plan))

    @property
    def compilations(self) -> int:
        """How many bands' steps have been compiled."""
        return sum(network.compile_seconds > 0 for network in self._networks.values())

    def start(self, seed: int) -> State:
        """The state before the first step."""
        model = self.network.model(seed=seed)
        # Of plain dicts: JAX takes Flax's states apart, and builds them, in Python at every step.
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        scale = LossScale.first() if self.settings.precision == "fp16" else None
        stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        state = State(params, stats, self._optimizer.init(params), scale)
        # Weakly typed scalars would not survive a checkpoint.
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)
        return state if self.devices is ONE else self.devices.place_state(state)

    def no_steps(self) -> Sums:
        """The sums before an epoch's first step."""
        return Sums.zero() if self.devices is ONE else self.devices.replicate(Sums.zero())

    def run_epoch(
        self,
        state: State,
        seed: int,
        epoch: int,
        *,
        done: int = 0,
        sums: Sums | None = None,
        seconds: float = 0.0,
        watch: Watch | None = None,
    ) -> tuple[State, Epoch]:
        """Train for one epoch (numbered from 1) and evaluate. ``state`` is used up.

        Args:
            state: before the first step that is to be taken.
            seed: of the run.
            epoch: its number.
            done: steps of it that have been taken already.
            sums: what those added up.
            seconds: how long they took.
            watch: called after each step.

        Raises:
            UserError: the loss, a gradient or a parameter is no longer finite.
        """
        batches = self._epoch_data(seed, epoch, done)
        sums = self.no_steps() if sums is None else sums
        pace = self._pace
        pace.begin(sums)
        start = time.perf_counter() - seconds
        for index in range(done, self.steps):
            compiled = self.network.compile_seconds
            state, sums = self.network.step(state, sums, next(batches))
            start += self.network.compile_seconds - compiled
            pace.started(index + 1 - done, sums)
            if watch is not None:
                watch(index + 1, state, sums, pace.ended, time.perf_counter() - start)
        loss, correct = float(sums.loss) / self.steps, int(sums.correct)
        seconds = time.perf_counter() - start
        self.check_finite(sums, seed, epoch)
        # A step too large for float32 shows in no gradient if it is the epoch's last.
        if not _tree_finite(state.params):
            self._diverged(self.steps, seed, epoch)
        if epoch < self.settings.epochs:  # While the test examples are evaluated.
            self._drawn[seed, epoch + 1] = self._draw(seed, epoch + 1)
        test_loss, test_accuracy = self.evaluate(state)
        size = self.settings.batch_size * self.settings.accumulate
        rate = learning_rate(self.settings, self.steps, state.optimizer)
        accuracy = correct / (self.steps * size)
        dropped = self.compression["total"], self.compression["bytes_dropped"]
        row = Epoch(loss, accuracy, test_loss, test_accuracy, rate, seconds, *dropped)
        return state, row

    def check_finite(self, sums: Sums, seed: int, epoch: int) -> None:
        """Waits for the steps that ``sums`` counts.

        Raises:
            UserError: the loss or a gradient of one of them was not finite.
        """
        bad = int(sums.bad)
        if bad:
            self._diverged(bad, seed, epoch)

    def _diverged(self, index: int, seed: int, epoch: int) -> None:
        raise UserError(
            f"training diverged in step {(epoch - 1) * self.steps + index} (step {index} of epoch "
            f"{epoch}, seed {seed}): the loss or a gradient is NaN or infinite; check the data or "
            "try a smaller --learning-rate"
        )

    def evaluate(self, state: State) -> tuple[float, float]:
        """Mean loss and accuracy over all test examples, with the running batch statistics.

        :attr:`compression` is then that of these examples.
        """
        sums = [
            self.network.evaluate(state.params, state.stats, *batch) for batch in self.examples.test
        ]
        loss = sum(float(loss) for loss, _, _ in sums)
        correct = sum(int(correct) for _, correct, _ in sums)
        self.compression = self.network.compression_of([found for _, _, found in sums])
        return loss / self.examples.test_count, correct / self.examples.test_count

    @cached_property
    def saved_bytes(self) -> int:
        """Bytes that one gradient keeps from its forward to its backward pass."""
        state = self.start(0)
        batch = self.devices.gather(self.examples.head(self.settings.batch_size))
        saved = bandjax.memory.saved_bytes(
            self.network.loss, state.params, state.stats, *batch, argnums=0, has_aux=True
        )
        return saved.total

    def _epoch_data(self, seed: int, epoch: int, done: int) -> Iterator[tuple[Any, ...]]:
        """What :meth:`Network.step` takes, for each step after the first ``done``."""
        size = self.settings.batch_size * self.settings.accumulate
        drawn = self._drawn.get((seed, epoch)) or self._draw(seed, epoch)
        self._drawn.clear()
        return self.examples.steps(*drawn, size, range(done, self.steps))

    @property
    def _draw(self) -> Callable[[int, int], tuple[jax.Array, jax.Array]]:
        """The order of an epoch's examples, and a key for their augmentation."""
        return _drawing(self.devices, self.examples.count)


@functools.cache
def _drawing(devices: Devices, count: int) -> Callable[[int, int], tuple[jax.Array, jax.Array]]:
    """See :meth:`Trainer._draw`; compiled once for the trainers of a job."""

    def draw(seed: Any, epoch: Any) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        return jax.random.permutation(key, count), jax.random.fold_in(key, 1)

    return devices.jit(draw)


_tree_finite = jax.jit(all_finite)
