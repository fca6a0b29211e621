"""Networks whose forward pass is exact and whose residuals are compressed: bytes, time, gradient.

    python -m experiments.benchmarks.saved --networks resnet18-pool --steps 100 --data-dir DIR
    python -m experiments.benchmarks.saved --networks resnet18 --batch 128 --runs 7

Counts what a training step keeps for its backward pass, dense, by jax.checkpoint of each block, by
spectra and by each codec; compares the whole gradient with the exact one, at the beginning and
after some steps; with --runs it compiles and times the steps too. CIFAR-10, and FiftyWords for
the FCN, are read from --data-dir; without it, and for networks of other examples, examples are
noise with a wave whose direction tells the class.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import bandjax
from bandjax._optional import report_module
from experiments.benchmarks.allocator import release_memory
from experiments.benchmarks.steps import DENSE, EXACT, TASKS, Step
from experiments.benchmarks.timing import interleaved
from experiments.data import load
from experiments.settings.codecs import parse_codec
from experiments.settings.command import open_console, parse_options, run_command
from experiments.settings.errors import UserError
from experiments.settings.records import Record, provenance, write_json

MIB = 2**20
CODECS = (
    *("dct:8bits", "dct:6bits", "dct:5bits", "dct:4bits", "dct:3bits", "dct:2.5bits", "dct:2bits"),
    *("dct:0.25@8bits", "average:2bits", "uniform:2bits", "uniform:4bits", "cast:bfloat16"),
)
_DATA = {(32, 32, 3): "cifar10", (270, 1): "ucr:FiftyWords"}  # of examples of a shape
_PLAIN = {  # band, variant of the step
    "dense": (None, "plain"),
    "jax.checkpoint of each block": (None, "blocks"),
    "spectra at 50 %": ("compression=0.5", "spectra"),
    "spectra at 75 %": ("compression=0.75", "spectra"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Compress what training keeps for the backward pass, and look at the gradient.

    Prints a table for each network, writes JSON and a picture for each beside it.
    """

    networks: tuple[str, ...] = ("resnet18-pool",)
    """resnet18-pool, resnet18, densenet121 (growth 12), resnet50 (224x224), fcn, unet3d, vit."""
    codecs: tuple[str, ...] = CODECS
    """dct:BITSbits, dct:SHARE@BITSbits, average:BITSbits[@BLOCK], uniform:BITSbits[@GROUP],
    cast:TYPE."""
    blocks: tuple[str, ...] = ("dct:6bits", "dct:4bits")
    """Codecs of the inputs of blocks, with jax.checkpoint of each block."""
    spectra: bool = True
    """Spectra at 50 % and 75 % too, whose forward pass is not exact."""
    convolutions: Annotated[str, tyro.conf.arg(metavar="{exact,flax}")] = "exact"
    """exact: by the library's own, every frequency kept; flax: by XLA's."""
    batch: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the network's)")
    ] = None
    """Examples in a step."""
    steps: int = 0
    """Training steps, exact ones, after which the gradients are compared again; 0: never."""
    batches: int = 5
    """Batches over which the gradient is compared; the median counts. 0: never."""
    runs: int = 0
    """Compile the steps and time them, so many times each, interleaved; 0 counts alone."""
    data_dir: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")
    ] = None
    """Folder that holds cifar-10-batches-py/ and UCRArchive_2018/."""
    out: Path = Path("runs/saved.json")
    """The JSON file to write; the pictures lie beside it."""


def run(options: Options, console: Console) -> None:
    """Measures, prints tables, writes the JSON file and the pictures.

    Raises:
        UserError: an option cannot be, or a file cannot be written.
    """
    _check(options)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}") from error
    bandjax.tune_allocator()
    told = {name: value for name, value in dataclasses.asdict(options).items() if name != "out"}
    told["data_dir"] = None if options.data_dir is None else "given"
    content: Record = {**provenance(), "settings": told, "rows": []}
    written = [options.out]
    for network in options.networks:
        rows = {}
        for row in _rows(network, options, console):
            rows[row["name"]] = row
            write_json(options.out, {**content, "rows": [*content["rows"], *rows.values()]})
        content["rows"] += rows.values()
        write_json(options.out, content)
        console.print(table(f"{network}, batch {row['batch']}", list(rows.values())))
        if options.batches:
            picture = options.out.with_name(f"{options.out.stem}-{network}.png")
            plot(f"{network}, batch {row['batch']}", list(rows.values()), picture)
            written.append(picture)
    console.print("written:", *map(str, written), soft_wrap=True, highlight=False)


def _check(options: Options) -> None:
    for network in options.networks:
        if network not in TASKS:
            raise UserError(f"--networks: no {network!r}; known: {', '.join(TASKS)}")
    for text in (*options.codecs, *options.blocks):
        if parse_codec(text) is None:
            raise UserError("--codecs and --blocks take codecs, got 'none', which is there anyway")
    if options.convolutions not in ("exact", "flax"):
        raise UserError(f"--convolutions must be exact or flax, got {options.convolutions!r}")
    if min(options.steps, options.batches, options.runs) < 0 or (options.batch or 1) < 1:
        raise UserError("need --steps, --batches and --runs >= 0 and --batch >= 1")


def _rows(network: str, options: Options, console: Console) -> Iterator[Record]:
    """A row for each way to keep residuals; the first is dense."""
    batch = options.batch or TASKS[network].batch
    dense = EXACT if options.convolutions == "exact" else DENSE
    makers: dict[str, Callable[[], Step]] = {}
    for name, (band, variant) in _PLAIN.items():
        banded = band is not None
        if (banded and (network == "vit" or not options.spectra)) or (
            variant == "blocks" and network == "lenet"
        ):
            continue
        makers[name] = functools.partial(Step, network, band or dense, variant, batch)
    for text in options.codecs:
        codec = parse_codec(text)
        makers[text] = functools.partial(Step, network, dense, "plain", batch, codec)
    for text in options.blocks:
        codec = parse_codec(text)
        name = f"{text} of each block's input"
        makers[name] = functools.partial(Step, network, dense, "blocks", batch, codec)
    gradients = _Gradients(network, batch, dense, options, console)
    calls, rows = {}, {}
    for name, make in makers.items():
        step = make()
        saved = step.saved()
        row: Record = {
            "name": name,
            "network": network,
            "batch": batch,
            "saved_bytes": saved.total,
            "by_codec": saved.by_codec(),
        }
        if options.runs:
            used, calls[name] = step.compiled()
            row["temporary_bytes"] = used.temporary
        row |= gradients.compared(step)
        rows[name] = row
        first = next(iter(rows.values()))["saved_bytes"]
        console.print(
            f"{name}: {saved.total / MIB:.2f} MiB ({first / max(saved.total, 1):.1f}x)",
            *(f"{k} {v:.5f}" for k, v in row.items() if k.startswith("cosine")),
            highlight=False,
        )
        if not options.runs:
            yield row
        release_memory()
    if calls:
        for name, timing in interleaved(calls, options.runs, 3600).items():
            rows[name]["seconds"] = timing.as_dict()
        yield from rows.values()


class _Gradients:
    """The exact gradients of some batches, at the beginning and after some steps."""

    def __init__(
        self, network: str, batch: int, dense: str, options: Options, console: Console
    ) -> None:
        self._exact: dict[str, list[np.ndarray]] = {}
        self._states: dict[str, Any] = {}
        if not options.batches:
            return
        step = Step(network, dense, "plain", batch)
        draw = _batches(network, batch, options)
        # A copy: a step uses its state up.
        state = jax.tree.map(jnp.array, step.first)
        self._states["init"] = step.first[:2]
        for number in range(options.steps):
            state, loss = step.jitted(state, *next(draw))
            if number % 20 == 0:
                console.print(f"step {number}: loss {float(loss):.3f}", highlight=False)
        if options.steps:
            self._states[f"{options.steps} steps"] = state[:2]
        self._batches = [next(draw) for _ in range(options.batches)]
        for name in self._states:
            self._exact[name] = list(self._of(step, name))

    def _of(self, step: Step, name: str) -> Iterator[np.ndarray]:
        """The whole gradient of each batch as one vector, float64."""
        gradient = jax.jit(jax.grad(step.loss, has_aux=True))
        for x, y in self._batches:
            leaves = jax.tree.leaves(gradient(*self._states[name], x, y)[0])
            yield np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])

    def compared(self, step: Step) -> Record:
        """Cosine with the exact gradient and relative error: the medians over the batches."""
        row: Record = {}
        for name, exact in self._exact.items():
            pairs = list(zip(self._of(step, name), exact, strict=True))
            cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]
            errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
            row[f"cosine, {name}"] = float(np.median(cosines))
            row[f"relative error, {name}"] = float(np.median(errors))
        return row


def _batches(network: str, batch: int, options: Options) -> Iterator[Any]:
    """Batches without end: of real examples where they are given and fit, else of waves."""
    task = TASKS[network]
    rng = np.random.default_rng(0)
    if options.data_dir is not None and task.shape in _DATA:
        examples = load(_DATA[task.shape], options.data_dir)
        while True:
            for start in range(0, len(examples.x_train) // batch * batch, batch):
                x, y = (
                    examples.x_train[start : start + batch],
                    examples.y_train[start : start + batch],
                )
                yield np.asarray(x, np.float32), np.asarray(y, np.int32)
    patterns = _Patterns(task.shape, task.classes)
    while True:
        x = _smooth(rng.standard_normal((batch, *task.shape), np.float32))
        if task.labels:  # of each point: whether its surroundings are above the average
            yield x, (_smooth(x)[..., 0] > 0).astype(np.int32)
        else:
            y = rng.integers(task.classes, size=batch, dtype=np.int32)
            yield x + patterns.of(y, rng), y


def _smooth(x: np.ndarray) -> np.ndarray:
    """Sums of four neighbours along each spatial axis."""
    for axis in range(1, x.ndim - 1):
        x = sum(np.roll(x, shift, axis) for shift in range(4)) / 2
    return x


class _Patterns:
    """Waves whose direction and colour tell a class, so that there is something to be learnt."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        rng = np.random.default_rng(1)
        *self._spatial, channels = shape
        self._waves = rng.uniform(-8, 8, (classes, len(self._spatial)))  # periods of each axis
        self._colours = rng.standard_normal((classes, channels))

    def of(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A wave for each label, its phase by chance."""
        angles = rng.uniform(0, 2 * np.pi, (len(y), *(1 for _ in self._spatial)))
        for axis, size in enumerate(self._spatial):
            place = np.arange(size).reshape(-1, *(1,) * (len(self._spatial) - 1 - axis)) / size
            own = self._waves[y, axis].reshape(-1, *(1 for _ in self._spatial))
            angles = angles + 2 * np.pi * own * place
        colours = self._colours[y].reshape(len(y), *(1 for _ in self._spatial), -1)
        return (np.cos(angles)[..., None] * colours).astype(np.float32)


def table(title: str, rows: list[Record]) -> Table:
    """MiB, times fewer than dense, and what else was measured."""
    made = Table(title=title)
    made.add_column("kept for the backward pass", overflow="fold", min_width=16)
    cosines = [name for name in rows[0] if name.startswith(("cosine", "relative"))]
    timed = "seconds" in rows[0]
    headings = ["MiB", "times\nfewer", *(["temporaries,\nMiB", "step,\nms"] if timed else [])]
    for heading in [*headings, *(re.sub(", | (?=error)", "\n", name) for name in cosines)]:
        made.add_column(heading, justify="right", no_wrap=True)
    first = rows[0]["saved_bytes"]
    for row in rows:
        cells = [f"{row['saved_bytes'] / MIB:.2f}", f"{first / max(row['saved_bytes'], 1):.1f}"]
        if timed:
            cells += [
                f"{row['temporary_bytes'] / MIB:.0f}",
                f"{1e3 * row['seconds']['median']:.1f}",
            ]
        made.add_row(row["name"], *cells, *(f"{row[name]:.5f}" for name in cosines))
    return made


def _family(name: str) -> tuple[str, str]:
    """What a row's points share, and what tells them apart: ``"dct"`` and ``"4bits"``, say."""
    codec, _, rest = name.partition(":")
    if not rest:
        return ("spectra", name.removeprefix("spectra at ")) if "spectra" in name else ("", name)
    bits, _, blocks = rest.partition(" ")
    return f"{codec} {blocks}".strip(), bits.removesuffix("bits")


def plot(title: str, rows: list[Record], path: Path) -> None:
    """Bytes against the cosine with the exact gradient, the Pareto front drawn."""
    figures = report_module("matplotlib.figure")
    axes = figures.Figure(figsize=(8, 5), layout="constrained").subplots()
    name = [key for key in rows[0] if key.startswith("cosine")][-1]
    families: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        family, label = _family(row["name"])
        point = row["saved_bytes"] / MIB, max(1 - row[name], 1e-7), label
        families.setdefault(family, []).append(point)
    for number, (family, points) in enumerate(families.items()):
        x, y, labels = zip(*points, strict=True)
        color = f"C{number}" if family else "black"
        axes.plot(x, y, "osD^vPX"[number % 7], color=color, label=family or None)
        side = ("left", "right")[number % 2] if family else "center"
        offset = {"left": (5, 3), "right": (-5, 3), "center": (0, 7)}[side]
        for at in zip(x, y, labels, strict=True):
            told = {"textcoords": "offset points", "fontsize": 7, "color": color, "ha": side}
            axes.annotate(at[2], at[:2], offset, **told)
    front, best = [], np.inf
    for x, y, _ in sorted(point for points in families.values() for point in points):
        if y < best:
            front.append((x, y))
            best = y
    axes.plot(*zip(*front, strict=True), color="0.6", zorder=0, label="the best")
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlabel("kept for the backward pass, MiB")
    axes.set_ylabel(f"1 - {name}")
    axes.margins(x=0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="codec, bits a value", title_fontsize="small")
    axes.get_figure().savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> None:
        options = parse_options(Options, words, "python -m experiments.benchmarks.saved")
        run(options, open_console())

    return run_command(action, "the rows that are done are in the file")


if __name__ == "__main__":
    sys.exit(main())
