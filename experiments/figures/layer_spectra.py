"""The spectra of a layer before and after training (the paper's supplement 2.12).

    python -m experiments.figures.layer_spectra
    python -m experiments.figures.layer_spectra --model fcn --data ucr:FiftyWords --data-dir DIR

Trains a network for a while, and draws the spectra of one convolution's input, filter, output and
gradient for the same batch of training examples, with the initial parameters and with the trained
ones. The band of every convolution is marked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib as mpl
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console

import bandjax
from experiments import data
from experiments.data.examples import place
from experiments.jobs.runs import train_only
from experiments.models import MODELS
from experiments.settings.bands import file_stem, parse_band
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json
from experiments.training.loop import Trainer
from experiments.training.network import State

PARTS = ("input", "kernel", "output", "gradient")


@dataclass(frozen=True)
class Options:
    """The spectra of a layer before and after training."""

    model: str = "cnn"
    """The network: cnn (images), fcn (time series) or lenet (images of at least 16x16)."""
    data: str = "digits"
    """The data set: digits (part of scikit-learn), ucr:NAME (UCR archive), cifar10 or
    cifar100."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the official archives as they unpack."""
    band: str = "compression=0.5"
    """The band of every convolution, as for experiments.train."""
    layer: str = ""
    """Which convolution, as a path in the model; the last one if left out."""
    epochs: int = 10
    """Passes over the training examples; the other settings are the model's defaults."""
    batch: int = 64
    """Training examples whose spectra are drawn, the first ones."""
    seed: int = 0
    """Of the initial parameters and the order of the examples."""
    decibels: float = 40
    """Range of the picture, down from the largest magnitude of each quantity."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Where to write, with .png and .json: experiments/results/layer_spectra/MODEL-DATA-BAND if
    left out."""


def loss(model: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def run(options: Options, console: Console) -> Path:
    """Trains and draws; returns the picture's path.

    Raises:
        UserError: an option or a data file is not usable, or the training diverged.
    """
    if options.model not in MODELS:
        raise UserError(f"unknown model {options.model!r}; known: {', '.join(MODELS)}")
    if options.batch < 1 or options.decibels <= 0:
        raise UserError(
            f"need --batch >= 1 and --decibels > 0, got {options.batch} and {options.decibels:g}"
        )
    label, band = parse_band(options.band)
    settings = settings_for(options.model, options.data, epochs=options.epochs)
    dataset = data.load(options.data, options.data_dir)
    trainer = Trainer(settings, place(dataset, stream="never"), band)
    batch = dataset.x_train[: options.batch], dataset.y_train[: options.batch]
    layer = options.layer or list(trainer.compression["layers"])[-1]
    if layer not in trainer.compression["layers"]:
        raise UserError(
            f"unknown layer {layer!r}; known: {', '.join(trainer.compression['layers'])}"
        )

    state = trainer.start(options.seed)
    before = _signals(trainer, state, layer, batch)
    state, row = train_only(trainer, options.seed, f"{options.model}, {label}", console)
    after = _signals(trainer, state, layer, batch)

    stem = f"{options.model}-{options.data.replace(':', '-')}-{file_stem(label)}"
    out = options.out or Path("experiments/results/layer_spectra") / stem
    out.parent.mkdir(parents=True, exist_ok=True)
    title = (
        f"{options.model} on {options.data}, {label}, layer {layer}: "
        f"before and after {settings.epochs} epochs"
    )
    picture = out.with_name(f"{out.name}.png")
    dc = "corner" if len(dataset.example_shape) == 2 else "centre"  # a line's halves are alike
    bandjax.plot.layer_spectra(
        before, after, dc=dc, decibels=options.decibels, title=title, path=picture
    )
    record = {
        "settings": {
            **settings.as_dict(),
            "band": label,
            "seed": options.seed,
            "layer": layer,
            "batch": len(batch[0]),
        },
        **provenance(),
        "compression": trainer.compression,
        "test_accuracy": row.test_accuracy,
        "energy_share_in_band": {
            "before": energy_shares(before),
            "after": energy_shares(after),
        },
    }
    write_json(out.with_name(f"{out.name}.json"), record)
    return picture


def _signals(trainer: Trainer, state: State, layer: str, batch: Any) -> bandjax.plot.LayerSignals:
    """Those of a training step, with the statistics of the batch."""
    model = trainer.network.model()
    nnx.update(model, state.params, state.stats)
    model.train()
    return bandjax.plot.layer_signals(model, layer, loss, *batch)


def energy_shares(signals: bandjax.plot.LayerSignals) -> Record:
    """Which share of each signal's energy lies in the layer's band, on the layer's grid."""
    assert signals.grid is not None
    assert signals.modes is not None
    shares = {}
    for part in PARTS:
        values = np.asarray(getattr(signals, part))
        if part == "kernel":
            values = np.moveaxis(values, -1, 0)
        whole = bandjax.spectral.analysis(values, signals.grid)
        box = bandjax.spectral.keep_box(whole, signals.grid, signals.modes)
        total, kept = (float(bandjax.spectral.energy(s, signals.grid).sum()) for s in (whole, box))
        shares[part] = round(kept / total, 5) if total else None
    return shares


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        mpl.use("Agg")
        options = parse_options(Options, words, "python -m experiments.figures.layer_spectra")
        console = open_console()
        console.print(str(run(options, console)), soft_wrap=True, highlight=False)

    return run_command(action, "nothing is written")


if __name__ == "__main__":
    sys.exit(main())
