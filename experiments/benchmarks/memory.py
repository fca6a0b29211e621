"""What whole networks keep for the backward pass: dense, band-limited, recomputed from spectra.

    python -m experiments.benchmarks.memory
    python -m experiments.benchmarks.memory --networks resnet18 --batch 128 --runs 7

Counts the tensors that a training step keeps between forward and backward (bandjax.memory), before
any compiler sees it; with --runs it also compiles and times the steps, and reports XLA's temporary
memory. On a GPU it also finds the largest batch that fits, and the allocator's peak there.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import time
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
    """On a GPU: with --runs also the largest batch that fits, its peak and its speed."""
    out: Path = Path("runs/memory.json")
    """The JSON file to write; the pictures lie beside it."""
    fit: bool = False
    """Find the largest batch of one network, band and variant that fits the GPU, print it with the
    allocator's peak and, once a line has come on standard input, the time of a step. The search
    does so in processes of their own, for a peak cannot be reset."""


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
                        fitting = Fitting(network, band, variant, options.runs)
                        row["largest"] = fitting.found() | {"seconds": fitting.seconds()}
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
    skipped = ("out", "fit")
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
    if any("largest" in row for row in rows.values()):
        headings += ["largest\nbatch", "its\npeak", "examples\na second"]
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
        if "largest" in row:
            found = row["largest"]
            cells += [str(found["batch"]), f"{found['peak'] / MIB:.0f}"]
            cells.append(f"{found['batch'] / min(found['seconds'], default=math.inf):.0f}")
        made.add_row(name, *cells)
    return made


class Fitting:
    """The search for the largest batch that fits, in a process of its own.

    Several may search at once; their steps are timed one after another, see :meth:`seconds`.
    """

    def __init__(self, network: str, band: str, variant: str, runs: int = 3) -> None:
        command = [sys.executable, "-m", "experiments.benchmarks.memory", "--fit"]
        command += ["--networks", network, "--bands", band, "--variants", variant]
        command += ["--runs", str(runs), "--device", jax.default_backend()]
        self._name = f"{network}, {band}, {variant}"
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
        )

    def found(self) -> Record:
        """Waits for the search: ``batch``, and ``peak`` and ``limit`` of the allocator, in bytes.

        Raises:
            UserError: the process failed.
        """
        return self._answer()

    def seconds(self) -> list[float]:
        """Lets the process time steps of that batch; nothing else should run meanwhile."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        times = self._answer()["seconds"]
        self._process.communicate()
        return [float(t) for t in times]

    def _answer(self) -> Record:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            message = self._process.communicate()[1].strip().splitlines()
            raise UserError(f"{self._name}: {message[-1] if message else 'no message'}")
        return dict(json.loads(line))


def print_fit(options: Options) -> None:
    """What a process of :class:`Fitting` does."""
    (network,), (band,), (variant,) = options.networks, options.bands, options.variants
    device, task = jax.devices()[0], TASKS[network]

    def stats(name: str) -> int:
        return int((device.memory_stats() or {}).get(name, 0))

    def bytes_of(batch: int) -> int:
        used, _ = Step(network, band, variant, batch).compiled()
        return used.temporary + used.argument + used.output - used.alias

    peaks: dict[int, int] = {}
    calls: dict[int, Callable[[], Any]] = {}

    def fits(batch: int) -> bool:
        calls.clear()  # And with it the arrays of the batch before.
        try:
            calls[batch] = Step(network, band, variant, batch).compiled()[1]
            calls[batch]()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            calls.clear()
            return False
        peaks[batch] = stats("peak_bytes_in_use")
        return True

    limit = stats("bytes_limit")
    most = options.batch if options.batch or limit else task.batch
    best = largest_batch(bytes_of, fits, limit, task.batch, most)
    print(json.dumps({"batch": best, "peak": peaks.get(best, 0), "limit": limit}), flush=True)
    sys.stdin.readline()
    seconds = []
    if best:
        if best not in calls:
            fits(best)
        for _ in range(options.runs):
            start = time.perf_counter()
            calls[best]()
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds}), flush=True)


def largest_batch(
    bytes_of: Callable[[int], int],
    fits: Callable[[int], bool],
    limit: int,
    first: int,
    most: int | None = None,
) -> int:
    """The largest batch that fits, to a sixteenth; 0 if not even one example does.

    Args:
        bytes_of: what a step of so many examples takes, as the compiler plans it.
        fits: whether a step of so many can be made.
        limit: bytes that there are; 0 if nobody knows.
        first: a batch of which the two are asked first.
        most: the largest of interest.
    """
    low, high = 0, math.inf if most is None else most + 1
    batch = first if most is None else most
    if limit:
        one, two = bytes_of(first), bytes_of(2 * first)
        each = max((two - one) / first, 1.0)
        batch = min(batch if most else 2**30, first + int((0.95 * limit - one) / each))
    batch = max(1, batch)
    while low < batch < high:
        if fits(batch):
            low = batch
            batch += max(1, batch // 16)
        else:
            high = batch
            batch -= max(1, batch // 8)
        if low and high - low > max(1, low // 16) and not low < batch < high:
            batch = int(low + high) // 2
        elif low and high - low <= max(1, low // 16):
            break
    return low


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        options = parse_options(Options, words, "python -m experiments.benchmarks.memory")
        if options.fit:
            print_fit(options)
        else:
            run(options, Console())

    return run_command(action, "the networks that are done are in the file")


if __name__ == "__main__":
    sys.exit(main())
