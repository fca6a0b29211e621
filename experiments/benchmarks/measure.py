"""One row of a benchmark: a workload in one direction and precision, everybody interleaved."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks import layers, network, oracle
from experiments.benchmarks.candidates import (
    Arrays,
    Candidate,
    jax_precision,
    random_arrays,
)
from experiments.benchmarks.timing import Timing, interleaved
from experiments.benchmarks.workloads import (
    LAYER_PEERS,
    NETWORK_PEERS,
    Layer,
    Network,
    Workload,
)
from experiments.settings.bands import parse_band
from experiments.settings.errors import UserError
from experiments.settings.records import Record
from experiments.training.accounting import compression_report

# A power-of-two grid is another operator than the one whose error is asked for.
_OWN_OPERATOR = ("fft-pow2",)


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        peers: to time; None for those that each workload names, as far as they are installed.
        methods: of bandjax.
        implementations: of bandjax; ``auto`` leaves it to bandjax.
        runs: rounds.
        seconds: what the timed calls of one function may take.
        device: ``cpu`` or ``gpu``.
        accuracy: whether to compare with float64.
    """

    peers: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ("auto",)
    implementations: tuple[str, ...] = ("auto",)
    runs: int = 15
    seconds: float = 5.0
    device: str = "cpu"
    accuracy: bool = False


def measure(
    workload: Workload,
    direction: str,
    precision: str,
    plan: Plan,
    advance: Callable[[float], None] = lambda share: None,
) -> Record:
    """Time a workload; the row is ready for JSON.

    Args:
        workload: a layer, or a network, which is trained whatever the direction.
        direction: ``train`` (output and both gradients) or ``forward``.
        precision: ``float32`` or ``tf32``, on both sides.
        plan: how.
        advance: told the share of the work that is done.

    Raises:
        UserError: bandjax refuses a method or an implementation, or a peer that was asked for is
            not there. A peer that fails when it is called is left out, and the row says so.
    """
    peers, left_out = _peers(workload, plan)
    errors: dict[str, float] = {}
    if isinstance(workload, Network):
        candidates = _network_candidates(workload, precision, plan, peers, left_out)
        candidates = _that_run(candidates, left_out)
    else:
        arrays = random_arrays(workload)
        candidates = _layer_candidates(
            workload, arrays, direction, precision, plan, peers, left_out
        )
        candidates = _that_run(candidates, left_out)
        errors = _errors(workload, arrays, candidates) if plan.accuracy else {}
    timings = interleaved({c.name: c.call for c in candidates}, plan.runs, plan.seconds, advance)
    row: Record = {
        "workload": workload.name,
        "group": workload.group,
        "about": workload.about(),
        "batch": workload.batch,
        "direction": direction,
        "precision": precision,
        "bands": _bands(workload),
        "candidates": [
            {
                "name": c.name,
                "side": c.side,
                "band": c.band,
                "seconds": timings[c.name].as_dict(),
                "compile_seconds": c.compile_seconds,
                "temp_bytes": c.temp_bytes,
                "error": errors.get(c.name),
            }
            for c in candidates
        ],
        "left_out": left_out,
    }
    if isinstance(workload, Layer):
        row["multiply_adds"] = workload.multiply_adds
    row["ratios"] = ratios(candidates, timings)
    return row


def ratios(
    candidates: Sequence[Candidate], timings: dict[str, Timing]
) -> dict[str, dict[str, float]]:
    """Time of each peer, its fastest variant, over that of each candidate of bandjax.

    A peer that knows bands is compared at the same band alone.
    """
    result: dict[str, dict[str, float]] = {}
    for ours in candidates:
        if ours.side != "bandjax":
            continue
        fastest: dict[str, float] = {}
        for peer in candidates:
            if peer.side in ("bandjax", "rest") or peer.band not in (None, ours.band):
                continue
            seconds = timings[peer.name].median
            fastest[peer.side] = min(seconds, fastest.get(peer.side, seconds))
        mine = timings[ours.name].median
        result[ours.name] = {side: seconds / mine for side, seconds in fastest.items()}
    return result


def _peers(workload: Workload, plan: Plan) -> tuple[list[str], dict[str, str]]:
    """The peers to time, and why others are left out."""
    known = LAYER_PEERS if isinstance(workload, Layer) else NETWORK_PEERS
    left_out = {}
    peers = []
    for peer in known:
        if plan.peers is not None:
            if peer in plan.peers:
                peers.append(peer)
        elif peer in workload.peers:
            peers.append(peer)
        else:
            left_out[peer] = workload.without
    if "fft-pow2" in peers and isinstance(workload, Layer) and workload.padding == "CIRCULAR":
        peers.remove("fft-pow2")
        left_out["fft-pow2"] = "the grid of a periodic layer is its period"
    if "torch" in peers and not torch_installed():
        if plan.peers is not None:
            raise UserError("--peers torch: PyTorch is not installed: pip install torch")
        peers.remove("torch")
        left_out["torch"] = "PyTorch is not installed"
    return peers, left_out


def torch_installed() -> bool:
    """Whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


def _layer_candidates(
    layer: Layer,
    arrays: Arrays,
    direction: str,
    precision: str,
    plan: Plan,
    peers: Sequence[str],
    left_out: dict[str, str],
) -> list[Candidate]:
    """Every way to compute a layer; what cannot be had goes into ``left_out`` with its reason."""
    exactly = jax_precision(precision, plan.device)
    same = (layer, arrays, direction, exactly)
    candidates = list(layers.band_limited(*same, plan.methods, plan.implementations))
    if "lax" in peers:
        candidates += layers.dense(*same)
    for peer in ("fft", "fft-pow2"):
        if peer in peers:
            candidates += layers.compositions(*same, powers_of_two=peer == "fft-pow2")
    if "torch" in peers:
        from experiments.benchmarks import torch_peer

        try:
            device = torch_peer.prepare(plan.device, precision)
        except UserError as error:
            left_out["torch"] = str(error)
        else:
            candidates += torch_peer.dense(layer, arrays, direction, device)
    return candidates


def _network_candidates(
    workload: Network,
    precision: str,
    plan: Plan,
    peers: Sequence[str],
    left_out: dict[str, str],
) -> list[Candidate]:
    """Every way to train a network; what cannot be had goes into ``left_out``, with its reason."""
    candidates = list(
        network.steps(
            workload,
            jax_precision(precision, plan.device),
            plan.methods,
            plan.implementations,
            with_dense="flax" in peers,
        )
    )
    if "torch" in peers:
        from experiments.benchmarks import torch_peer

        try:
            device = torch_peer.prepare(plan.device, precision)
        except UserError as error:
            left_out["torch"] = str(error)
        else:
            candidates += torch_peer.steps(
                workload,
                *network.random_examples(workload),
                network.LEARNING_RATE,
                network.MOMENTUM,
                device,
            )
    return candidates


def _that_run(candidates: Sequence[Candidate], left_out: dict[str, str]) -> list[Candidate]:
    """Without the peers whose first call fails, as XLA's own convolution does on some layers."""
    running = []
    for c in candidates:
        if c.side not in ("bandjax", "rest"):
            try:
                c.call()
            except RuntimeError as error:  # jax.errors.JaxRuntimeError is one
                left_out[c.name] = " ".join(str(error).split())
                continue
        running.append(c)
    return running


def _bands(workload: Workload) -> dict[str, Any]:
    """What each band really keeps."""
    if isinstance(workload, Network):
        return {
            label: {
                "compression": compression_report(
                    network.model_of(workload, label, training=False), workload.image
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


def _errors(layer: Layer, arrays: Arrays, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Relative errors against float64, by candidate; the reference is computed once a band."""
    errors = {}
    for label in dict.fromkeys(c.band or "none" for c in candidates):
        expected = oracle.reference(arrays, layer.geometry(parse_band(label)[1]))
        for c in candidates:
            if (c.band or "none") == label and c.side not in _OWN_OPERATOR:
                errors[c.name] = oracle.relative_error(c.results(c.call()), expected)
    return errors
