"""The benchmark program: its files are complete, and what is wrong is said in one line."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

import bandjax
from experiments.benchmarks import layers, network, report, rows, sides, timing
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.measure import Job, Plan, measure
from experiments.benchmarks.workloads import GROUPS, WORKLOADS, Layer, Network, select
from experiments.settings.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

LAYER = Layer("2d", "test", 3, (7, 10), (3, 5), 4, 6, bands=("none", "compression=0.5"))
TIMING = {"median", "low", "high", "runs", "first", "best", "processes"}
HALF = ("compression=0.5",)
SMALL_NETWORK = Network("net", "test", 4, (8, 8, 3), widths=(4, 8), blocks=(1, 2), bands=HALF)
SMALL_RUN = ["--workloads", "stage4", "--batch", "1", "--processes", "1", "--runs", "1"]
SMALL_RUN += ["--seconds", "0"]


@pytest.fixture
def clocked(monkeypatch):
    """What makes functions that take a time of a clock of its own, and the names of their calls."""
    clock, calls = [0.0], []

    def call(name, seconds):
        def function():
            calls.append(name)
            clock[0] += seconds

        return function

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    return call, calls


def test_slow_calls_take_part_in_fewer_rounds(clocked):
    call, calls = clocked
    shares = []
    found = timing.interleaved(
        {"quick": call("quick", 0.125), "slow": call("slow", 2.0), "absurd": call("absurd", 60.0)},
        10,
        9.0,
        shares.append,
    )
    assert {name: t.runs for name, t in found.items()} == {"quick": 10, "slow": 4, "absurd": 1}
    assert [calls.count(name) for name in ("quick", "slow", "absurd")] == [13, 5, 1]
    assert calls[3:5] == ["quick", "quick"]  # They warm up, and do not count.
    assert found["absurd"].median == found["absurd"].first == 60.0
    assert found["slow"].median == pytest.approx(2.0)
    rounds = "".join({"quick": "q", "slow": "s"}[name] for name in calls[5:])
    assert max(map(len, rounds.split("s"))) <= 3  # the slow one's calls are spread out
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_short_call_is_counted_behind_others_of_its_own(clocked):
    call, calls = clocked
    found = timing.interleaved({"a": call("a", 0.008), "b": call("b", 0.031)}, 3, 9.0)
    assert [found[name].runs for name in "ab"] == [3, 3]
    rounds = "".join(calls[2 + 10 + 9 :])  # after the first calls and those that warm up
    assert rounds == "aaaaab" + "baaaaa" + "aaaaab"  # four of a's five do not count


@pytest.mark.full
def test_run_writes_tables_json_and_a_picture(tmp_path, capsys):
    out = tmp_path / "deep" / "b.json"
    bands = ["--bands", "none", "compression=.50", "--peers", "lax", "fft", "fft-pow2"]
    assert main([*SMALL_RUN, *bands, "--accuracy", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "1/2 · stage4 · batch 1 · train · float32" in shown
    assert "error against float64" in shown
    assert "60.0%" in shown  # the true share at half
    assert "\x1b" not in shown
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    content = json.loads(out.read_text())
    assert {
        "date",
        "git_revision",
        "versions",
        "machine",
        "settings",
        "geometric_means",
        "rows",
    } == set(content)
    assert {"python", "jax", "jaxlib", "bandjax"} <= set(content["versions"])
    assert {"cpu", "cores", "device"} <= set(content["machine"])
    assert content["settings"]["device"] == "cpu"
    assert [row["direction"] for row in content["rows"]] == ["train", "forward"]
    for row in content["rows"]:
        assert (row["workload"], row["group"], row["batch"]) == ("stage4", "stages", 1)
        assert row["multiply_adds"] == 16 * 9 * 512 * 512
        assert list(row["bands"]) == ["none", "compression=0.5"]
        assert row["bands"]["compression=0.5"]["compression"] == pytest.approx(0.6)
        names = [c["name"] for c in row["candidates"]]
        assert names == [
            "bandjax none",
            "bandjax compression=0.5",
            "lax NHWC",
            "lax NCHW",
            "lax NHWC, without YNN",
            "lax NCHW, without YNN",
            "fft NHWC compression=0.5",
            "fft NCHW compression=0.5",
            "fft-pow2 NHWC compression=0.5",
            "fft-pow2 NCHW compression=0.5",
        ]
        for c in row["candidates"]:
            assert set(c["seconds"]) == TIMING
            assert 0 < c["seconds"]["low"] <= c["seconds"]["median"] <= c["seconds"]["high"]
            assert c["seconds"]["runs"] == 1
            assert c["compile_seconds"] > 0
            assert c["temp_bytes"] >= 0
            if c["side"] == "fft-pow2":
                assert c["error"] is None
            else:
                assert c["error"] < 1e-5
        assert set(row["ratios"]) == {"bandjax none", "bandjax compression=0.5"}
        assert set(row["ratios"]["bandjax compression=0.5"]) == {"lax", "fft", "fft-pow2"}
    assert content["geometric_means"] == []  # one stage alone

    # Another batch size than the bounds': the errors do not count either.
    assert main(["--check", str(out), "--strict"]) == 1
    assert "0 pass, 0 fail" in capsys.readouterr().out


def test_a_peer_that_fails_when_it_is_called_is_left_out(tmp_path, monkeypatch):
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: this convolution\nfailed")

    def dense(*args):
        first, *others = layers_dense(*args)
        return [dataclasses.replace(first, call=fail), *others]

    layers_dense = layers.dense
    monkeypatch.setattr(layers, "dense", dense)
    plan = Plan(runs=1, seconds=0, allocator="system", accuracy=True)
    part = measure(Job(LAYER, "train", "float32", plan, sides.Side("lax"), tmp_path))
    assert part["left_out"] == {"lax NHWC": "INTERNAL: this convolution failed"}
    assert [c["name"] for c in part["candidates"]] == ["lax NCHW"]
    row = rows.row_of(LAYER, "train", "float32", [part], {})
    assert "no lax NHWC: INTERNAL" in report.notes([row])[0]


@pytest.mark.full
def test_row_of_a_network(monkeypatch):
    absent = {"torch": "it is not there"}
    monkeypatch.setattr(sides, "missing", absent.get)
    row = rows.measured(SMALL_NETWORK, "train", "float32", Plan(processes=1, runs=1, seconds=0))
    assert row["left_out"] == absent
    assert set(row["ratios"]["bandjax compression=0.5"]) == {"flax"}
    assert 0 < row["bands"]["compression=0.5"]["compression"] < 1
    seconds = {c["name"]: c["seconds"]["median"] for c in row["candidates"]}
    told, share = report.notes([row])
    assert told == "net, train: no torch: it is not there"
    assert f"{seconds[network.REST] / seconds['flax dense']:.0%} of flax dense" in share
    (times, gains) = report.tables([row], 1, 1)
    assert [c.header for c in times.columns] == ["", "net", "temporary\nmemory"]
    assert gains.row_count == 2
    json.dumps(row)


def test_select():
    assert [w.name for w in select(["stages"])] == ["stage1", "stage2", "stage3", "stage4"]
    assert [w.name for w in select(["fno", "stage2", "fno"])] == ["stage2", "fno"]
    assert len(select(["all"])) == len(WORKLOADS) == len({w.name for w in WORKLOADS})
    assert {w.group for w in WORKLOADS} == set(GROUPS)
    (changed,) = select(["stage1"], batch=3, bands=("none", "compression=.5", "none"))
    assert (changed.batch, changed.bands) == (3, ("none", "compression=0.5"))
    with pytest.raises(UserError, match="band 'modes=99,99' on stage1: "):
        select(["stage1"], bands=("modes=99,99",))


def test_list_shows_every_workload(capsys):
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    for workload in WORKLOADS:
        assert workload.name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workloads", "stage9"], "unknown workload 'stage9'; --list shows them"),
        (["--workloads"], "need at least one workload"),
        (["--bands", "half"], "unknown band 'half'"),
        (["--bands", "compression=1.2"], "rate must satisfy 0 <= rate < 1, got 1.2"),
        (["--bands", "modes=3"], "band 'modes=3' on stage1: "),
        (["--bands"], "need at least one band"),
        (["--batch", "0"], "--batch must be >= 1, got 0"),
        (["--runs", "0"], "need --runs >= 1"),
        (["--processes", "0"], "need --processes >= 1, got 0"),
        (["--seconds", "-1"], "--seconds >= 0"),
        (["--peers", "cudnn"], "--peers"),
        (["--methods"], "need at least one of --methods"),
        (["--precisions", "tf32"], "--precisions tf32 is for --device gpu"),
        (["--device", "gpu"], "--device gpu: JAX has no GPU, its backend is cpu"),
        (["--workloads", "resnet18", "--directions", "forward"], "nothing to time: "),
        (["--strict"], "--strict goes with --check"),
        (["--unheard-of"], "--unheard-of"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not any(tmp_path.iterdir())


def test_peer_or_kernel_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sides.importlib.util, "find_spec", lambda name: None)
        assert main(["--peers", "torch"]) == 2
    expected = "error: --peers torch: PyTorch is not installed: pip install 'bandjax[peers]'\n"
    assert capsys.readouterr().err == expected

    def refuse(*args, implementation, **kwargs):
        raise RuntimeError(f"{implementation}: unavailable\n(no compiler at install)")

    monkeypatch.setattr(bandjax, "band_conv", refuse)
    assert main(["--implementations", "native"]) == 2
    expected = "error: --implementations native: native: unavailable (no compiler at install)\n"
    assert capsys.readouterr().err == expected


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*SMALL_RUN, "--out", str(tmp_path / "file" / "b.json")]) == 2
    assert "file/b.json: " in capsys.readouterr().err


def test_interrupted_run_says_so(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.benchmarks.__main__.run", interrupt)
    assert main([]) == 130
    assert "the workloads that were finished are in the JSON file" in capsys.readouterr().err
