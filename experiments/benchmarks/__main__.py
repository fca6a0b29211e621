"""Time bandjax against its peers.

    python -m experiments.benchmarks
    python -m experiments.benchmarks --workloads all --runs 9
    python -m experiments.benchmarks --check runs/benchmark.json

A training call returns the output and both gradients, all three live. Every function of a workload
is timed in the same rounds. The peers are jax.lax's convolution and PyTorch's (each in both memory
layouts, the faster one counts), and band-limited convolutions as one writes them with jnp.fft, on
bandjax's grid and on the powers of two of the paper's authors; for a whole network Flax and
PyTorch.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import bandjax
from experiments.benchmarks import report, targets
from experiments.benchmarks.allocator import release_memory
from experiments.benchmarks.measure import Plan, measure, torch_installed
from experiments.benchmarks.workloads import GROUPS, WORKLOADS, Network, Workload, select
from experiments.settings.command import parse_options, run_command
from experiments.settings.config import Method
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

Peer = Literal["lax", "flax", "torch", "fft", "fft-pow2"]
Direction = Literal["train", "forward"]
Implementation = Literal["auto", "xla", "native"]
Precision = Literal["float32", "tf32"]
Allocator = Literal["reuse", "system"]


def _optional(metavar: str, hint: str) -> object:
    """How --help shows an option that may be left out."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {hint})")


@dataclass(frozen=True)
class Options:
    """Time bandjax against its peers, in the same rounds.

    Prints tables, writes JSON (medians, quartiles, machine, versions, date) and a picture beside
    it. The default takes a few minutes.
    """

    workloads: tuple[str, ...] = ("stages",)
    """Groups or single workloads to time, or all; --list shows them."""
    peers: Annotated[
        tuple[Peer, ...] | None, _optional("PEER...", "those of the workload that are installed")
    ] = None
    """lax (dense convolution), flax (dense network), torch (both, by PyTorch), fft (jnp.fft on
    bandjax's grid), fft-pow2 (jnp.fft on the authors' powers of two). The last two are timed at the
    first band that drops anything."""
    bands: Annotated[tuple[str, ...] | None, _optional("BAND...", "the workload's")] = None
    """none (every frequency), compression=RATE or modes=U[,U..]. Small maps are coarse: the tables
    have the true shares."""
    directions: tuple[Direction, ...] = ("train", "forward")
    """train (output and both gradients) or forward (output alone); a network is trained."""
    methods: tuple[Method, ...] = ("auto",)
    """How bandjax computes; auto chooses."""
    implementations: tuple[Implementation, ...] = ("auto",)
    """With which kernels; auto leaves it to bandjax."""
    batch: Annotated[int | None, _optional("INT", "the workload's")] = None
    """Examples in a batch."""
    runs: int = 11
    """Rounds; each calls every function once."""
    seconds: float = 5.0
    """What the timed calls of one function may take: a slow one takes part in fewer rounds, one
    at least, and its number of calls is recorded."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where all sides compute."""
    precisions: Annotated[
        tuple[Precision, ...] | None,
        _optional("{float32,tf32}...", "float32; on a GPU both"),
    ] = None
    """Of products, on all sides: float32 in full, or TF32 (GPU)."""
    allocator: Allocator = "reuse"
    """reuse: memory that is freed stays in the process, on all sides; system: glibc hands large
    blocks back, and each call pays for fresh pages. Without effect where the C library is not
    glibc."""
    accuracy: bool = False
    """Compare every function with float64, too."""
    out: Path = Path("runs/benchmark.json")
    """The JSON file to write; the picture lies beside it."""
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
    if options.allocator == "reuse":
        bandjax.tune_allocator()
    workloads = select(options.workloads, batch=options.batch, bands=options.bands)
    plan, precisions = _plan(options)
    jobs = [
        (workload, direction, precision)
        for workload in workloads
        for direction in _directions(workload, options)
        for precision in precisions
    ]
    if not jobs:
        raise UserError("nothing to time: a network is trained, add train to --directions")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}") from error
    content: Record = {**_provenance(), "settings": _settings(options), "geometric_means": []}
    rows: list[Record] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=len(jobs))
        for number, (workload, direction, precision) in enumerate(jobs):
            title = f"{workload.name} · batch {workload.batch} · {direction} · {precision}"
            bar.update(task, description=title)
            start = time.perf_counter()
            rows.append(
                measure(
                    workload,
                    direction,
                    precision,
                    plan,
                    lambda share, done=number: bar.update(task, completed=done + share),
                )
            )
            release_memory()
            line = f"{number + 1}/{len(jobs)} · {title} · {time.perf_counter() - start:.0f} s"
            console.print(line, highlight=False)
            content["geometric_means"] = report.geometric_means(rows)
            # After each, so that what an interrupted job has measured is there.
            write_json(options.out, {**content, "rows": rows})
    for table in report.tables(rows, options.runs):
        console.print(table)
    for note in report.notes(rows):
        console.print(note, highlight=False)
    written = [options.out]
    machine = content["machine"]
    title = f"{machine['device']}, {machine['cores']} cores, {content['date'][:10]}"
    picture = options.out.with_suffix(".png")
    if report.plot(rows, title, picture):
        written.append(picture)
    console.print("written:", *map(str, written), soft_wrap=True, highlight=False)


def _directions(workload: Workload, options: Options) -> tuple[str, ...]:
    if isinstance(workload, Network):
        return tuple(d for d in options.directions if d == "train")
    return options.directions


def _plan(options: Options) -> tuple[Plan, tuple[str, ...]]:
    """What was asked for, checked before anything is timed; and the precisions."""
    if options.runs < 1 or not options.seconds >= 0:
        raise UserError(
            f"need --runs >= 1 and --seconds >= 0, got {options.runs} and {options.seconds:g}"
        )
    for name in ("directions", "methods", "implementations"):
        if not getattr(options, name):
            raise UserError(f"need at least one of --{name}")
    precisions = options.precisions or (("float32", "tf32") if options.device == "gpu" else PLAIN)
    if options.device == "cpu" and "tf32" in precisions:
        raise UserError("--precisions tf32 is for --device gpu")
    _choose_device(options.device)
    if options.peers is not None and "torch" in options.peers and not torch_installed():
        raise UserError("--peers torch: PyTorch is not installed: pip install torch")
    for implementation in options.implementations:
        if implementation != "auto":
            _try(implementation)
    plan = Plan(
        peers=options.peers,
        methods=options.methods,
        implementations=options.implementations,
        runs=options.runs,
        seconds=options.seconds,
        device=options.device,
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
    elif jax.default_backend() != "gpu":
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


def _provenance() -> Record:
    record = provenance()
    if torch_installed():
        record["versions"]["torch"] = importlib.metadata.version("torch")
    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    record["machine"]["device"] = device.device_kind if on_gpu else record["machine"]["cpu"]
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
            Console().print(list_workloads())
        elif options.check:
            held = run_check(options, Console())
            return 1 if options.strict and not held else 0
        elif options.strict:
            raise UserError("--strict goes with --check FILE")
        else:
            run(options, Console())
        return 0

    return run_command(action, "the workloads that were finished are in the JSON file")


if __name__ == "__main__":
    sys.exit(main())
