"""Train networks, and find the band that holds a share of each layer's spectral energy.

    python -m experiments.calibration --data ucr:FiftyWords --data-dir DIR --grid 1024

A network is trained at each --band as ``experiments.train`` does it. Then the training examples
pass through it, and every convolution layer gets the smallest box that holds the share of its
input's energy. The plans are saved in the output folder (none.json, energy-0.9.json;
none-grid-1024.json on the circle of --grid), with record.json and pictures: energy.png and, with
--after 0 1 10 100, which calibrates after so many epochs too, training.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import bandjax
from experiments import data
from experiments.data.examples import place
from experiments.figures.calibration import draw_energy, draw_training
from experiments.jobs.runs import train_only
from experiments.models import MODELS
from experiments.settings.bands import file_stem, parse_fixed_band
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.settings.records import provenance, write_json
from experiments.training.loop import Trainer
from experiments.training.network import State

# Supplement, Table 1, FCN on FiftyWords at energy 90 %: 270 inputs over 4.23, 6.62 and 9.40 numbers
# kept; coefficients out of 513 on a grid of 1024.
PAPER = {("fcn", "ucr:FiftyWords", 0.9): (32, 21, 15)}
SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class Options:
    """Train networks, and find the band that holds a share of each layer's energy."""

    model: str = "fcn"
    """The network, see python -m experiments.train --help."""
    data: str = "ucr:FiftyWords"
    """The data set: digits, ucr:NAME, cifar10 or cifar100."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the data, see python -m experiments.train --help."""
    energy: float = 0.9
    """Share of the spectral energy of each layer's inputs that its box is to hold, up to 1."""
    grid: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Calibrate on circles of so many points too, such as the paper's 1024 for FiftyWords."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Passes over the training examples; the model's default as in experiments.train."""
    band: tuple[str, ...] = ("energy=0.9", "none")
    """Bands to train at, one network each: energy=SHARE (as the paper did), none (dense),
    compression=RATE or modes=U[,U..]."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Train and calibrate on the first so many examples alone."""
    after: tuple[int, ...] = ()
    """Calibrate after each of so many epochs too (0: before the first)."""
    batch_size: int = 50
    """Examples in a calibration batch."""
    seed: int = 0
    """Of the initial parameters and the order of the examples."""
    out: Path = Path("runs/calibration")
    """Folder for the results."""


def run(options: Options, console: Console) -> None:
    """Train, calibrate and report.

    Raises:
        UserError: an option, a data file or the output folder is not usable, or a loss diverged.
    """
    try:
        band = bandjax.Energy(options.energy)
    except ValueError as error:
        raise UserError(f"--energy: {error}") from error
    if options.batch_size < 1 or options.seed < 0 or not options.band:
        raise UserError("needs a --band, a --batch-size of at least 1, and no negative --seed")
    if min(options.after, default=0) < 0:
        raise UserError(f"--after: epochs are counted from 0, got {min(options.after)}")
    bands = dict(parse_fixed_band(text) for text in options.band)
    settings = settings_for(options.model, options.data, epochs=options.epochs, limit=options.limit)
    if settings.model not in MODELS:
        raise UserError(f"unknown model {settings.model!r}; known: {', '.join(MODELS)}")
    dataset = data.load(options.data, options.data_dir).limited(options.limit)
    examples = place(dataset, stream="never")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {str(options.out)!r}: {error.strerror}") from error
    x = np.asarray(examples.x)
    batches = [x[i : i + options.batch_size] for i in range(0, len(x), options.batch_size)]
    grids = [None] if options.grid is None else [None, options.grid]
    paper = PAPER.get((options.model, options.data, options.energy))
    title = f"{options.model} on {options.data}, {settings.epochs} epochs, seed {options.seed}"

    networks: dict[str, dict[str, float]] = {}
    columns: dict[str, bandjax.Plan] = {}
    curves: dict[str, list[bandjax.Plan]] = {}
    paths: dict[str, dict[int, bandjax.Plan]] = {}
    for label, trained_at in bands.items():
        name = "dense" if trained_at is None else f"trained at {label}"
        trainer = Trainer(settings, examples, trained_at)
        model = trainer.network.model()
        try:  # A grid that some layer cannot have is refused before training.
            bandjax.calibrate(model, batches[:1], band, grid=grids[-1])
        except ValueError as error:
            raise UserError(str(error)) from error
        path = paths[name] = {}

        def calibrate_at(epoch: int, state: State, model=model, path=path) -> None:
            nnx.update(model, state.params, state.stats)
            if epoch in options.after:
                path[epoch] = bandjax.calibrate(model, batches, band, grid=grids[-1])

        plans: dict[int | None, bandjax.Plan] = {}
        try:
            _, row = train_only(trainer, options.seed, name, console, calibrate_at)
            accuracy = row.test_accuracy
            for grid in grids:
                plans[grid] = bandjax.calibrate(model, batches, band, grid=grid)
            curves[name] = [
                bandjax.calibrate(model, batches, bandjax.Energy(share), grid=grids[-1])
                for share in SHARES
            ]
        except ValueError as error:
            raise UserError(str(error)) from error
        limited = limited_accuracy(trainer, model, plans[None])
        for grid, found in plans.items():
            console.print(found.table())
            suffix = "" if grid is None else f"-grid-{grid}"
            found.save(options.out / f"{file_stem(label)}{suffix}.json")
            columns[f"{name}, {'default grid' if grid is None else f'grid {grid}'}"] = found
        networks[name] = {"test_accuracy": accuracy, "test_accuracy_with_its_plan": limited}
        console.print(
            f"{name}: test accuracy {accuracy:.2%}; with the plan just found, and no further "
            f"training, {limited:.2%}",
            highlight=False,
        )
        record = {
            "settings": settings.as_dict(),
            "seed": options.seed,
            **provenance(),
            "energy": options.energy,
            "networks": networks,
            "kept_of_total": {
                label: {path: [layer.kept, layer.total] for path, layer in found.layers.items()}
                for label, found in columns.items()
            },
            "deeper_layers_keep_fewer": {
                label: deeper_keep_fewer(found) for label, found in columns.items()
            },
            "kept_after_epochs": {
                label: {
                    epoch: [[layer.kept, layer.total] for layer in plan.layers.values()]
                    for epoch, plan in path.items()
                }
                for label, path in paths.items()
            },
            "paper_kept_of_513": paper,
        }
        write_json(options.out / "record.json", record)
        draw_energy(title, curves, options.energy, paper, options.out / "energy.png")
        if path:
            draw_training(title, paths, paper, options.out / "training.png")
    console.print(comparison(columns, paper))
    for name, path in paths.items():
        if path:
            console.print(through_training(name, path))
    pictures = "energy.png, training.png" if any(paths.values()) else "energy.png"
    console.print(f"plans, record.json, {pictures}: {options.out}", soft_wrap=True)


def deeper_keep_fewer(plan: bandjax.Plan) -> bool:
    """Whether each layer keeps a smaller share of its coefficients than the one before it."""
    kept = [layer.kept / layer.total for layer in plan.layers.values()]
    return all(later < earlier for earlier, later in pairwise(kept))


def limited_accuracy(trainer: Trainer, model: nnx.Module, plan: bandjax.Plan) -> float:
    """Test accuracy of a network with the plan's bands in place of its own."""
    limited = nnx.clone(model)
    bandjax.nnx.band_limit(limited, plan)
    graph, state = nnx.split(limited)
    classify = jax.jit(lambda state, x: nnx.merge(graph, state)(x).argmax(-1))
    correct = sum(
        int(((classify(state, x) == y) & counts).sum()) for x, y, counts in trainer.examples.test
    )
    return correct / trainer.examples.test_count


def comparison(plans: dict[str, bandjax.Plan], paper: Sequence[int] | None) -> Table:
    """Kept coefficients by layer: of each network on each grid, and in the paper."""
    table = Table(title="coefficients kept, of those of the half spectrum")
    table.add_column("layer")
    for label in plans:
        table.add_column(label.replace(", ", "\n"), justify="right")
    if paper is not None:
        table.add_column("paper\ngrid 1024", justify="right")
    for index, path in enumerate(next(iter(plans.values())).layers):
        layers = [plan.layers[path] for plan in plans.values()]
        cells = [f"{layer.kept} of {layer.total}" for layer in layers]
        if paper is not None:
            cells.append(f"{paper[index]} of 513")
        table.add_row(path, *cells)
    return table


def through_training(name: str, plans: dict[int, bandjax.Plan]) -> Table:
    """Kept coefficients by epoch."""
    table = Table(title=f"coefficients kept after so many epochs, {name}")
    table.add_column("epochs", justify="right")
    for path, layer in next(iter(plans.values())).layers.items():
        table.add_column(f"{path}\nof {layer.total}", justify="right")
    table.add_column("deeper layers\nkeep fewer")
    for epoch, plan in plans.items():
        kept = [str(layer.kept) for layer in plan.layers.values()]
        table.add_row(str(epoch), *kept, "yes" if deeper_keep_fewer(plan) else "no")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        run(parse_options(Options, words, "python -m experiments.calibration"), open_console())

    return run_command(action, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
