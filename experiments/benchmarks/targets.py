"""The bounds that the library is to reach, and whether a recorded run reaches them.

The bounds of the CPU are for two AVX-512 cores, those of the GPU for an H100.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from experiments.benchmarks.layers import bandjax_name
from experiments.benchmarks.report import geometric_mean
from experiments.benchmarks.workloads import SCALING, WORKLOADS, Layer
from experiments.settings.errors import UserError
from experiments.settings.records import Record

HALF = "compression=0.5"
QUARTER = "compression=0.75"
SIZES = {w.name: w.batch for w in WORKLOADS}
LAYERS: dict[str, tuple[str, ...]] = {}  # by group
for _workload in WORKLOADS:
    if isinstance(_workload, Layer):
        LAYERS[_workload.group] = (*LAYERS.get(_workload.group, ()), _workload.name)
STAGES = tuple(f"stage{n}" for n in range(1, 5))
STAGES_32 = tuple(f"{name}-32" for name in STAGES)


@dataclass(frozen=True)
class Target:
    """One bound.

    Attributes:
        text: which it is, in the words of the table that it comes from.
        kind: what is compared. ``mean``: the geometric mean of the peer's time over bandjax's,
            over the workloads. ``each``: the least of them. ``time``: bandjax's time over the
            peer's, the greatest. ``memory``: the same of temporary memory. ``error``: relative to
            float64, the greatest. ``growth``: bandjax's time a point, the greatest over that of the
            first workload. ``elsewhere``: this program does not measure it.
        bound: at least, for ``mean`` and ``each``; else at most.
        workloads: all of which must have been measured, in the batch size that is theirs.
        band: its label.
        peer: against which.
        directions: all of which must have been measured.
        device: ``cpu`` or ``gpu``.
        precision: ``float32``, ``tf32`` or ``bf16``.
    """

    text: str
    kind: str
    bound: float
    workloads: tuple[str, ...] = ()
    band: str = HALF
    peer: str = "lax"
    directions: tuple[str, ...] = ("train",)
    device: str = "cpu"
    precision: str = "float32"


BOTH = ("train", "forward")
FIRST = ("stage1",)
STEP = ("resnet18",)
POOL = ("resnet18-pool",)
FORWARD = ("forward",)

TARGETS: tuple[Target, ...] = (
    *(
        Target(f"{name}, train, {share}: against torch", "each", bound, (name,), band, "torch")
        for name, bounds in (
            ("map64", (1, 2, 3)),
            ("map128", (1, 2, 3)),
            ("map256", (1, 2, 3)),
            ("map512", (1, 1.5, 2)),
            ("volume64", (1, 2, 2)),
            ("volume96", (1, 2, 3.5)),
        )
        for share, band, bound in zip(
            ("exact", "50 %", "75 %"), ("none", HALF, QUARTER), bounds, strict=True
        )
    ),
    *(
        Target(f"{name}, train, exact: against lax", "each", bound, (name,), "none")
        for name, bound in (
            ("up-3d", 20),
            ("up-3d-to-one", 0.95),
            ("up-2d", 0.95),
            ("up-1d", 3),
            ("grouped", 50),
            ("depthwise3", 6),
            ("taps100", 3),
            ("taps1001", 0.95),
            ("taps16x16", 0.95),
            ("to-one-3d", 0.95),
            ("small-map", 0.95),
        )
    ),
    Target("stem, train, 50 %: against lax", "each", 0.95, ("stem",)),
    Target(
        "time a pixel, 32² to 512², train, 50 %: grows",
        "growth",
        1.5,
        tuple(f"scale2d-{size}" for size in (32, 64, 128, 256, 512)),
    ),
    *(
        Target(
            f"ResNet-18 step, {precision}, {share}: against torch",
            "each",
            bound,
            STEP,
            band,
            "torch",
            precision=precision,
        )
        for precision, share, band, bound in (
            ("bf16", "50 %", HALF, 1.6),
            ("bf16", "75 %", QUARTER, 2),
            ("float32", "exact", "none", 1.2),
            ("float32", "50 %", HALF, 2.2),
        )
    ),
    Target("ResNet-18 step with pooling, exact: against torch", "each", 1, POOL, "none", "torch"),
    *(
        Target(
            f"inference, batch {batch}, {precision}, {share}: against {peer}",
            "each",
            bound,
            (f"infer{batch}",),
            band,
            peer,
            FORWARD,
            precision=precision,
        )
        for batch, precision, share, band, peer, bound in (
            (32, "bf16", "50 %", HALF, "openvino", 1.5),
            (32, "bf16", "75 %", QUARTER, "openvino", 2.2),
            (32, "float32", "exact", "none", "openvino", 1.3),
            (1, "float32", "50 %", HALF, "onnxruntime", 1),
            (1, "float32", "75 %", QUARTER, "openvino", 1),
        )
    ),
    Target("stages, batch 128, train, 50 %: mean against lax", "mean", 6, STAGES),
    Target("stages, batch 128, train, 75 %: mean against lax", "mean", 9, STAGES, QUARTER),
    Target("stages, batch 128, train, 50 %: no stage below", "each", 3.5, STAGES),
    Target("stages, batch 128, train, 50 %: mean against torch", "mean", 3, STAGES, peer="torch"),
    Target(
        "stages, batch 128, train, 75 %: mean against torch", "mean", 5, STAGES, QUARTER, "torch"
    ),
    Target("stages, batch 32, train, 50 %: mean against lax", "mean", 4, STAGES_32),
    Target("stages, batch 32, train, 75 %: mean against lax", "mean", 6.5, STAGES_32, QUARTER),
    Target("stages, batch 32, train, 50 %: mean against torch", "mean", 2, STAGES_32, peer="torch"),
    Target("stages, batch 32, train, 50 %: no stage below", "each", 1.5, STAGES_32),
    Target("stages, batch 32, train, 75 %: no stage below", "each", 1.5, STAGES_32, QUARTER),
    Target(
        "stages, batch 128, forward, 50 %: mean against lax",
        "mean",
        2.5,
        STAGES,
        directions=("forward",),
    ),
    Target(
        "stages, batch 128, forward, 75 %: mean against lax",
        "mean",
        5,
        STAGES,
        QUARTER,
        directions=("forward",),
    ),
    *(
        Target(
            f"every coefficient, {group}: against lax",
            "each",
            0.95,
            names,
            "none",
            "lax",
            ("train",) if group == SCALING else BOTH,
        )
        for group, names in LAYERS.items()
        if group != "fno"
    ),
    Target("every coefficient, stages 1 to 3, train: each", "each", 1.5, STAGES[:3], "none"),
    Target("stage 1, train, 50 %: against jnp.fft", "each", 8, FIRST, peer="fft"),
    Target(
        "depthwise 31×31, 50 %: against lax, train and forward",
        "each",
        100,
        ("depthwise31",),
        directions=BOTH,
    ),
    Target(
        "depthwise 31×31, 50 %: against jnp.fft, train and forward",
        "each",
        4,
        ("depthwise31",),
        peer="fft",
        directions=BOTH,
    ),
    Target("depthwise 7×7, train, 50 %: against lax", "each", 8, ("depthwise7",)),
    Target("FNO layer, train: against jnp.fft", "each", 4, ("fno",), "modes=12,12", "fft"),
    Target("ResNet-18 step, 50 %: share of Flax dense", "time", 0.45, STEP, HALF, "flax"),
    Target("ResNet-18 step, 50 %: share of torch", "time", 0.9, STEP, HALF, "torch"),
    Target("ResNet-18 step, 75 %: share of Flax dense", "time", 0.35, STEP, QUARTER, "flax"),
    Target("ResNet-18 step, 75 %: share of torch", "time", 0.75, STEP, QUARTER, "torch"),
    Target("ResNet-18 step, 50 %: temporary memory over dense", "memory", 1, STEP, HALF, "flax"),
    *(
        Target(f"error, {group}, {band}", "error", 1e-5, names, band)
        for group, names in LAYERS.items()
        for band in (("modes=12,12",) if group == "fno" else ("none", HALF, QUARTER))
    ),
    Target("GPU: tiled multiply-sum against the paper's kernel", "elsewhere", 10, device="gpu"),
    Target("GPU: stage 1, 50 %: against jnp.fft", "each", 5, FIRST, peer="fft", device="gpu"),
    Target("GPU: stages, 50 %, float32: against cuDNN", "mean", 2, STAGES, device="gpu"),
    Target(
        "GPU: stages, 50 %, TF32: against cuDNN",
        "mean",
        0.9,
        STAGES,
        device="gpu",
        precision="tf32",
    ),
    Target(
        "GPU: stages, 75 %, TF32: against cuDNN",
        "mean",
        1.2,
        STAGES,
        QUARTER,
        device="gpu",
        precision="tf32",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A target and what a run has to say on it.

    Attributes:
        target: the bound.
        status: ``pass``, ``fail`` or ``not measured``.
        figure: what is compared with the bound; None if it was not measured.
        detail: the figure of each workload, or what is missing beside those that were measured.
    """

    target: Target
    status: str
    figure: float | None
    detail: str


def read_rows(paths: Iterable[Path]) -> list[Record]:
    """The rows of one or several files; each gets the ``device`` of its file.

    Raises:
        UserError: a file is missing, or not one that this program wrote.
    """
    rows = []
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            device = content["settings"]["device"]
            rows += [{**row, "device": device} for row in content["rows"]]
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a record of a benchmark: {error!r}") from error
    return rows


def check(rows: Sequence[Record], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Compare a run with the bounds.

    Only what bandjax chose itself counts (method and implementation ``auto``), and of two rows of
    the same kind the later.
    """
    return [_verdict(target, rows) for target in targets]


def _verdict(target: Target, rows: Sequence[Record]) -> Verdict:
    """Whether the rows meet a bound; the last row of a workload counts."""
    if target.kind == "elsewhere":
        return Verdict(target, "not measured", None, "not by this program")
    figures: dict[str, float] = {}
    missing = []
    for workload in target.workloads:
        for direction in target.directions:
            name = workload if len(target.directions) == 1 else f"{workload} {direction}"
            found = [row for row in rows if _matches(row, target, workload, direction)]
            figure = _figure(target, found[-1]) if found else None
            if figure is None:
                missing.append(name)
            else:
                figures[name] = figure
    if missing:
        # What is missing is worth a word where the rest is there.
        detail = f"no {', '.join(missing)}" if figures else ""
        return Verdict(target, "not measured", None, detail)
    values = list(figures.values())
    at_least = target.kind in ("mean", "each")
    if target.kind == "mean":
        figure = geometric_mean(values)
    elif target.kind == "growth":
        figure = max(values) / values[0]
    else:
        figure = min(values) if at_least else max(values)
    passed = figure >= target.bound if at_least else figure <= target.bound
    detail = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    return Verdict(target, "pass" if passed else "fail", figure, detail)


def _matches(row: Record, target: Target, workload: str, direction: str) -> bool:
    return (
        row["workload"] == workload
        and row["batch"] == SIZES[workload]
        and row["direction"] == direction
        and row["precision"] == target.precision
        and row["device"] == target.device
    )


def _figure(target: Target, row: Record) -> float | None:
    """What a row has on a bound; None if it was not measured."""
    name = bandjax_name(target.band)
    ratio = row["ratios"].get(name, {}).get(target.peer)
    if target.kind in ("mean", "each"):
        return ratio
    if target.kind == "time":
        return None if ratio is None else 1 / ratio
    ours = next((c for c in row["candidates"] if c["name"] == name), None)
    if ours is None or target.kind == "error":
        return None if ours is None else ours["error"]
    if target.kind == "growth":
        return ours["seconds"]["median"] / row["points"]
    peers = [c["temp_bytes"] for c in row["candidates"] if c["side"] == target.peer]
    if None in (ours["temp_bytes"], *peers) or not peers:
        return None
    return ours["temp_bytes"] / max(1, min(peers))


def table(verdicts: Sequence[Verdict]) -> Table:
    """Pass or fail, line by line."""
    result = Table(title="the bounds")
    for heading in ("", "bound", "figure", "", "workload by workload"):
        result.add_column(heading, justify="right" if heading in ("bound", "figure") else "left")
    colours = {"pass": "green", "fail": "red", "not measured": "dim"}
    for verdict in verdicts:
        sign = "≥" if verdict.target.kind in ("mean", "each", "elsewhere") else "≤"
        result.add_row(
            verdict.target.text,
            f"{sign} {verdict.target.bound:g}",
            "" if verdict.figure is None else f"{verdict.figure:.3g}",
            f"[{colours[verdict.status]}]{verdict.status}[/]",
            verdict.detail,
        )
    return result


def summary(verdicts: Sequence[Verdict]) -> str:
    """``12 pass, 3 fail, 5 not measured``."""
    count = [v.status for v in verdicts].count
    return ", ".join(f"{count(s)} {s}" for s in ("pass", "fail", "not measured"))


def holds(verdicts: Sequence[Verdict]) -> bool:
    """Whether something was measured, and no bound failed."""
    return {"pass"} <= {v.status for v in verdicts} <= {"pass", "not measured"}
