"""The benchmark program: its peers are right, its files complete, its bounds applied as written.

No test looks at how long anything took.
"""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import bandjax
from experiments.benchmarks import layers, measure, network, oracle, report, targets, timing
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.candidates import DIRECTIONS, layer_call, random_arrays
from experiments.benchmarks.workloads import GROUPS, WORKLOADS, Layer, Network, select
from experiments.models.resnet import ResNet
from experiments.settings.bands import parse_band
from experiments.settings.errors import UserError

BANDS = ("none", "compression=0.5")
LAYERS = {
    "1d": Layer("1d", "test", 3, (19,), (5,), 4, 6, bands=BANDS),
    "2d": Layer("2d", "test", 3, (7, 10), (3, 5), 4, 6, bands=BANDS),
    "even": Layer("even", "test", 2, (9, 8), (4, 2), 3, 5, bands=BANDS),
    "3d": Layer("3d", "test", 2, (5, 6, 7), (3, 3, 2), 2, 3, bands=BANDS),
    "depthwise": Layer("depthwise", "test", 2, (9, 12), (7, 5), 4, 4, groups=4, bands=BANDS),
    "periodic": Layer(
        "periodic", "test", 2, (8, 9), (8, 9), 4, 3, padding="CIRCULAR", bands=("none", "modes=3,2")
    ),
}
SMALL_NETWORK = Network("net", "test", 4, image=(8, 8, 3), widths=(4, 8), blocks=(1, 2))
SMALL_RUN = ["--workloads", "stage4", "--batch", "1", "--runs", "1", "--seconds", "0"]


def results(candidate):
    return candidate.results(candidate.call())


def band_conv_at(layer, label, direction, grid=None):
    """``(y, dx, dw)`` or ``(y,)`` of the library itself."""

    def convolve(x, kernel):
        return bandjax.band_conv(
            x,
            kernel,
            parse_band(label)[1],
            padding=layer.padding,
            feature_group_count=layer.groups,
            grid=grid,
        )

    return jax.jit(layer_call(convolve, direction))(*random_arrays(layer))


def assert_close(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


@pytest.mark.no_cover
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_peers_on_jax_compute_the_same(name, direction):
    layer = LAYERS[name]
    arrays = random_arrays(layer)
    dense = [results(c) for c in layers.dense(layer, arrays, direction, None)]
    assert len(dense) == 2
    assert_close(dense[1], dense[0])
    assert len(dense[0]) == (3 if direction == "train" else 1)

    ours = {c.band: c for c in layers.band_limited(layer, arrays, direction, None, *[["auto"]] * 2)}
    assert list(ours) == list(layer.bands)
    assert_close(results(ours["none"]), dense[0])
    grids = {False: None, True: layers.authors_grid(layer)}
    if name == "periodic":
        del grids[True]
    for powers_of_two, grid in grids.items():
        for band in layer.bands:
            at_band = dataclasses.replace(layer, bands=(band,))
            found = list(
                layers.compositions(at_band, arrays, direction, None, powers_of_two=powers_of_two)
            )
            assert [c.band for c in found] == [band, band]
            for candidate in found:
                assert_close(results(candidate), band_conv_at(layer, band, direction, grid))
                if band == "none":
                    assert_close(results(candidate), dense[0])


@pytest.mark.parametrize("name", LAYERS)
def test_float64_reference(name):
    layer = LAYERS[name]
    arrays = random_arrays(layer)
    dense = results(next(layers.dense(layer, arrays, "train", None)))
    assert_close(dense, oracle.reference(arrays, layer.geometry()))
    limited = band_conv_at(layer, layer.bands[1], "train")
    expected = oracle.reference(arrays, layer.geometry(parse_band(layer.bands[1])[1]))
    assert_close(limited, expected)
    assert oracle.relative_error(dense, expected) > 1e-2  # the band is in use
    off = (expected[0], expected[1] + 0.25 * np.abs(expected[1]).max(), expected[2])
    assert oracle.relative_error(off, expected) == pytest.approx(0.25)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_convolutions_of_torch(name, direction):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_peer

    layer = LAYERS[name]
    arrays = random_arrays(layer)
    expected = results(next(layers.dense(layer, arrays, direction, None)))
    device = torch_peer.prepare("cpu", "float32")
    found = list(torch_peer.dense(layer, arrays, direction, device))
    assert len(found) == (1 if name == "1d" else 2)
    for candidate in found:
        assert_close(results(candidate), expected)
        assert_close(results(candidate), expected)  # a second call adds nothing to gradients
    assert torch.get_num_threads() >= 1


def test_network_of_torch_is_that_of_flax():
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_peer

    model = network.model_of(SMALL_NETWORK, None, convolution=nnx.Conv)
    twin = torch_peer.ResNet(SMALL_NETWORK)
    flax_parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    torch_parameters = list(twin.parameters())
    assert sum(a.size for a in flax_parameters) == sum(p.numel() for p in torch_parameters)

    def copy(layer, module):
        with torch.no_grad():
            if isinstance(module, torch.nn.Conv2d):
                kernel = np.moveaxis(np.asarray(layer.kernel[...]), (3, 2), (0, 1))
                module.weight.copy_(torch.from_numpy(kernel.copy()))
            else:
                module.weight.copy_(torch.from_numpy(np.asarray(layer.kernel[...]).T.copy()))
                module.bias.copy_(torch.from_numpy(np.asarray(layer.bias[...]).copy()))

    copy(model.stem, twin.stem)
    copy(model.head, twin.head)
    for ours, theirs in zip(model.blocks, twin.blocks, strict=True):
        copy(ours.conv1, theirs.conv1)
        copy(ours.conv2, theirs.conv2)
        if ours.shortcut is not None:
            copy(ours.shortcut, theirs.shortcut[0])
    images, _ = network.random_examples(SMALL_NETWORK)
    channels_first = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    expected = np.asarray(model(images))
    np.testing.assert_allclose(twin(channels_first).detach().numpy(), expected, atol=1e-5)


def test_steps_train_and_differ_by_their_convolutions():
    found = list(network.steps(SMALL_NETWORK, None, ["auto"], ["auto"], with_dense=True))
    names = ["flax dense", *(f"bandjax {band}" for band in SMALL_NETWORK.bands), network.REST]
    assert [c.name for c in found] == names
    assert all(c.temp_bytes > 0 for c in found)
    losses = {c.name: [float(*results(c)) for _ in range(12)] for c in found}
    for name, curve in losses.items():
        assert curve[-1] < curve[0], name
    assert len({curve[0] for curve in losses.values()}) == len(names)
    exact = dataclasses.replace(SMALL_NETWORK, bands=("none",))
    (ours, _) = network.steps(exact, None, ["auto"], ["auto"], with_dense=False)
    np.testing.assert_allclose(
        [float(*results(ours)) for _ in range(3)], losses["flax dense"][:3], rtol=1e-4
    )


def test_resnet18_has_the_known_number_of_parameters():
    workload = next(w for w in WORKLOADS if w.name == "resnet18")
    model = network.model_of(workload, "compression=0.5", training=False)
    parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in parameters) == 11_173_962
    convolutions = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Conv)]
    assert len(convolutions) == 20
    assert all(isinstance(m, bandjax.BandConv) for m in convolutions)
    assert {m.band for m in convolutions} == {bandjax.Compression(0.5)}


def test_resnet_with_the_papers_pooling():
    shape = {}
    for pool in (False, True):
        model = ResNet(
            (16, 16, 3),
            5,
            band=None,
            stem_pool=pool,
            widths=(4, 8),
            blocks=(1, 1),
            rngs=nnx.Rngs(0),
        )
        model.eval()
        seen = []
        call = type(model.blocks[0]).__call__

        def observed(block, x, call=call, seen=seen):
            seen.append(x.shape[1:])
            return call(block, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.blocks[0]), "__call__", observed)
            assert model(np.zeros((2, 16, 16, 3), np.float32)).shape == (2, 5)
        shape[pool] = seen
    assert shape[False] == [(16, 16, 4), (16, 16, 4)]
    assert shape[True] == [(8, 8, 4), (8, 8, 4)]
    with pytest.raises(ValueError, match="needs images"):
        ResNet((16, 3), 5, band=None, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        *((next(w for w in WORKLOADS if w.name == f"stage{n}"), 256 >> n) for n in range(1, 5)),
        (Layer("50words", "test", 1, (270,), (8,), 1, 1), 1024),
    ],
)
def test_grid_of_the_authors(layer, grid):
    assert layers.authors_grid(layer) == (grid,) * len(layer.size)


def test_slow_calls_take_part_in_fewer_rounds(monkeypatch):
    clock = [0.0]
    calls = []

    def call(name, seconds):
        def function():
            calls.append(name)
            clock[0] += seconds

        return function

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    shares = []
    found = timing.interleaved(
        {"quick": call("quick", 0.1), "slow": call("slow", 2.0), "absurd": call("absurd", 60.0)},
        10,
        9.0,
        shares.append,
    )
    assert {name: t.runs for name, t in found.items()} == {"quick": 10, "slow": 4, "absurd": 1}
    assert [calls.count(name) for name in ("quick", "slow", "absurd")] == [11, 5, 1]
    assert found["absurd"].median == found["absurd"].first == 60.0
    assert found["slow"].median == pytest.approx(2.0)
    rounds = "".join({"quick": "q", "slow": "s"}[name] for name in calls[3:])
    assert max(map(len, rounds.split("s"))) <= 3  # the slow one's calls are spread out
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_ratio_is_to_the_fastest_variant_at_the_same_band():
    def candidate(name, side, band=None):
        return measure.Candidate(name, side, band, call=None, results=None)

    candidates = [
        candidate("bandjax none", "bandjax", "none"),
        candidate("bandjax compression=0.5", "bandjax", "compression=0.5"),
        candidate("lax NHWC", "lax"),
        candidate("lax NCHW", "lax"),
        candidate("fft", "fft", "compression=0.5"),
        candidate(network.REST, "rest"),
    ]
    seconds = dict(zip([c.name for c in candidates], (4.0, 2.0, 6.0, 5.0, 8.0, 1.0), strict=True))
    timings = {name: timing.Timing(s, s, s, 1, s) for name, s in seconds.items()}
    assert measure.ratios(candidates, timings) == {
        "bandjax none": {"lax": 1.25},
        "bandjax compression=0.5": {"lax": 2.5, "fft": 4.0},
    }


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
            "fft NHWC compression=0.5",
            "fft NCHW compression=0.5",
            "fft-pow2 NHWC compression=0.5",
            "fft-pow2 NCHW compression=0.5",
        ]
        for c in row["candidates"]:
            assert set(c["seconds"]) == {"median", "low", "high", "runs", "first"}
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


def test_a_peer_that_fails_when_it_is_called_is_left_out(monkeypatch):
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: this convolution\nfailed")

    def dense(*args):
        first, *others = layers_dense(*args)
        return [dataclasses.replace(first, call=fail), *others]

    layers_dense = layers.dense
    monkeypatch.setattr(layers, "dense", dense)
    plan = measure.Plan(peers=("lax",), runs=1, seconds=0, accuracy=True)
    row = measure.measure(LAYERS["2d"], "train", "float32", plan)
    assert row["left_out"] == {"lax NHWC": "INTERNAL: this convolution failed"}
    assert [c["name"] for c in row["candidates"] if c["side"] == "lax"] == ["lax NCHW"]
    assert "no lax NHWC: INTERNAL" in report.notes([row])[0]


def test_row_of_a_network(monkeypatch):
    monkeypatch.setattr(measure, "torch_installed", lambda: False)
    row = measure.measure(SMALL_NETWORK, "train", "float32", measure.Plan(runs=1, seconds=0))
    assert row["left_out"] == {"torch": "PyTorch is not installed"}
    assert set(row["ratios"]["bandjax compression=0.5"]) == {"flax"}
    assert 0 < row["bands"]["compression=0.5"]["compression"] < 1
    seconds = {c["name"]: c["seconds"]["median"] for c in row["candidates"]}
    absent, share = report.notes([row])
    assert absent == "net, train: no torch: PyTorch is not installed"
    assert f"{seconds[network.REST] / seconds['flax dense']:.0%} of flax dense" in share
    (times, gains) = report.tables([row], 1)
    assert [c.header for c in times.columns] == ["", "net", "temporary\nmemory"]
    assert gains.row_count == 4
    json.dumps(row)


def test_geometric_means_are_over_a_group_in_one_direction():
    def row(name, direction, ratio):
        key = {"group": "g", "batch": 2, "direction": direction, "precision": "float32"}
        return {**key, "workload": name, "ratios": {"bandjax none": {"lax": ratio}}}

    rows = [row("a", "train", 2.0), row("b", "train", 8.0), row("a", "forward", 5.0)]
    (mean,) = report.geometric_means(rows)
    assert mean["ratio"] == pytest.approx(4.0)
    assert (mean["direction"], mean["candidate"], mean["peer"]) == ("train", "bandjax none", "lax")
    assert mean["workloads"] == 2


# ------------------------------------------------------------------------------------------ bounds


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
    candidates = [
        {"name": "bandjax compression=0.5", "side": "bandjax", "temp_bytes": 50, "error": 3e-6},
        {"name": "lax NHWC", "side": "lax", "temp_bytes": 100, "error": 1.0},
        {"name": "lax NCHW", "side": "lax", "temp_bytes": 200, "error": 1.0},
    ]
    rows = [
        synthetic("stage1", ratios={"lax": 1.0}),  # superseded by the next
        synthetic("stage1", ratios={"lax": 4.0}, candidates=candidates),
        synthetic("stage2", ratios={"lax": 8.0}),
        synthetic("stage3", ratios={"lax": 4.0}),
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


# ------------------------------------------------------------------------------------ command line


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
        (["--seconds", "-1"], "--seconds >= 0"),
        (["--peers", "cudnn"], "--peers"),
        (["--methods"], "need at least one of --methods"),
        (["--precisions", "tf32"], "--precisions tf32 is for --device gpu"),
        (["--device", "gpu"], "--device gpu: JAX has no GPU, its backend is cpu"),
        (["--workloads", "resnet18", "--directions", "forward"], "a network is trained"),
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
    monkeypatch.setattr(
        "experiments.benchmarks.__main__.torch_installed", lambda: False, raising=True
    )
    assert main(["--peers", "torch"]) == 2
    assert "PyTorch is not installed: pip install torch" in capsys.readouterr().err

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
