"""Time training through one convolution against the dense convolution of the backend.

    python -m experiments.benchmarks
    python -m experiments.benchmarks --batch 32 --rates 0.5 0.75 0.9

The layers are the 3x3 ones of the four stages of a ResNet-18 on 32x32 images. One jitted call
returns the output and both gradients, all three live. The peer is the faster of
jax.lax.conv_general_dilated in the NHWC and the NCHW layout, timed in the same rounds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import bandjax
from experiments.benchmarks.timing import interleaved
from experiments.config import Method
from experiments.errors import UserError
from experiments.records import provenance, write_json

STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, height and width


@dataclass(frozen=True)
class Options:
    """Time training through one convolution against the dense one.

    Prints a table and writes JSON: medians, quartiles, machine, versions, date.
    """

    batch: int = 128
    """Images in a batch."""
    rates: tuple[float, ...] = (0.5, 0.75)
    """Compressions to time. Small maps are coarse: the table has the true shares."""
    methods: tuple[Method, ...] = ("auto",)
    """How bandjax computes the convolutions."""
    runs: int = 15
    """Timed rounds; each calls every function once."""
    out: Path = Path("runs/benchmark-layers.json")
    """The JSON file to write."""


def training_call(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
    """A function that returns the output and both gradients, so that XLA must compute all."""

    def call(x: jax.Array, kernel: jax.Array, ct: jax.Array) -> Any:
        y, pull_back = jax.vjp(convolve, x, kernel)
        return y, *pull_back(ct)

    return call


def dense(layout: str) -> Callable[..., Any]:
    """The dense layer on arrays that lie as in the given layout, ``NHWC`` or ``NCHW``."""
    order = (0, 1, 2, 3) if layout == "NHWC" else (0, 3, 1, 2)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=(layout, "HWIO", layout)
        )

    call = training_call(convolve)

    # NCHW arrays have the same bytes in another order; random data needs no transposition.
    def reordered(x: jax.Array, kernel: jax.Array, ct: jax.Array) -> Any:
        shaped = (a.reshape([a.shape[i] for i in order]) for a in (x, ct))
        x, ct = shaped
        return call(x, kernel, ct)

    return reordered


def time_stage(channels: int, size: int, options: Options) -> dict[str, Any]:
    """Times one layer: dense in both layouts, and every method at every rate."""
    rng = np.random.default_rng(0)
    shape = (options.batch, size, size, channels)
    kernel_shape = (3, 3, channels, channels)
    x, kernel, ct = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, kernel_shape, shape)
    )
    functions = {"dense NHWC": dense("NHWC"), "dense NCHW": dense("NCHW")}
    shares = {}
    for rate in options.rates:
        band = bandjax.Compression(rate)
        shares[rate] = bandjax.conv_geometry(shape, kernel_shape, band).compression
        for method in options.methods:

            def convolve(x: Any, k: Any, band: Any = band, method: str = method) -> jax.Array:
                return bandjax.band_conv(x, k, band, method=method)

            functions[f"{method} {rate:g}"] = training_call(convolve)
    timings = interleaved(functions, (x, kernel, ct), options.runs)
    peer = min(timings[name].median for name in ("dense NHWC", "dense NCHW"))
    return {
        "channels": channels,
        "size": size,
        "compression": {f"{rate:g}": share for rate, share in shares.items()},
        "timings": {name: t.as_dict() for name, t in timings.items()},
        "speedup": {name: peer / t.median for name, t in timings.items()},
    }


def report(stages: list[dict[str, Any]], options: Options) -> Table:
    """One row for each function: its speed in every stage, as a multiple of the dense one."""
    table = Table(
        title=f"y, dx and dw of a 3x3 layer, batch {options.batch}: times the faster dense layer",
        caption="in brackets: the true compression",
    )
    table.add_column("")
    for stage in stages:
        table.add_column(f"{stage['channels']}, {stage['size']}²", justify="right")
    table.add_column("geometric mean", justify="right")
    for name in stages[0]["speedup"]:
        cells = []
        for stage in stages:
            share = stage["compression"].get(name.split()[1])
            note = f" ({share:.0%})" if share is not None else ""
            cells.append(f"{stage['speedup'][name]:.2f}×{note}")
        table.add_row(name, *cells, f"{geometric_mean(stages, name):.2f}×")
    return table


def geometric_mean(stages: list[dict[str, Any]], name: str) -> float:
    """The geometric mean of one function's speed-up over the stages."""
    return math.exp(sum(math.log(stage["speedup"][name]) for stage in stages) / len(stages))


def run(options: Options, console: Console) -> None:
    """Times every stage, prints the table, writes the JSON file.

    Raises:
        UserError: a batch, a number of runs or a rate that cannot be, or an unwritable file.
    """
    if options.batch < 1 or options.runs < 1:
        raise UserError(f"--batch and --runs must be >= 1, got {options.batch}, {options.runs}")
    try:
        for rate in options.rates:
            bandjax.Compression(rate)
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    stages = [
        time_stage(channels, size, options)
        for channels, size in track(STAGES, "layers", console=console, transient=True)
    ]
    console.print(report(stages, options))
    means = {name: geometric_mean(stages, name) for name in stages[0]["speedup"]}
    settings = {k: v for k, v in asdict(options).items() if k != "out"}
    content = {**provenance(), "settings": settings, "geometric_mean": means, "stages": stages}
    write_json(options.out, content)
    console.print(f"figures: {options.out}", highlight=False)


def main() -> int:
    """The command line; returns the exit status."""
    try:
        run(tyro.cli(Options, prog="python -m experiments.benchmarks"), Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
