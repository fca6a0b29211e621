"""What keeping the filter's spectrum for the backward pass costs in memory, and saves in time.

    python -m experiments.benchmarks.filters

`recompute_filter=True`, the default, derives the filter's spectrum from the kernel in both passes;
False keeps it. Forward and backward pass are compiled apart, and what is kept is handed from one to
the other as in a long network: compiled together, XLA would merge the two derivations. In plain
JAX: the native kernels make the spectrum tile by tile and keep none.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import bandjax
from experiments.benchmarks import workloads
from experiments.benchmarks.allocator import release_memory
from experiments.benchmarks.candidates import random_arrays
from experiments.benchmarks.timing import Timing, interleaved
from experiments.settings.bands import parse_band
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

WAYS = {"recompute": True, "keep": False}


@dataclass(frozen=True)
class Options:
    """Time layers with the filter's spectrum recomputed and kept; print a table, write JSON."""

    batch: int = 32
    """Examples in a batch."""
    band: str = "compression=0.5"
    """As in experiments.train."""
    runs: int = 15
    """Rounds; each calls every function once."""
    seconds: float = 5.0
    """What the timed calls of one function may take."""
    out: Path = Path("runs/filters.json")
    """The JSON file to write."""


def passes(layer: workloads.Layer, band: bandjax.Band, method: str, recompute: bool) -> Any:
    """Both passes of a layer, compiled apart, as one call; and the bytes handed between them."""
    arrays = map(jnp.asarray, random_arrays(layer))
    x, kernel, ct = arrays
    convolve = functools.partial(
        bandjax.band_conv,
        band=band,
        padding=layer.padding,
        method=method,
        implementation="xla",
        recompute_filter=recompute,
    )
    forward = jax.jit(functools.partial(jax.vjp, convolve)).lower(x, kernel).compile()
    _, pull_back = forward(x, kernel)
    backward = jax.jit(lambda pull_back, ct: pull_back(ct)).lower(pull_back, ct).compile()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull_back) if leaf.shape != kernel.shape)

    def call() -> Any:
        y, pull_back = forward(x, kernel)
        return jax.block_until_ready((y, backward(pull_back, ct)))

    return call, kept


def row(layer: workloads.Layer, options: Options, advance: Any) -> Record:
    """Figures of one layer: for each method and way, seconds of both passes and bytes kept."""
    _, band = parse_band(options.band)
    calls, kept = {}, {}
    for method in ("dft", "fft"):
        for way, recompute in WAYS.items():
            name = f"{method} {way}"
            calls[name], kept[name] = passes(layer, band, method, recompute)
    timings: dict[str, Timing] = interleaved(calls, options.runs, options.seconds, advance)
    release_memory()
    return {
        "workload": layer.name,
        "candidates": [
            {"name": name, "seconds": timing.as_dict(), "kept_bytes": kept[name]}
            for name, timing in timings.items()
        ],
    }


def table(rows: Sequence[Record]) -> Table:
    """Milliseconds and MiB of every layer."""
    found = Table(
        title="both passes, and what is kept between them",
        caption="milliseconds (median) and MiB without the kernel",
    )
    found.add_column("")
    names = [candidate["name"] for candidate in rows[0]["candidates"]]
    for entry in rows:
        found.add_column(entry["workload"], justify="right")
    for index, name in enumerate(names):
        cells = []
        for entry in rows:
            figures = entry["candidates"][index]
            milliseconds = figures["seconds"]["median"] * 1e3
            cells.append(f"{milliseconds:.3g} ms {figures['kept_bytes'] / 2**20:.3g}")
        found.add_row(name, *cells)
    return found


def run(options: Options, console: Console) -> None:
    """Time ResNet-18's stages, print the table, write the JSON file.

    Raises:
        UserError: an option is out of range.
    """
    if options.runs < 1 or not options.seconds >= 0:
        raise UserError(
            f"need --runs >= 1 and --seconds >= 0, got {options.runs} and {options.seconds:g}"
        )
    parse_band(options.band)
    bandjax.tune_allocator()
    chosen = workloads.select(["stages"], batch=options.batch)
    layers = [layer for layer in chosen if isinstance(layer, workloads.Layer)]
    rows = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("timing", total=len(layers))
        for number, layer in enumerate(layers):

            def advance(share: float, number: int = number) -> None:
                bar.update(task, completed=number + share)

            rows.append(row(layer, options, advance))
    console.print(table(rows))
    settings = {key: value for key, value in asdict(options).items() if key != "out"}
    write_json(options.out, {**provenance(), "settings": settings, "rows": rows})
    console.print(f"written: {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        run(
            parse_options(Options, words, "python -m experiments.benchmarks.filters"),
            open_console(),
        )

    return run_command(action, "nothing is written")


if __name__ == "__main__":
    sys.exit(main())
