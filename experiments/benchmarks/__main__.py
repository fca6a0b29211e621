"""Time bandjax against its peers, each alone in processes of its own.

    python -m experiments.benchmarks
    python -m experiments.benchmarks --workloads all --precisions float32 bf16
    python -m experiments.benchmarks --workloads scaling --out runs/scaling.json
    python -m experiments.benchmarks --check runs/benchmark.json

A training call returns the output and both gradients, all three live. Of each workload the sides
take turns: a process of one side starts, times all its variants, and ends before the next begins,
for threads that others have left spinning would slow a side down. The peers are jax.lax's
convolution (with XLA's YNN fusions and without) and PyTorch's (each in both memory layouts, the
faster one counts), and band-limited convolutions as one writes them with jnp.fft, on bandjax's grid
and on the powers of two of the paper's authors; for a whole network Flax and PyTorch; for its
inference ONNX Runtime and OpenVINO, too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import bandjax
from experiments.benchmarks import report, scaling, targets
from experiments.benchmarks.measure import Plan
from experiments.benchmarks.rows import measured
from experiments.benchmarks.sides import INSTALL, PACKAGES, missing
from experiments.benchmarks.workloads import GROUPS, WORKLOADS, Workload, select
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.config import Method
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

Peer = Literal["lax", "flax", "torch", "onnxruntime", "openvino", "fft", "fft-pow2"]
Direction = Literal["train", "forward"]
Implementation = Literal["auto", "xla", "native"]
Precision = Literal["float32", "tf32", "bf16"]
Allocator = Literal["reuse", "system"]


def _optional(metavar: str, hint: str) -> object:
    """How --help shows an option that may be left out."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {hint})")


@dataclass(frozen=True)
class Options:
    """Time bandjax against its peers, each alone in processes of its own, in turn.

    Prints tables, writes JSON (medians, quartiles, machine, versions, date) and pictures beside it.
    The default takes a quarter of an hour; with --processes 1 a third of that.
    """

    workloads: tuple[str, ...] = ("stages",)
    """Groups or single workloads to time, or all; --list shows them."""
    peers: Annotated[
        tuple[Peer, ...] | None, _optional("PEER...", "those of the workload that are installed")
    ] = None
    """lax (dense convolution), flax (dense network), torch (both, by PyTorch), onnxruntime and
    openvino (inference), fft (jnp.fft on bandjax's grid), fft-pow2 (jnp.fft on the authors' powers
    of two). The last two are timed at the first band that drops anything."""
    bands: Annotated[tuple[str, ...] | None, _optional("BAND...", "the workload's")] = None
    """none (every frequency), compression=RATE or modes=U[,U..]. Small maps are coarse: the tables
    have the true shares."""
    directions: tuple[Direction, ...] = ("train", "forward")
    """train (output and both gradients) or forward (output alone), where the workload has it."""
    methods: tuple[Method, ...] = ("auto",)
    """How bandjax computes; auto chooses."""
    implementations: tuple[Implementation, ...] = ("auto",)
    """With which kernels; auto leaves it to bandjax."""
    batch: Annotated[int | None, _optional("INT", "the workload's")] = None
    """Examples in a batch."""
    processes: int = 3
    """Of each side, one in each round."""
    runs: int = 5
    """Timed calls of every function in each process, in turn."""
    seconds: float = 3.0
    """What the timed calls of one function may take in one process: a slow one is called less
    often, once at least, and its number of calls is recorded."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where all sides compute."""
    precisions: Annotated[
        tuple[Precision, ...] | None,
        _optional("{float32,tf32,bf16}...", "float32; on a GPU tf32 too"),
    ] = None
    """Of products, on all sides: float32 in full, TF32 (GPU), or bfloat16 as in mixed precision:
    maps in bfloat16, parameters in float32 (PyTorch's autocast)."""
    allocator: Allocator = "reuse"
    """reuse: memory that is freed stays in the process, on all sides; system: glibc hands large
    blocks back, and each call pays for fresh pages. Without effect where the C library is not
    glibc."""
    accuracy: bool = False
    """Compare every function with float64, too."""
    out: Path = Path("runs/benchmark.json")
    """The JSON file to write; the pictures lie beside it."""
    list: bool = False
    """Show the workloads, and do nothing else."""
    check: Annotated[tuple[Path, ...], _optional("FILE...", "none")] = ()
    """Compare earlier runs' JSON with the bounds in targets.py, and do nothing else."""
    strict: bool = False
    """With --check: exit with status 1 if a bound is missed or none was measured."""


def run(options: Options, console: Console) -> None:
    """Times the workloads, prints tables, writes the JSON file and the picture.

    Raises:
        UserError: an option cannot be, a peer or a device is not there, or a file cannot be
            written.
    """
    workloads = select(options.workloads, batch=options.batch, bands=options.bands)
    plan, precisions = _plan(options)
    jobs = [
        (workload, direction, precision)
        for workload in workloads
        for direction in workload.directions
        if direction in options.directions
        for precision in precisions
    ]
    if not jobs:
        have = ", ".join(dict.fromkeys(d for w in workloads for d in w.directions))
        raise UserError(f"nothing to time: these workloads have {have}: see --directions")
    for line in _not_there(workloads, options):
        console.print(line, highlight=False)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}") from error
    content: Record = {**_provenance(), "settings": _settings(options), "geometric_means": []}
    rows: list[Record] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn before each process alone: meanwhile this one is to do nothing.
    with Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=len(jobs))
        for number, (workload, direction, precision) in enumerate(jobs):
            title = f"{workload.name} · batch {workload.batch} · {direction} · {precision}"
            start = time.perf_counter()

            def advance(share: float, side: str, done: int = number, title: str = title) -> None:
                bar.update(task, completed=done + share, description=f"{title} · {side}")
                bar.refresh()

            rows.append(measured(workload, direction, precision, plan, advance))
            line = f"{number + 1}/{len(jobs)} · {title} · {time.perf_counter() - start:.0f} s"
            console.print(line, highlight=False)
            content["geometric_means"] = report.geometric_means(rows)
            # After each, so that what an interrupted job has measured is there.
            write_json(options.out, {**content, "rows": rows})
    for table in report.tables(rows, options.processes, options.runs):
        console.print(table)
    for note in report.notes(rows):
        console.print(note, highlight=False)
    written = [options.out]
    machine = content["machine"]
    title = f"{machine['device']}, {machine['cores']} cores, {content['date'][:10]}"
    for draw, ending in ((report.plot, ".png"), (scaling.plot, "-scaling.png")):
        picture = options.out.with_name(options.out.stem + ending)
        if draw(rows, title, picture):
            written.append(picture)
    console.print("written:", *map(str, written), soft_wrap=True, highlight=False)


def _not_there(workloads: Sequence[Workload], options: Options) -> Iterator[str]:
    """A line for each peer that would be timed if it were installed."""
    if options.peers is None:
        for peer in dict.fromkeys(peer for w in workloads for peer in w.peers):
            if lacking := missing(peer):
                yield f"without {peer}: {lacking} ({INSTALL})"


def _plan(options: Options) -> tuple[Plan, tuple[str, ...]]:
    """What was asked for, checked before anything is timed; and the precisions."""
    for name in ("processes", "runs"):
        if getattr(options, name) < 1:
            raise UserError(f"need --{name} >= 1, got {getattr(options, name)}")
    if not options.seconds >= 0:
        raise UserError(f"need --seconds >= 0, got {options.seconds:g}")
    for name in ("directions", "methods", "implementations"):
        if not getattr(options, name):
            raise UserError(f"need at least one of --{name}")
    precisions = options.precisions or (("float32", "tf32") if options.device == "gpu" else PLAIN)
    if options.device == "cpu" and "tf32" in precisions:
        raise UserError("--precisions tf32 is for --device gpu")
    _choose_device(options.device)
    for peer in options.peers or ():
        if lacking := missing(peer):
            raise UserError(f"--peers {peer}: {lacking}: {INSTALL}")
    for implementation in options.implementations:
        if implementation != "auto":
            _try(implementation)
    plan = Plan(
        peers=options.peers,
        methods=options.methods,
        implementations=options.implementations,
        processes=options.processes,
        runs=options.runs,
        seconds=options.seconds,
        device=options.device,
        allocator=options.allocator,
        accuracy=options.accuracy,
    )
    return plan, precisions


PLAIN = ("float32",)


def _choose_device(device: str) -> None:
    if device == "cpu":
        # Without effect once JAX has started, hence the look at what it has.
        jax.config.update("jax_platforms", "cpu")
        if jax.default_backend() != "cpu":
            raise UserError("--device cpu: JAX runs elsewhere already; set JAX_PLATFORMS=cpu")
        return
    # This process only looks: the memory is for those that measure.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() != "gpu":
        raise UserError(
            f"--device gpu: JAX has no GPU, its backend is {jax.default_backend()}; "
            "install JAX with its CUDA wheels, on a machine with an NVIDIA driver"
        )


def _try(implementation: str) -> None:
    shape = jax.ShapeDtypeStruct((1, 8, 1), "float32")
    kernel = jax.ShapeDtypeStruct((3, 1, 1), "float32")
    try:
        jax.eval_shape(
            lambda x, k: bandjax.band_conv(
                x, k, bandjax.Compression(0.5), implementation=implementation
            ),
            shape,
            kernel,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--implementations {implementation}: {' '.join(str(error).split())}"
        ) from error


# Variables that keep a side from instructions which the processor has: bandjax, and the library
# that computes for PyTorch, ONNX Runtime and OpenVINO.
_INSTRUCTION_SETS = ("BANDJAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")


def _provenance() -> Record:
    record = provenance()
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            record["versions"][package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    record["machine"]["device"] = device.device_kind if on_gpu else record["machine"]["cpu"]
    limits = {name: os.environ[name] for name in _INSTRUCTION_SETS if name in os.environ}
    if limits:
        record["machine"]["instruction_sets"] = limits
    if hasattr(os, "getloadavg"):
        record["machine"]["load_before"] = os.getloadavg()[0]
    return record


def _settings(options: Options) -> Record:
    skipped = ("out", "list", "check", "strict")
    return {name: value for name, value in asdict(options).items() if name not in skipped}


def list_workloads() -> Table:
    """What --workloads takes."""
    table = Table(title="--workloads takes groups and single workloads, and all")
    for heading in ("group", "workload", ""):
        table.add_column(heading, no_wrap=heading != "")
    for group, about in GROUPS.items():
        table.add_section()
        table.add_row(group, "", about, style="bold")
        for workload in WORKLOADS:
            if workload.group == group:
                table.add_row("", workload.name, workload.about())
                table.add_row("", "", f"{', '.join(workload.bands)}", style="dim")
    return table


def run_check(options: Options, console: Console) -> bool:
    """Prints the bounds and what the files hold on them; whether they hold.

    Raises:
        UserError: a file is missing or damaged.
    """
    verdicts = targets.check(targets.read_rows(options.check))
    console.print(targets.table(verdicts))
    console.print(targets.summary(verdicts), highlight=False)
    return targets.holds(verdicts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> int:
        options = parse_options(Options, words, "python -m experiments.benchmarks")
        if options.list:
            open_console().print(list_workloads())
        elif options.check:
            held = run_check(options, open_console())
            return 1 if options.strict and not held else 0
        elif options.strict:
            raise UserError("--strict goes with --check FILE")
        else:
            run(options, open_console())
        return 0

    return run_command(action, "the workloads that were finished are in the JSON file")


if __name__ == "__main__":
    sys.exit(main())
