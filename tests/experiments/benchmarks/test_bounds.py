"""The bounds set for the benchmark are applied as they are written."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from experiments.benchmarks import report, targets
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.workloads import WORKLOADS


def synthetic(workload, direction="train", *, ratios=None, candidates=(), **changes):
    """A row as the program writes it, with what the check looks at."""
    row = {
        "workload": workload,
        "batch": targets.SIZES[workload],
        "direction": direction,
        "precision": "float32",
        "device": "cpu",
        "ratios": {"bandjax compression=0.5": ratios or {}},
        "candidates": list(candidates),
    }
    return {**row, **changes}


def bound(kind, value, workloads=targets.STAGES, **fields):
    return targets.Target("a bound", kind, value, workloads, **fields)


@pytest.mark.parametrize(
    ("target", "figure", "status"),
    [
        (bound("mean", 4.0), math.sqrt(4 * 8), "pass"),
        (bound("mean", 6.0), math.sqrt(4 * 8), "fail"),
        (bound("each", 4.0), 4.0, "pass"),
        (bound("each", 4.1), 4.0, "fail"),
        (bound("time", 0.25), 0.25, "pass"),
        (bound("time", 0.2), 0.25, "fail"),
        (bound("memory", 1.0, ("stage1",)), 0.5, "pass"),
        (bound("memory", 0.4, ("stage1",)), 0.5, "fail"),
        (bound("error", 1e-5, ("stage1",)), 3e-6, "pass"),
        (bound("error", 1e-6, ("stage1",)), 3e-6, "fail"),
        (bound("growth", 2.0, ("stage1", "stage2", "stage3")), 2.0, "pass"),
        (bound("growth", 1.9, ("stage1", "stage2", "stage3")), 2.0, "fail"),
        (bound("growth", 9.0), None, "not measured"),
        (bound("each", 1.0, precision="bf16"), None, "not measured"),
        (bound("each", 1.0, peer="torch"), None, "not measured"),
        (bound("each", 1.0, band="none"), None, "not measured"),
        (bound("each", 1.0, device="gpu"), None, "not measured"),
        (bound("each", 1.0, precision="tf32"), None, "not measured"),
        (bound("each", 1.0, directions=("train", "forward")), None, "not measured"),
        (bound("error", 1e-5), None, "not measured"),
        (bound("elsewhere", 10.0), None, "not measured"),
    ],
)
def test_verdicts(target, figure, status):
    def ours(seconds):
        name = "bandjax compression=0.5"
        known = {"seconds": {"median": seconds}, "temp_bytes": 50, "error": 3e-6}
        return {"name": name, "side": "bandjax", **known}

    candidates = [
        ours(3.0),
        {"name": "lax NHWC", "side": "lax", "temp_bytes": 100, "error": 1.0},
        {"name": "lax NCHW", "side": "lax", "temp_bytes": 200, "error": 1.0},
    ]
    rows = [
        synthetic("stage1", ratios={"lax": 1.0}),  # superseded by the next
        synthetic("stage1", ratios={"lax": 4.0}, candidates=candidates, points=10),
        synthetic("stage2", ratios={"lax": 8.0}, candidates=[ours(12.0)], points=20),
        synthetic("stage3", ratios={"lax": 4.0}, candidates=[ours(2.0)], points=10),
        synthetic("stage4", ratios={"lax": 8.0}),
        synthetic("stage4", ratios={"lax": 0.1}, batch=2),  # not the bound's batch size
    ]
    (verdict,) = targets.check(rows, [target])
    assert verdict.status == status
    assert verdict.figure == (None if figure is None else pytest.approx(figure))


def test_incomplete_group_is_not_measured():
    rows = [synthetic("stage1", ratios={"lax": 9.0}), synthetic("stage3", ratios={"lax": 9.0})]
    (verdict,) = targets.check(rows, [bound("mean", 1.0)])
    assert (verdict.status, verdict.detail) == ("not measured", "no stage2, stage4")


def test_what_was_forced_on_bandjax_does_not_count():
    row = synthetic("stage1", ratios={})
    row["ratios"] = {"bandjax native compression=0.5": {"lax": 50.0}}
    (verdict,) = targets.check([row], [bound("each", 1.0, ("stage1",))])
    assert verdict.status == "not measured"


def test_targets_name_what_exists():
    for target in targets.TARGETS:
        for name in target.workloads:
            workload = next(w for w in WORKLOADS if w.name == name)
            assert target.band in workload.bands
            if target.kind in ("mean", "each", "time"):
                assert target.peer in workload.peers
            if target.kind != "error":
                assert set(target.directions) <= set(workload.directions)
    texts = [t.text for t in targets.TARGETS]
    assert len(set(texts)) == len(texts)


def test_check_prints_and_exits(tmp_path, capsys):
    path = tmp_path / "run.json"

    def write(ratio):
        row = synthetic("stage1", ratios={"fft": ratio})
        del row["device"]
        path.write_text(json.dumps({"settings": {"device": "cpu"}, "rows": [row]}))

    write(9.0)
    assert main(["--check", str(path), "--strict"]) == 0
    assert "1 pass, 0 fail" in capsys.readouterr().out
    write(7.0)
    assert main(["--check", str(path)]) == 0
    assert "0 pass, 1 fail" in capsys.readouterr().out
    assert main(["--check", str(path), "--strict"]) == 1

    path.write_text('{"rows": [')
    assert main(["--check", str(path)]) == 2
    assert "not a record of a benchmark" in capsys.readouterr().err
    assert main(["--check", str(tmp_path / "absent.json")]) == 2
    assert "absent.json: No such file" in capsys.readouterr().err


def test_picture_of_every_kind_of_row(tmp_path):
    rows = []
    for n, direction in enumerate(("train", "forward", "train")):
        ratios = {
            "bandjax none": {"lax": 0.5},
            "bandjax xla compression=0.5": {"lax": 2.0, "fft": 120.0},
        }
        shares = {"none": {"compression": 0.0}, "compression=0.5": {"compression": 0.51}}
        rows.append(synthetic(f"stage{n + 1}", direction, bands=shares) | {"ratios": ratios})
    assert report.plot(rows, "title", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert not report.plot([synthetic("stage1")], "title", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    Console(quiet=True).print(targets.table(targets.check(rows)))


def test_geometric_means_are_over_a_group_in_one_direction():
    def row(name, direction, ratio):
        key = {"group": "g", "batch": 2, "direction": direction, "what": "y"}
        key["precision"] = "float32"
        return {**key, "workload": name, "ratios": {"bandjax none": {"lax": ratio}}}

    rows = [row("a", "train", 2.0), row("b", "train", 8.0), row("a", "forward", 5.0)]
    (mean,) = report.geometric_means(rows)
    assert mean["ratio"] == pytest.approx(4.0)
    assert (mean["direction"], mean["candidate"], mean["peer"]) == ("train", "bandjax none", "lax")
    assert mean["workloads"] == 2
