"""Time bandjax on a GPU, where a call takes some microseconds.

    python -m experiments.benchmarks.gpu --out gpu.json
    python -m experiments.benchmarks.gpu --parts layers users --batch 8 --repeats 1 --size 8

A host's clock cannot time one call of 100 microseconds. So a program makes several independent
calls, on operands of their own that do not fit in the cache together, several programs are in
flight, and the time of all is divided by their number. Every row is written as soon as it is
measured. Needs JAX and NumPy; PyTorch is timed where it is installed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bandjax
from bandjax._conv.geometry import conv_geometry
from bandjax._conv.methods import Dft, NativeDft
from bandjax._conv.packed_dft import PackedDft
from experiments.benchmarks import gpu_peer
from experiments.benchmarks.gpu_peer import USERS

STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels and size of ResNet-18's maps
NETWORKS = {  # Bands and variants of benchmarks.memory.
    "resnet18": (
        ("none", "plain"),
        ("none", "blocks"),
        ("compression=0.5", "spectra"),
        ("compression=0.5", "int8"),
        ("compression=0.75", "int8"),
    ),
    "resnet50": (("none", "plain"), ("compression=0.5", "spectra"), ("compression=0.5", "int8")),
}
HIGHEST = jax.lax.Precision.HIGHEST

Arrays = tuple[jax.Array, ...]


def dimension_numbers(rank: int) -> tuple[str, str, str]:
    """Channels last."""
    axes = "DHW"[3 - rank :]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def dense(x: jax.Array, kernel: jax.Array, precision: Any = None, **options: Any) -> jax.Array:
    """``lax``'s convolution; SAME and stride 1 unless told otherwise."""
    rank = x.ndim - 2
    options = {"window_strides": (1,) * rank, "padding": "SAME", **options}
    return jax.lax.conv_general_dilated(
        x, kernel, dimension_numbers=dimension_numbers(rank), precision=precision, **options
    )


def banded(method: type, rate: float, precision: Any = None) -> Callable[..., jax.Array]:
    """A layer at a compression, by one method, SAME."""
    from bandjax._conv.operator import apply

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        band = bandjax.Compression(rate) if rate else None
        geometry = conv_geometry(x.shape, kernel.shape, band, padding="SAME")
        return apply(method(geometry, x.dtype, True, precision), x, kernel)[0]

    return convolve


def training(convolve: Callable[..., jax.Array]) -> Callable[..., Arrays]:
    """Output and both gradients."""

    def call(x: jax.Array, kernel: jax.Array, ct: jax.Array) -> Arrays:
        y, back = jax.vjp(convolve, x, kernel)
        return y, *back(ct)

    return call


def timed(
    call: Callable[..., Any], operands: Sequence[Arrays], programs: int, repeats: int
) -> tuple[dict[str, float], Any]:
    """Seconds of one call, and what the first returned.

    Args:
        call: a function of arrays.
        operands: of each call of one program.
        programs: in flight at once.
        repeats: of the whole, of which the median counts.
    """
    start = time.perf_counter()
    run = jax.jit(lambda all_of: [call(*each) for each in all_of]).lower(operands).compile()
    compiled = time.perf_counter() - start
    got = jax.block_until_ready(run(operands))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(programs):
            done = run(operands)
        jax.block_until_ready(done)
        times.append((time.perf_counter() - start) / (programs * len(operands)))
    memory = run.memory_analysis()
    return {
        "us": 1e6 * statistics.median(times),
        "us_min": 1e6 * min(times),
        "compile_s": compiled,
        "temp_bytes": float(getattr(memory, "temp_size_in_bytes", math.nan)) / len(operands),
    }, got[0]


def layer_operands(
    x: tuple[int, ...], kernel: tuple[int, ...], y: tuple[int, ...], dtype: Any, count: int
) -> list[Arrays]:
    """Operands of ``count`` training calls: input, kernel, cotangent; normal numbers.

    A kernel's are scaled by its fan-in.
    """
    scales = (x, 1.0), (kernel, math.prod(kernel[:-1]) ** -0.5), (y, 1.0)

    @jax.jit
    def draw(key: jax.Array) -> Arrays:
        keys = jax.random.split(key, len(scales))
        return tuple(
            (scale * jax.random.normal(key, shape)).astype(dtype)
            for key, (shape, scale) in zip(keys, scales, strict=True)
        )

    return [draw(key) for key in jax.random.split(jax.random.key(0), count)]


class Report:
    """Rows of a file, written after each; and whether the time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.start = options, time.perf_counter()
        device = jax.devices()[0]
        self.content: dict[str, Any] = {
            "device": device.device_kind,
            "date": time.strftime("%Y-%m-%d"),
            "versions": {"jax": jax.__version__, "bandjax": bandjax.__version__},
            "native": bandjax.native_status(),
            "rows": [],
        }

    @property
    def over(self) -> bool:
        """Whether no further row is to begin."""
        return time.perf_counter() - self.start > self.options.seconds

    def add(self, part: str, name: str, measure: Callable[[], dict[str, Any]], **about: Any) -> Any:
        """Measures a row, prints it and writes the file; a failure is a row too."""
        names = self.options.names
        if self.over or (names and not any(part in name for part in names)):
            return None
        row: dict[str, Any] = {"part": part, "name": name, **about}
        try:
            row |= measure()
            told = f"{row['us']:10.1f} us" if "us" in row else ""
            for key in ("error", "compile_s", "batch", "peak", "examples_a_second"):
                told += f"  {key} {row[key]:.1e}" if key in row else ""
        except Exception as error:  # A peer's or a kernel's failure is a result.
            row["failed"] = " ".join(str(error).split())[:400]
            told = f"FAILED {row['failed'][:150]}"
        label = " ".join(str(v) for v in about.values())
        print(f"{part:8} {label:34} {name:34} {told}", flush=True)
        self.content["rows"].append(row)
        with open(self.options.out, "w", encoding="utf-8") as file:
            json.dump(self.content, file, indent=1)
        return row


@jax.jit
def _gaps(got: Arrays, expected: Arrays) -> list[jax.Array]:
    pairs = [
        (a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in zip(got, expected, strict=True)
    ]
    return [jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)) for a, b in pairs]


def gap(got: Arrays, expected: Arrays) -> float:
    """The largest relative distance of a result from another."""
    return max(map(float, _gaps(got, expected)))


def layers(report: Report) -> None:
    """The 3x3 layers of ResNet-18: dense, and by every method at two compressions."""
    options = report.options
    have_native = "cuda" in bandjax.native_status()

    def ways(rate: float) -> Iterator[tuple[str, Callable[..., jax.Array], Any]]:
        for dtype in (jnp.float32, jnp.bfloat16):
            yield f"packed {rate}", banded(PackedDft, rate), dtype
            if have_native:
                yield f"native {rate}", banded(NativeDft, rate), dtype

    exactly = functools.partial(dense, precision=HIGHEST)
    plans: list[list[tuple[str, Callable[..., jax.Array], Any]]] = [
        [("lax", dense, jnp.float32), ("lax", dense, jnp.bfloat16), *ways(0.5)],
        [
            ("lax HIGHEST", exactly, jnp.float32),
            ("packed HIGHEST 0.5", banded(PackedDft, 0.5, HIGHEST), jnp.float32),
        ],
        list(ways(0.75)),
    ]
    if have_native:
        plans[1].append(("native HIGHEST 0.5", banded(NativeDft, 0.5, HIGHEST), jnp.float32))
    plans.append([("planar 0.5", banded(Dft, 0.5), jnp.float32)])
    expected: dict[Any, Arrays] = {}
    for plan in plans:
        for channels, size in stages(options):
            for name, convolve, dtype in plan:
                report.add(
                    "layers",
                    name,
                    functools.partial(
                        layer_row, options, channels, size, convolve, dtype, name, expected
                    ),
                    channels=channels,
                    size=size,
                    dtype=dtype.__name__,
                )


def stages(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Channels and size of the layers to time."""
    if options.size is None:
        yield from STAGES
    else:
        yield STAGES[0][0], options.size


def layer_row(
    options: argparse.Namespace,
    channels: int,
    size: int,
    convolve: Callable[..., jax.Array],
    dtype: Any,
    name: str,
    expected: dict[Any, Arrays],
) -> dict[str, Any]:
    """One row of :func:`layers`; ``expected`` holds the first result of each function."""
    shape = (options.batch, size, size, channels)
    operands = layer_operands(shape, (3, 3, channels, channels), shape, dtype, options.calls)
    row, got = timed(training(convolve), operands, options.programs, options.repeats)
    function = "lax" if "lax" in name else name.rsplit(maxsplit=1)[-1]
    first = expected.setdefault((channels, function), got)
    return {**row, "error": gap(got, first)}


def operations(report: Report) -> None:
    """Each transform and product of a layer by itself, in float32 at 50 %."""
    options = report.options
    for channels, size in stages(options):
        x_shape, w_shape = (options.batch, size, size, channels), (3, 3, channels, channels)
        geometry = conv_geometry(x_shape, w_shape, bandjax.Compression(0.5), padding="SAME")
        packed = PackedDft(geometry, np.dtype(np.float32))
        methods: dict[str, Any] = {"packed": packed}
        if "cuda" in bandjax.native_status():
            methods["native"] = NativeDft(geometry, np.dtype(np.float32))
        for name, method in methods.items():
            arrays = layer_operands(x_shape, w_shape, x_shape, jnp.float32, options.calls)
            spectra = [jax.jit(method.analyse)(x) for x, _, _ in arrays]
            steps: dict[str, tuple[Callable[..., Any], list[Any]]] = {
                "analysis": (method.analyse, [(x,) for x, _, _ in arrays]),
                "synthesis": (
                    lambda s, m=method: m.analyse_transposed(s, jnp.zeros((), jnp.float32)),
                    [(s,) for s in spectra],
                ),
                "forward of the spectrum": (
                    lambda s, w, m=method: m.convolve(s, w, np.dtype(np.float32)),
                    [(s, w) for s, (_, w, _) in zip(spectra, arrays, strict=True)],
                ),
            }
            for step, (call, operands) in steps.items():
                report.add(
                    "steps",
                    f"{name} {step}",
                    lambda call=call, operands=operands: timed(
                        call, operands, options.programs, options.repeats
                    )[0],
                    channels=channels,
                    size=size,
                )


def users(report: Report) -> None:
    """What users report as slow: ``lax``, PyTorch, and bandjax with every frequency kept."""
    options = report.options
    for name, (full, w_shape, how) in USERS.items():
        small = (2, *(options.size or 1 for _ in full[1:-1]), full[-1])
        x_shape = small if options.size else full
        ours = functools.partial(
            bandjax.band_conv,
            strides=how.get("window_strides", 1),
            padding=how["padding"],
            input_dilation=how.get("lhs_dilation", 1),
            kernel_dilation=how.get("rhs_dilation", 1),
            feature_group_count=how.get("feature_group_count", 1),
        )
        sides = {"lax": functools.partial(dense, **how), "bandjax": ours}
        for method in ("direct", "fft"):
            sides[f"bandjax {method}"] = functools.partial(ours, method=method)
        expected: list[Arrays] = []
        for side, convolve in sides.items():
            row = functools.partial(user_row, options, x_shape, w_shape, convolve, expected)
            report.add("users", side, row, case=name)
        row = functools.partial(gpu_peer.seconds, x_shape, w_shape, how, options)
        report.add("users", "torch", row, case=name)


def user_row(
    options: argparse.Namespace,
    x: tuple[int, ...],
    w: tuple[int, ...],
    convolve: Callable[..., jax.Array],
    expected: list[Arrays],
) -> dict[str, Any]:
    """One row of :func:`users`; ``expected`` holds the first result of the case."""
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, w))
    y = jax.eval_shape(convolve, *shapes).shape
    row, got = timed(
        training(convolve), layer_operands(x, w, y, jnp.float32, 2), 2, options.repeats
    )
    expected.append(got)
    return {**row, "error": gap(got, expected[0])}


def memory(report: Report) -> None:
    """The largest batch of whole networks in a part of the GPU's memory, and examples a second.

    The searches run side by side, for compiling takes the most of their time; steps are timed one
    after another.
    """
    from experiments.benchmarks.largest_batch import Fitting

    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(report.options.fraction)
    cases = [(network, *case) for network, of in NETWORKS.items() for case in of]
    searches = {case: Fitting(*case) for case in cases}
    found: dict[Any, dict[str, Any]] = {}

    def search(case: tuple[str, str, str]) -> dict[str, Any]:
        return searches[case].found()

    def speed(case: tuple[str, str, str]) -> dict[str, Any]:
        seconds = searches[case].seconds()
        each = min(seconds) / found[case]["batch"]
        return {"us": 1e6 * min(seconds), "examples_a_second": 1 / each}

    for case in cases:
        about = dict(zip(("network", "band", "variant"), case, strict=True))
        found[case] = report.add("memory", "largest batch", lambda c=case: search(c), **about) or {}
    for case in cases:
        if found[case].get("batch"):
            about = dict(zip(("network", "band", "variant"), case, strict=True))
            report.add("memory", "step of it", lambda c=case: speed(c), **about)


def torch_layers(report: Report) -> None:
    """PyTorch's dense layers, for the table of :func:`layers`."""
    options = report.options
    for channels, size in STAGES:
        for dtype in ("float32", "bfloat16"):
            shape = (options.batch, size, size, channels)
            report.add(
                "layers",
                "torch",
                functools.partial(
                    gpu_peer.seconds,
                    shape,
                    (3, 3, channels, channels),
                    {"padding": "SAME"},
                    options,
                    dtype,
                    options.calls,
                ),
                channels=channels,
                size=size,
                dtype=dtype,
            )


PARTS = {"torch": torch_layers, "layers": layers, "steps": operations}
PARTS |= {"users": users, "memory": memory}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu",
        description="Times bandjax on a GPU; rows are printed and written as they are measured.",
    )
    parser.add_argument("--out", default="gpu.json", help="the JSON file (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--names", nargs="+", help="rows whose name has one of these in it alone")
    parser.add_argument("--batch", type=int, default=128, help="examples of a layer (%(default)s)")
    parser.add_argument("--size", type=int, help="of every map, to try the program itself")
    parser.add_argument("--calls", type=int, default=6, help="in a program (%(default)s)")
    parser.add_argument("--programs", type=int, default=8, help="in flight (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing (%(default)s)")
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.06,
        help="of the GPU's memory, for networks (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row after these")
    report = Report(parser.parse_args(arguments))
    for part in report.options.parts:
        PARTS[part](report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
