"""What one side of a workload takes, in this process: all its variants in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import bandjax
from experiments.benchmarks.candidates import (
    Arrays,
    Candidate,
    in_precision,
    jax_precision,
    random_arrays,
)
from experiments.benchmarks.sides import EXPORT, ONNX, OURS, Side
from experiments.benchmarks.timing import sampled
from experiments.benchmarks.workloads import Layer, Network, Workload
from experiments.settings.bands import parse_band
from experiments.settings.errors import UserError
from experiments.settings.records import Record

# A power-of-two grid is another operator than the one whose error is asked for.
_OWN_OPERATOR = ("fft-pow2",)


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        peers: to time; None for those that each workload names, as far as they are installed.
        methods: of bandjax.
        implementations: of bandjax; ``auto`` leaves it to bandjax.
        processes: of each side, in turn.
        runs: timed calls of one function in one process.
        seconds: what the timed calls of one function may take in one process.
        device: ``cpu`` or ``gpu``.
        allocator: ``reuse``, or ``system`` for glibc as it is.
        accuracy: whether to compare with float64.
    """

    peers: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ("auto",)
    implementations: tuple[str, ...] = ("auto",)
    processes: int = 3
    runs: int = 5
    seconds: float = 3.0
    device: str = "cpu"
    allocator: str = "reuse"
    accuracy: bool = False


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        workload: a layer or a network.
        direction: ``train`` or ``forward``.
        precision: of products, on all sides: ``float32``, ``tf32`` or ``bf16``.
        plan: how.
        side: which.
        folder: of files that the sides share.
    """

    workload: Workload
    direction: str
    precision: str
    plan: Plan
    side: Side
    folder: Path


def measure(job: Job) -> Record:
    """Times every function of a side, in turn.

    Returns:
        ``candidates``, each with its samples, and ``left_out``: what could not be had, with the
        reason.

    Raises:
        UserError: bandjax refuses a method or an implementation. A peer that cannot be had or fails
            when it is called is left out.
    """
    if job.plan.allocator == "reuse":
        bandjax.tune_allocator()
    left_out: dict[str, str] = {}
    arrays = None
    if isinstance(job.workload, Layer):
        arrays = in_precision(random_arrays(job.workload), job.precision)
    try:
        candidates = [_named(c, job.side) for c in _candidates(job, arrays)]
    except UserError as error:
        if job.side.peer == OURS:
            raise
        left_out[job.side.name] = str(error)
        candidates = []
    candidates = _that_run(candidates, left_out)
    errors = {}
    if job.plan.accuracy and arrays is not None and isinstance(job.workload, Layer):
        errors = _errors(job.workload, arrays, candidates)
    samples = sampled({c.name: c.call for c in candidates}, job.plan.runs, job.plan.seconds)
    return {
        "candidates": [
            {
                "name": c.name,
                "side": c.side,
                "band": c.band,
                "samples": asdict(samples[c.name]),
                "compile_seconds": c.compile_seconds,
                "temp_bytes": c.temp_bytes,
                "error": errors.get(c.name),
            }
            for c in candidates
        ],
        "left_out": left_out,
    }


def _named(candidate: Candidate, side: Side) -> Candidate:
    """With the side's variant in its name."""
    variant = f", {side.variant}" if side.variant else ""
    return replace(candidate, name=candidate.name + variant)


def _candidates(job: Job, arrays: Arrays | None) -> Iterator[Candidate]:
    """Every way in which a side computes a workload.

    What a side does not need is not imported: no other side's threads are to be about.
    """
    if job.side.peer == EXPORT:
        from experiments.benchmarks import torch_peer

        assert isinstance(job.workload, Network)
        torch_peer.export(job.workload, job.folder)
    elif job.side.peer in ONNX:
        from experiments.benchmarks import onnx_peer

        assert isinstance(job.workload, Network)
        yield onnx_peer.candidate(job.side.peer, job.workload, job.folder, job.precision)
    elif job.side.peer == "torch":
        yield from _of_torch(job, arrays)
    elif arrays is not None and isinstance(job.workload, Layer):
        yield from _of_a_layer(job, job.workload, arrays)
    elif isinstance(job.workload, Network):
        from experiments.benchmarks import network

        how = job.workload, job.direction, job.precision, job.plan.device
        if job.side.peer == OURS:
            plan = job.plan
            yield from network.band_limited(*how, plan.methods, plan.implementations)
        else:
            yield network.dense(*how)


def _of_a_layer(job: Job, layer: Layer, arrays: Arrays) -> Iterator[Candidate]:
    """Those on JAX."""
    from experiments.benchmarks import layers

    exactly = jax_precision(job.precision, job.plan.device)
    same = (layer, arrays, job.direction, exactly)
    if job.side.peer == OURS:
        yield from layers.band_limited(*same, job.plan.methods, job.plan.implementations)
    elif job.side.peer == "lax":
        yield from layers.dense(*same)
    else:
        yield from layers.compositions(*same, powers_of_two=job.side.peer == "fft-pow2")


def _of_torch(job: Job, arrays: Arrays | None) -> Iterator[Candidate]:
    """Those on PyTorch."""
    from experiments.benchmarks import torch_peer
    from experiments.benchmarks.examples import LEARNING_RATE, MOMENTUM, random_examples

    device = torch_peer.prepare(job.plan.device, job.precision)
    if arrays is not None and isinstance(job.workload, Layer):
        yield from torch_peer.dense(job.workload, arrays, job.direction, device)
    elif isinstance(job.workload, Network):
        yield from torch_peer.networks(
            job.workload,
            job.direction,
            *random_examples(job.workload),
            LEARNING_RATE,
            MOMENTUM,
            device,
            job.precision,
        )


def _that_run(candidates: Sequence[Candidate], left_out: dict[str, str]) -> list[Candidate]:
    """Without the peers whose first call fails, as XLA's own convolution does on some layers."""
    running = []
    for c in candidates:
        if c.side not in (OURS, "rest"):
            try:
                c.call()
            except RuntimeError as error:  # jax.errors.JaxRuntimeError is one
                left_out[c.name] = " ".join(str(error).split())
                continue
        running.append(c)
    return running


def _errors(layer: Layer, arrays: Arrays, candidates: Sequence[Candidate]) -> dict[str, float]:
    """Relative errors against float64, by candidate; the reference is computed once a band."""
    from experiments.benchmarks import oracle

    errors = {}
    for label in dict.fromkeys(c.band or "none" for c in candidates):
        expected = oracle.reference(arrays, layer.geometry(parse_band(label)[1]))
        for c in candidates:
            if (c.band or "none") == label and c.side not in _OWN_OPERATOR:
                errors[c.name] = oracle.relative_error(c.results(c.call()), expected)
    return errors
