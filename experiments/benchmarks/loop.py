"""The training loop's throughput against that of its jitted step alone.

    python -m experiments.benchmarks.loop
    python -m experiments.benchmarks.loop --model resnet18 --batch-size 128 --steps 8

The loop is that of ``experiments.train``: it takes its batches from a set of examples by a random
order, adds up loss and accuracy, looks whether they are finite, shows progress, and asks whether a
checkpoint is due. The bare step has the same network, loss and optimizer, and one batch. The two
take turns, so that what else the machine does meets both; the medians are compared.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import tyro
from rich.console import Console

from experiments.data import Dataset
from experiments.data.examples import place
from experiments.jobs.progress import Length, progress
from experiments.jobs.runs import watch_only
from experiments.models import MODELS
from experiments.settings.bands import parse_band
from experiments.settings.command import parse_options, run_command
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json
from experiments.training.loop import Trainer
from experiments.training.network import State
from experiments.training.optimizer import make_optimizer

SHAPES = {"cnn": (8, 8, 1), "fcn": (270, 1)}  # of an example; other networks take 32x32x3
BOUND = 0.95
_jit = jax.jit  # In one place, so that tests can compile with less effort.


@dataclass(frozen=True)
class Options:
    """The training loop's throughput against that of its jitted step alone."""

    model: str = "resnet18"
    """A network of experiments.train."""
    band: str = "compression=0.5"
    """Its band."""
    batch_size: int = 32
    """Examples in a step."""
    steps: int = 8
    """Steps of a round."""
    rounds: int = 5
    """Rounds of each; the first, which compiles, is not counted."""
    augment: bool = False
    """Flip and crop in the loop, which the bare step does not."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the result."""


def measure(options: Options, console: Console) -> Record:
    """Seconds a step of each, by round, and the ratio of the medians."""
    shape = SHAPES.get(options.model, (32, 32, 3))
    count = options.batch_size * options.steps
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *shape)).astype(np.float32)
    y = rng.integers(0, 10, count).astype(np.int32)
    # A single test example: what is measured is training.
    examples = place(Dataset("random", x, y, x[:1], y[:1], 10))
    settings = settings_for(
        options.model,
        "random",
        batch_size=options.batch_size,
        learning_rate=1e-5,
        augment="flip-crop" if options.augment else "none",
        epochs=options.rounds + 1,
    )
    trainer = Trainer(settings, examples, parse_band(options.band)[1])
    optimizer = make_optimizer(settings, options.steps)
    network = trainer.network

    def bare(state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
        (loss, (stats, *_)), gradient = jax.value_and_grad(network.loss, has_aux=True)(
            state.params, state.stats, x, y
        )
        updates, inner = optimizer.update(gradient, state.optimizer, state.params, value=loss)
        return State(optax.apply_updates(state.params, updates), stats, inner, None), loss

    step = _jit(bare, donate_argnums=0)
    batch = jax.device_put((x[: options.batch_size], y[: options.batch_size]))
    states: dict[str, Any] = {"loop": trainer.start(0), "bare": trainer.start(0)}
    seconds: dict[str, list[float]] = {"loop": [], "bare": []}
    with progress(console, options.model, Length(options.rounds + 1, options.steps, count)) as show:
        for epoch in range(1, options.rounds + 2):
            watch = watch_only(trainer, show, 0, epoch)
            states["loop"], row = trainer.run_epoch(states["loop"], 0, epoch, watch=watch)
            start = time.perf_counter()
            for _ in range(options.steps):
                states["bare"], loss = step(states["bare"], *batch)
            loss.block_until_ready()
            if epoch > 1:
                seconds["loop"].append(row.seconds / options.steps)
                seconds["bare"].append((time.perf_counter() - start) / options.steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "medians": medians, "ratio": medians["bare"] / medians["loop"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        options = parse_options(Options, words, "python -m experiments.benchmarks.loop")
        if options.model not in MODELS:
            raise UserError(f"unknown model {options.model!r}; known: {', '.join(MODELS)}")
        for name in ("batch_size", "steps", "rounds"):
            if getattr(options, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(options, name)}")
        result = measure(options, Console(stderr=True))
        loop, bare = (1e3 * result["medians"][name] for name in ("loop", "bare"))
        print(f"{options.model}, {options.band}, batch {options.batch_size}, a step:")
        print(
            f"loop {loop:.2f} ms, bare {bare:.2f} ms: ratio {result['ratio']:.3f} (bound {BOUND})"
        )
        if options.out is not None:
            settings = {k: v for k, v in asdict(options).items() if k != "out"}
            write_json(options.out, {"settings": settings, **provenance(), **result})

    return run_command(action, "nothing is kept")


if __name__ == "__main__":
    sys.exit(main())
