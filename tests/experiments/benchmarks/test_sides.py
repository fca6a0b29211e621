"""Every side runs in a process of its own, and what they find becomes one row."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import network, rows, scaling, sides, worker
from experiments.benchmarks.measure import Job, Plan, measure
from experiments.benchmarks.sides import WITHOUT_YNN, Side
from experiments.benchmarks.workloads import (
    WORKLOADS,
    Layer,
    Network,
    as_record,
    from_record,
    select,
)
from experiments.settings.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

LAYER = Layer("1d", "test", 2, (9,), (3,), 2, 3, bands=("none", "compression=0.5"))
INFERENCE = Network(
    "net",
    "test",
    4,
    image=(8, 8, 3),
    widths=(4, 8),
    blocks=(1, 2),
    stem_pool=True,
    peers=("torch", "onnxruntime", "openvino"),
    directions=("forward",),
)


def candidate(name, side="bandjax", band=None, *, first=9.0, counted=(1.0,), compiled=None):
    return {
        "name": name,
        "side": side,
        "band": band,
        "samples": {"first": first, "counted": list(counted)},
        "compile_seconds": compiled,
        "temp_bytes": 7,
        "error": None,
    }


def part(*candidates, **left_out):
    return {"candidates": list(candidates), "left_out": left_out}


def test_ratio_is_to_the_fastest_variant_at_the_same_band():
    seconds = {
        ("bandjax none", "bandjax", "none"): 4.0,
        ("bandjax compression=0.5", "bandjax", "compression=0.5"): 2.0,
        ("lax NHWC", "lax", None): 6.0,
        ("lax NHWC, without YNN", "lax", None): 5.0,
        ("fft", "fft", "compression=0.5"): 8.0,
        (network.REST, "rest", None): 1.0,
    }
    found = rows.merged([part(*(candidate(*key, counted=[s]) for key, s in seconds.items()))])
    assert rows.ratios(found) == {
        "bandjax none": {"lax": 1.25},
        "bandjax compression=0.5": {"lax": 2.5, "fft": 4.0},
    }


def test_processes_of_a_side_are_merged():
    found = rows.merged(
        [
            part(candidate("a", first=5.0, counted=(1.0, 2.0, 9.0), compiled=0.5)),
            part(candidate("lax", "lax", counted=(3.0,))),
            part(candidate("a", first=4.0, counted=(3.0, 4.0), compiled=8.0)),
        ]
    )
    assert [c["name"] for c in found] == ["a", "lax"]
    assert found[0]["compile_seconds"] == 0.5
    assert found[0]["seconds"] == {
        "median": 3.0,
        "low": 2.0,
        "high": 4.0,
        "runs": 5,
        "first": 5.0,
        "best": 1.0,
        "processes": (2.0, 3.5),
    }
    json.dumps(found)


@pytest.mark.parametrize("workload", [*WORKLOADS, LAYER, INFERENCE])
def test_a_workload_goes_through_json(workload):
    assert from_record(json.loads(json.dumps(as_record(workload)))) == workload


def test_sides_take_turns_and_the_rest_is_told(monkeypatch):
    asked = []

    def ask(job):
        asked.append(job.side.name)
        mine = candidate(job.side.name, job.side.peer)
        return part(mine, **({"lax": "some reason"} if job.side.variant else {}))

    monkeypatch.setattr(rows, "ask", ask)
    shares = []
    layer = dataclasses.replace(LAYER, peers=("lax", "fft"), without="for a reason")
    row = rows.measured(
        layer, "train", "float32", Plan(processes=2), lambda *told: shares.append(told)
    )
    names = ["bandjax", "lax", "lax without YNN", "fft"]
    assert asked == names + names[1:] + names[:1]
    assert shares[5] == (5 / 8, "lax without YNN, process 2")
    assert [c["name"] for c in row["candidates"]] == names
    assert all(c["seconds"]["runs"] == 2 for c in row["candidates"])
    assert row["left_out"] == {
        "torch": "for a reason",
        "fft-pow2": "for a reason",
        "lax": "some reason",
    }


def test_a_network_that_is_not_exported_is_left_out(monkeypatch):
    def ask(job):
        if job.side.peer == sides.EXPORT:
            return part(export="no such operator")
        return part(candidate(job.side.name, job.side.peer))

    monkeypatch.setattr(rows, "ask", ask)
    monkeypatch.setattr(rows, "_bands", lambda workload: {})  # They take a while.
    monkeypatch.setattr(sides, "missing", lambda peer: None)
    row = rows.measured(INFERENCE, "forward", "float32", Plan(processes=1))
    assert [c["name"] for c in row["candidates"]] == ["bandjax", "torch"]
    assert row["left_out"]["openvino"] == "no ONNX file: no such operator"


def test_what_is_not_installed_or_cannot_be_is_left_out(monkeypatch):
    monkeypatch.setattr(sides.importlib.util, "find_spec", lambda name: None)
    assert sides.missing("torch") == "PyTorch is not installed"
    assert sides.missing("onnxruntime") == ("ONNX Runtime and onnx and PyTorch are not installed")
    assert sides.missing("lax") is None
    chosen, left_out = sides.choose(INFERENCE, None, "cpu", "float32")
    assert [side.name for side in chosen] == ["bandjax"]
    assert left_out["torch"] == "PyTorch is not installed"
    assert "flax" in left_out  # known, and not this workload's

    monkeypatch.setattr(sides.importlib.util, "find_spec", lambda name: object())
    names = [side.name for side in sides.choose(INFERENCE, ("openvino", "flax"), "cpu", "bf16")[0]]
    assert names == ["bandjax", "flax", "flax without YNN", "openvino"]
    _, left_out = sides.choose(INFERENCE, None, "cpu", "bf16")
    assert left_out["onnxruntime"] == "it has no bfloat16 on CPUs"
    (layer,) = select(["up-1d"])
    chosen, left_out = sides.choose(layer, ("lax", "torch", "fft"), "cpu", "bf16")
    assert [side.xla_flags for side in chosen] == ["", "", WITHOUT_YNN]
    assert left_out["fft"] == "jnp.fft has no bfloat16"
    assert left_out["torch"].startswith("up-1d: PyTorch is not timed on transposed")


def job_of(folder, side, workload=LAYER, precision="float32", **options):
    plan = Plan(processes=1, runs=2, seconds=60, allocator="system", **options)
    return Job(workload, workload.directions[0], precision, plan, side, folder)


def test_a_process_measures_its_side_alone(tmp_path):
    answer = worker.ask(job_of(tmp_path, Side("lax", "without YNN", WITHOUT_YNN), accuracy=True))
    assert answer["left_out"] == {}
    names = ["lax NWC, without YNN", "lax NCW, without YNN"]
    assert [c["name"] for c in answer["candidates"]] == names
    for c in answer["candidates"]:
        assert len(c["samples"]["counted"]) == 2
        assert min(c["samples"]["counted"]) > 0
        assert c["compile_seconds"] > 0
        assert c["error"] < 1e-6


def measured_here(job, monkeypatch):
    """By the code of the other process, in this one."""

    def run(command, **_):
        return subprocess.CompletedProcess(command, worker.main(command[3:]), "", "")

    monkeypatch.setattr(worker.subprocess, "run", run)
    return worker.ask(job)


def test_half_precision_is_in_bfloat16_but_for_the_kernel(tmp_path, monkeypatch):
    layer = dataclasses.replace(LAYER, bands=("none",))
    job = job_of(tmp_path, Side("bandjax"), layer, "bf16", accuracy=True)
    (ours,) = measured_here(job, monkeypatch)["candidates"]
    assert ours["name"] == "bandjax none"
    assert 1e-4 < ours["error"] < 1e-2


def test_a_peer_of_which_nothing_runs_is_left_out(tmp_path, monkeypatch):
    def refuse(*_):
        raise UserError("not here")

    monkeypatch.setattr("experiments.benchmarks.layers.dense", refuse)
    answer = measured_here(job_of(tmp_path, Side("lax")), monkeypatch)
    assert answer == {"candidates": [], "left_out": {"lax": "not here"}}


def test_a_job_that_is_refused(tmp_path, monkeypatch):
    job = job_of(tmp_path, Side("bandjax"), methods=("fastest",))
    with pytest.raises(UserError, match="fastest"):
        measured_here(job, monkeypatch)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import sys; sys.exit('first\\nflag unknown\\n')", "status 1: flag unknown"),
        (
            "import os, sys; sys.exit(os.environ['XLA_FLAGS'].split()[-1])",
            f"status 1: {WITHOUT_YNN}",
        ),
    ],
)
def test_a_process_that_ends_by_itself(tmp_path, monkeypatch, code, reason):
    run = subprocess.run
    monkeypatch.setattr(
        worker.subprocess, "run", lambda _, **how: run([sys.executable, "-S", "-c", code], **how)
    )
    answer = worker.ask(job_of(tmp_path, Side("lax", "without YNN", WITHOUT_YNN)))
    expected = {"lax without YNN": f"its process ended with {reason}"}
    assert answer == {"candidates": [], "left_out": expected}
    with pytest.raises(RuntimeError, match=f"1d: its process ended with {reason.split()[0]}"):
        worker.ask(job_of(tmp_path, Side("bandjax")))


@pytest.mark.filterwarnings("ignore:os.fork")
def test_the_network_of_every_runtime_is_that_of_torch(tmp_path):
    for module in ("torch", "onnx", "onnxruntime", "openvino"):
        pytest.importorskip(module)
    from experiments.benchmarks import onnx_peer, torch_peer
    from experiments.benchmarks.examples import LEARNING_RATE, MOMENTUM, random_examples

    with pytest.warns(DeprecationWarning, match="export|removed"):
        exported = measure(job_of(tmp_path, Side(sides.EXPORT), INFERENCE))
    assert exported == {"candidates": [], "left_out": {}}
    device = torch_peer.prepare("cpu", "float32")
    rest = *random_examples(INFERENCE), LEARNING_RATE, MOMENTUM, device
    found = {
        c.name: c.results(c.call())[0]
        for precision in ("float32", "bf16")
        for c in torch_peer.networks(INFERENCE, "forward", *rest, precision)
        if precision == "float32" or "parameters" in c.name
    }
    for peer in sides.ONNX:
        c = onnx_peer.candidate(peer, INFERENCE, tmp_path, "float32")
        found[peer] = c.results(c.call())[0]
    expected = found["torch contiguous"]
    assert np.abs(expected).max() > 0.1
    assert len(found) == 6
    for name, logits in found.items():
        close = 3e-2 if "bf16" in name else 1e-5
        np.testing.assert_allclose(logits, expected, rtol=0, atol=close, err_msg=name)


def scaling_row(workload, **seconds):
    (layer,) = select([workload])
    parts = [
        candidate(name.replace("_", " "), name.split("_")[0], counted=[s * layer.points * 1e-9])
        for name, s in seconds.items()
    ]
    return rows.row_of(layer, "train", "float32", [part(*parts)], {})


def test_lines_of_the_scaling_picture(tmp_path):
    found = [
        scaling_row("scale2d-32", bandjax_none=1.0, lax_NHWC=5.0, lax_NCHW=4.0),
        scaling_row("scale2d-64", bandjax_none=2.0, lax_NHWC=6.0, lax_NCHW=7.0),
        scaling_row("scale3d-16", bandjax_none=3.0),
    ]
    lines = scaling.lines(found)
    assert list(lines) == [(2, "float32"), (3, "float32")]
    flat = {k: {n: pytest.approx(t) for n, t in v.items()} for k, v in lines[2, "float32"].items()}
    assert flat == {"bandjax none": {32: 1.0, 64: 2.0}, "lax": {32: 4.0, 64: 6.0}}
    assert scaling.plot(found, "title", tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert not scaling.plot([{**found[0], "group": "maps"}], "title", tmp_path / "none.png")
