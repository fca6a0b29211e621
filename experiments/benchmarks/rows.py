"""One row of a benchmark: every side of a workload in processes of its own, which take turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.measure import Job, Plan
from experiments.benchmarks.sides import EXPORT, ONNX, Side, choose
from experiments.benchmarks.timing import Samples, summary
from experiments.benchmarks.worker import ask
from experiments.benchmarks.workloads import Layer, Network, Workload, what
from experiments.settings.bands import parse_band
from experiments.settings.records import Record
from experiments.training.accounting import compression_report


def measured(
    workload: Workload,
    direction: str,
    precision: str,
    plan: Plan,
    advance: Callable[[float, str], None] = lambda share, side: None,
) -> Record:
    """Times a workload; the row is ready for JSON.

    In each round every side has one process; the next round begins with another side. While one
    runs, this process waits and no other is there.

    Args:
        workload: a layer or a network.
        direction: ``train`` or ``forward``.
        precision: ``float32``, ``tf32`` or ``bf16``, on all sides.
        plan: how.
        advance: told the share of the work that is done, and who is next, before each process.

    Raises:
        UserError: bandjax refuses a method or an implementation, or a peer that was asked for is
            not there. A peer that fails is left out, and the row says so.
    """
    sides, left_out = choose(workload, plan.peers, plan.device, precision)
    parts: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="bandjax-benchmark-") as folder:

        def job(side: Side) -> Job:
            return Job(workload, direction, precision, plan, side, Path(folder))

        if any(side.peer in ONNX for side in sides):
            advance(0, "ONNX file")
            refused = ask(job(Side(EXPORT)))["left_out"]
            if refused:
                reason = f"no ONNX file: {refused[EXPORT]}"
                left_out |= {side.peer: reason for side in sides if side.peer in ONNX}
                sides = [side for side in sides if side.peer not in ONNX]
        total = plan.processes * len(sides)
        for number in range(plan.processes):
            start = number % len(sides)
            for side in sides[start:] + sides[:start]:
                advance(len(parts) / total, f"{side.name}, process {number + 1}")
                parts.append(ask(job(side)))
    return row_of(workload, direction, precision, parts, left_out)


def row_of(
    workload: Workload,
    direction: str,
    precision: str,
    parts: Sequence[Record],
    left_out: dict[str, str],
) -> Record:
    """What the processes of all sides found, as one row."""
    candidates = merged(parts)
    row: Record = {
        "workload": workload.name,
        "group": workload.group,
        "about": workload.about(),
        "what": what(workload, direction),
        "batch": workload.batch,
        "direction": direction,
        "precision": precision,
        "bands": _bands(workload),
        "candidates": candidates,
        "left_out": {**left_out, **{k: v for part in parts for k, v in part["left_out"].items()}},
        "ratios": ratios(candidates),
    }
    if isinstance(workload, Layer):
        row |= {"multiply_adds": workload.multiply_adds, "points": workload.points}
    return row


def merged(parts: Sequence[Record]) -> list[Record]:
    """The candidates of all processes, each once, with its time in all of them.

    What its compilation took is that of its first process, which also tells its memory and error.
    """
    found: dict[str, list[Record]] = {}
    for part in parts:
        for candidate in part["candidates"]:
            found.setdefault(candidate["name"], []).append(candidate)
    return [
        {
            **{key: value for key, value in same[0].items() if key != "samples"},
            "seconds": summary(
                [Samples(c["samples"]["first"], tuple(c["samples"]["counted"])) for c in same]
            ).as_dict(),
        }
        for same in found.values()
    ]


def ratios(candidates: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Time of each peer, its fastest variant, over that of each candidate of bandjax.

    A peer that knows bands is compared at the same band alone.
    """
    result: dict[str, dict[str, float]] = {}
    for ours in candidates:
        if ours["side"] != "bandjax":
            continue
        fastest: dict[str, float] = {}
        for peer in candidates:
            if peer["side"] in ("bandjax", "rest") or peer["band"] not in (None, ours["band"]):
                continue
            seconds = peer["seconds"]["median"]
            fastest[peer["side"]] = min(seconds, fastest.get(peer["side"], seconds))
        mine = ours["seconds"]["median"]
        result[ours["name"]] = {side: seconds / mine for side, seconds in fastest.items()}
    return result


def _bands(workload: Workload) -> dict[str, Any]:
    """What each band really keeps."""
    if isinstance(workload, Network):
        from experiments.benchmarks.network import model_of

        return {
            label: {
                "compression": compression_report(
                    model_of(workload, label, training=False), workload.image
                )["total"]
            }
            for label in workload.bands
        }
    result = {}
    for label in workload.bands:
        geometry = workload.geometry(parse_band(label)[1])
        result[label] = {
            "compression": geometry.compression,
            "grid": list(geometry.grid),
            "modes": list(geometry.modes),
            "kept": geometry.kept,
        }
    return result
