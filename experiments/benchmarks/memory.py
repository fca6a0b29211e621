"""What whole networks keep for the backward pass: dense, band-limited, recomputed from spectra.

    python -m experiments.benchmarks.memory
    python -m experiments.benchmarks.memory --networks resnet18 --batch 128 --runs 7

Counts the tensors that a training step keeps between forward and backward (bandjax.memory), before
any compiler sees it; with --runs it also compiles and times the steps, and reports XLA's temporary
memory. On a GPU it reads the allocator's peak too, and finds the largest batch that fits.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import bandjax
from experiments.benchmarks.allocator import release_memory
from experiments.benchmarks.timing import interleaved
from experiments.models.densenet import DenseNet
from experiments.models.fcn import FCN
from experiments.models.layers import convolutions_of
from experiments.models.resnet import ResNet, resnet50
from experiments.models.unet import UNet3D
from experiments.settings.bands import parse_band, parse_fixed_band
from experiments.settings.command import parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

MIB = 2**20
DENSE = "none"


@dataclass(frozen=True)
class Task:
    """A network and what it is trained on.

    Attributes:
        make: the network, of an example's shape and a number of classes.
        shape: of an example, channels last.
        classes: of the outputs.
        batch: examples in a step, unless another number is asked for.
        labels: shape of an example's labels; of a volume one a voxel.
    """

    make: Callable[..., nnx.Module]
    shape: tuple[int, ...]
    classes: int
    batch: int
    labels: tuple[int, ...] = ()


_jit = jax.jit  # In one place, so that tests can compile with less effort.
TASKS = {
    "resnet18": Task(ResNet, (32, 32, 3), 10, 32),
    "densenet121": Task(functools.partial(DenseNet, growth=12), (32, 32, 3), 10, 32),
    "resnet50": Task(resnet50, (224, 224, 3), 1000, 8),
    "fcn": Task(FCN, (270, 1), 50, 16),
    "fcn-long": Task(FCN, (16384, 1), 50, 4),
    "unet3d": Task(UNet3D, (32, 32, 32, 1), 2, 2, labels=(32, 32, 32)),
}


@dataclass(frozen=True)
class Variant:
    """How a step keeps what its backward pass needs.

    Attributes:
        about: for the table.
        residual_dtype: of the spectra.
        whole: makes of the loss another function.
        block: makes of a block's call another function.
    """

    about: str
    residual_dtype: str = "float32"
    whole: Callable[..., Any] | None = None
    block: Callable[..., Any] | None = None


_SPECTRA = functools.partial(jax.checkpoint, policy=bandjax.save_spectra)
VARIANTS = {
    "plain": Variant("everything"),
    "blocks": Variant("each block's input (jax.checkpoint)", block=nnx.remat),
    "spectra": Variant("spectra alone", whole=_SPECTRA),
    "spectra-blocks": Variant("spectra, each block's input", block=bandjax.nnx.remat),
    "bfloat16": Variant("spectra alone, bfloat16", "bfloat16", whole=_SPECTRA),
    "int8": Variant("spectra alone, int8", "int8", whole=_SPECTRA),
}
OF_DENSE = ("plain", "blocks")  # No spectra, nothing to keep of them.


@dataclass(frozen=True)
class Options:
    """Count what training keeps for the backward pass.

    Prints a table for each network, writes JSON and a picture for each beside it.
    """

    networks: tuple[str, ...] = tuple(TASKS)
    """resnet18, densenet121 (growth 12), fcn (270 samples), fcn-long (16,384), unet3d (32x32x32),
    resnet50 (224x224)."""
    bands: tuple[str, ...] = (DENSE, "compression=0.5", "compression=0.75", "compression=0.9")
    """none (Flax's own convolutions), compression=RATE or modes=U[,U..]."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """plain; blocks (jax.checkpoint around each block); spectra (jax.checkpoint around the loss,
    keeping spectra alone); spectra-blocks (bandjax.nnx.remat of each block); bfloat16 and int8
    (spectra of that type). Of a dense network plain and blocks alone."""
    batch: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the network's)")
    ] = None
    """Examples in a step."""
    runs: int = 0
    """Compile the steps and time them, so many times each, interleaved; 0 counts alone."""
    device: Literal["cpu", "gpu"] = "cpu"
    """On a GPU: with --runs also the allocator's peak and the largest batch that fits."""
    out: Path = Path("runs/memory.json")
    """The JSON file to write; the pictures lie beside it."""
    peak: bool = False
    """Run one step, of one network, band and variant, print the allocator's peak, and do nothing
    else: the search does so in processes of their own, for a peak cannot be reset."""


class Step:
    """A training step of one network, band and variant, by SGD with momentum."""

    def __init__(self, network: str, band: str, variant: str, batch: int) -> None:
        task, how = TASKS[network], VARIANTS[variant]
        options: dict[str, Any] = {"band": None, "convolution": nnx.Conv}
        if band != DENSE:
            options = {"band": parse_band(band)[1]}
        model = task.make(task.shape, task.classes, **options, remat=how.block, rngs=nnx.Rngs(0))
        for layer in convolutions_of(model):
            layer.residual_dtype = jnp.dtype(how.residual_dtype)
        model.train()
        graph, params, stats = nnx.split(model, nnx.Param, ...)
        optimizer = optax.sgd(0.01, momentum=0.9)
        self._first = params, stats, optimizer.init(params)
        self._batch = (batch, *task.shape), (batch, *task.labels)
        self._classes = task.classes

        def loss_of(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params, stats, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
            return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

        self.loss = loss_of if how.whole is None else how.whole(loss_of)

        def step(state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
            params, stats, memory = state
            gradient_of = jax.value_and_grad(self.loss, has_aux=True)
            (loss, stats), gradient = gradient_of(params, stats, x, y)
            updates, memory = optimizer.update(gradient, memory, params)
            return (optax.apply_updates(params, updates), stats, memory), loss

        self.jitted = _jit(step, donate_argnums=0)

    def saved(self) -> bandjax.memory.SavedBytes:
        """What the backward pass keeps."""
        params, stats, _ = self._first
        images, labels = self._batch
        x = jax.ShapeDtypeStruct(images, "float32")
        y = jax.ShapeDtypeStruct(labels, "int32")
        return bandjax.memory.saved_bytes(self.loss, params, stats, x, y, argnums=0, has_aux=True)

    def compiled(self) -> tuple[bandjax.memory.CompiledBytes, Callable[[], Any]]:
        """XLA's figures, and the step ready to be timed."""
        rng = np.random.default_rng(0)
        images, labels = self._batch
        x = jnp.asarray(rng.standard_normal(images, np.float32))
        y = jnp.asarray(rng.integers(self._classes, size=labels, dtype=np.int32))
        state = self._first
        used = bandjax.memory.compiled_bytes(self.jitted, state, x, y)

        def call() -> jax.Array:
            nonlocal state
            state, loss = jax.block_until_ready(self.jitted(state, x, y))
            return loss

        return used, call


def run(options: Options, console: Console) -> None:
    """Counts, prints tables, writes the JSON file and the pictures.

    Raises:
        UserError: an option cannot be, or a file cannot be written.
    """
    _check(options)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}") from error
    bandjax.tune_allocator()
    content: Record = {**provenance(), "settings": _settings(options), "rows": []}
    written = [options.out]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for network in options.networks:
            batch = options.batch or TASKS[network].batch
            cases = [
                (band, variant)
                for band in options.bands
                for variant in options.variants
                if band != DENSE or variant in OF_DENSE
            ]
            job = bar.add_task(network, total=len(cases))
            reports, rows, calls = {}, {}, {}
            for band, variant in cases:
                name = f"{'dense' if band == DENSE else band} · {VARIANTS[variant].about}"
                try:
                    step = Step(network, band, variant, batch)
                except ValueError as error:
                    raise UserError(f"{network}: {error}") from error
                reports[name] = saved = step.saved()
                row = rows[name] = {
                    "network": network,
                    "batch": batch,
                    "band": band,
                    "variant": variant,
                    "saved_bytes": saved.total,
                    "average_bytes": saved.average,
                    "constant_bytes": saved.constants,
                    "by_kind": saved.by_kind(),
                }
                if options.runs:
                    used, calls[name] = step.compiled()
                    row["compiled"] = asdict(used)
                    if options.device == "gpu":
                        row["allocator_peak"] = peak_of(network, band, variant, batch)
                        one = functools.partial(peak_of, network, band, variant)
                        row["largest_batch"] = largest_batch(one)
                bar.advance(job)
            if calls:
                for name, timing in interleaved(calls, options.runs, 3600).items():
                    rows[name]["seconds"] = timing.as_dict()
            release_memory()
            content["rows"] += rows.values()
            write_json(options.out, content)
            console.print(table(f"{network}, batch {batch}", rows))
            picture = options.out.with_name(f"{options.out.stem}-{network}.png")
            axes = bandjax.memory.plot(reports)
            axes.set_title(f"{network}, batch {batch}")
            axes.get_figure().savefig(picture, dpi=120)
            written.append(picture)
    console.print("written:", *map(str, written), soft_wrap=True, highlight=False)


def _settings(options: Options) -> Record:
    skipped = ("out", "peak")
    return {name: value for name, value in asdict(options).items() if name not in skipped}


def _check(options: Options) -> None:
    for name, known in (("networks", TASKS), ("variants", VARIANTS)):
        for chosen in getattr(options, name):
            if chosen not in known:
                raise UserError(f"--{name}: no {chosen!r}; known: {', '.join(known)}")
    for band in options.bands:
        parse_fixed_band(band)
    if options.runs < 0 or (options.batch is not None and options.batch < 1):
        raise UserError("need --runs >= 0 and --batch >= 1")
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        raise UserError(f"--device gpu: the backend of JAX is {jax.default_backend()}")


def table(title: str, rows: dict[str, Record]) -> Table:
    """MiB kept by each variant, its share of the first's; compiled memory and time if measured."""
    made = Table(title=title)
    made.add_column("kept for the backward pass", overflow="fold")
    headings = ["MiB", "of the\nfirst", "average"]
    measured = any("seconds" in row for row in rows.values())
    if measured:
        headings += ["XLA's\ntemporaries", "of the\nfirst", "step,\nms"]
    if any("largest_batch" in row for row in rows.values()):
        headings += ["allocator's\npeak", "largest\nbatch"]
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    first = next(iter(rows.values()))
    for name, row in rows.items():
        cells = [
            f"{row['saved_bytes'] / MIB:.1f}",
            f"{row['saved_bytes'] / max(first['saved_bytes'], 1):.1%}",
            f"{row['average_bytes'] / MIB:.1f}",
        ]
        if measured:
            temporary = row["compiled"]["temporary"]
            cells += [
                f"{temporary / MIB:.1f}",
                f"{temporary / max(first['compiled']['temporary'], 1):.0%}",
                f"{1e3 * row['seconds']['median']:.1f}",
            ]
        if "largest_batch" in row:
            peak = row["allocator_peak"]
            cells += ["?" if peak is None else f"{peak / MIB:.0f}", str(row["largest_batch"])]
        made.add_row(name, *cells)
    return made


def peak_of(network: str, band: str, variant: str, batch: int) -> int | None:
    """Bytes that the allocator held at most in one step, in a process of its own.

    None where the step does not fit, 0 where the backend does not count.

    Raises:
        UserError: the process failed for another reason.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.memory", "--peak"]
    command += ["--networks", network, "--bands", band, "--variants", variant]
    command += ["--batch", str(batch), "--device", jax.default_backend()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return int(json.loads(result.stdout.splitlines()[-1])["peak"])
    if "RESOURCE_EXHAUSTED" in result.stderr:
        return None
    lines = result.stderr.strip().splitlines()
    raise UserError(f"{network}, {band}, {variant}: {lines[-1] if lines else 'no message'}")


def print_peak(options: Options) -> None:
    """What a process of :func:`peak_of` does."""
    (network,), (band,), (variant,) = options.networks, options.bands, options.variants
    _, call = Step(network, band, variant, options.batch or TASKS[network].batch).compiled()
    call()
    stats = jax.devices()[0].memory_stats() or {}
    print(json.dumps({"peak": stats.get("peak_bytes_in_use", 0)}))


def largest_batch(peak_with: Callable[[int], int | None], most: int = 2**20) -> int:
    """The largest batch that fits, to an eighth; 0 if not even one example does.

    Args:
        peak_with: tells the peak with a batch, None where it does not fit.
        most: where to stop.
    """

    def fits(batch: int) -> bool:
        return batch <= most and peak_with(batch) is not None

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        options = parse_options(Options, words, "python -m experiments.benchmarks.memory")
        if options.peak:
            print_peak(options)
        else:
            run(options, Console())

    return run_command(action, "the networks that are done are in the file")


if __name__ == "__main__":
    sys.exit(main())
