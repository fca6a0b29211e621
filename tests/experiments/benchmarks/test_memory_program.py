"""The benchmark of memory."""

from __future__ import annotations

import functools
import json

import pytest

import bandjax
from experiments.benchmarks import largest_batch, memory, steps
from experiments.models.resnet import ResNet

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = steps.Task(
    functools.partial(ResNet, widths=(4, 8), blocks=(1, 1)), (8, 8, 3), classes=3, batch=4
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(steps.TASKS, "small", SMALL)


def run(tmp_path, *more):
    out = tmp_path / "deep" / "m.json"
    arguments = ["--networks", "small", "--bands", "none", "compression=0.5", *more]
    assert memory.main([*arguments, "--out", str(out)]) == 0
    assert out.with_name("m-small.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(out.read_text())
    assert {"date", "git_revision", "versions", "machine", "settings", "rows"} == set(content)
    return {(row["band"], row["variant"]): row for row in content["rows"]}


@pytest.mark.full
@pytest.mark.usefixtures("small")
def test_run_counts(tmp_path, capsys):
    rows = run(tmp_path)
    assert "small, batch 4" in capsys.readouterr().out
    assert set(rows) == {("none", v) for v in memory.OF_DENSE} | {
        ("compression=0.5", v) for v in steps.VARIANTS
    }
    assert all(0 < row["average_bytes"] <= row["saved_bytes"] for row in rows.values())
    half = {v: rows["compression=0.5", v] for v in steps.VARIANTS}
    assert set(half["spectra"]["by_kind"]) == {"spectrum"}
    assert half["bfloat16"]["saved_bytes"] * 2 == half["spectra"]["saved_bytes"]
    assert set(half["int8"]["by_kind"]) == {"spectrum", "scale"}
    assert half["int8"]["by_kind"]["spectrum"] * 4 == half["spectra"]["saved_bytes"]
    assert half["spectra"]["saved_bytes"] < half["spectra-blocks"]["saved_bytes"]


@pytest.mark.full
@pytest.mark.usefixtures("small")
def test_run_measures(tmp_path, capsys):
    rows = run(tmp_path, "--variants", "plain", "spectra-blocks", "--runs", "1")
    shown = capsys.readouterr().out
    assert "step," in shown
    assert "temporaries" in shown
    assert len(rows) == 3
    for row in rows.values():
        assert row["seconds"]["median"] > 0
        assert row["compiled"]["temporary"] > 0


@pytest.mark.usefixtures("small")
def test_spectra_of_a_small_network_by_hand():
    saved = steps.Step("small", "compression=0.5", "spectra", 4).saved()
    convolutions = [  # of the stem, of two blocks and of the second one's shortcut
        ((4, 8, 8, 3), (3, 3, 3, 4), 1),
        ((4, 8, 8, 4), (3, 3, 4, 4), 1),
        ((4, 8, 8, 4), (3, 3, 4, 4), 1),
        ((4, 8, 8, 4), (3, 3, 4, 8), 2),
        ((4, 4, 4, 8), (3, 3, 8, 8), 1),
        ((4, 8, 8, 4), (1, 1, 4, 8), 2),
    ]
    expected = 0
    for x, kernel, strides in convolutions:
        padding = 1 if kernel[0] == 3 else 0
        geometry = bandjax.conv_geometry(
            x, kernel, bandjax.Compression(0.5), strides=strides, padding=padding
        )
        expected += 4 * 2 * geometry.kept * 4 * x[-1]
    assert saved.total == expected


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 100, 1000, 12345])
@pytest.mark.parametrize("planned", [0.7, 1.0, 1.3])
def test_largest_batch(limit, planned):
    """What the compiler plans is not what the allocator takes."""
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= limit

    found = largest_batch.largest_batch(
        lambda b: round(1e6 * (50 + b) * planned), fits, 10**6 * (50 + limit), 8
    )
    assert limit * 15 / 16 - 1 <= found <= limit
    assert len(tried) < 24
    assert len(set(tried)) == len(tried)


def test_largest_batch_of_interest():
    assert largest_batch.largest_batch(lambda b: b, lambda b: True, 10**9, 8, most=64) == 64
    assert largest_batch.largest_batch(lambda b: b, lambda b: True, 0, 8, most=64) == 64


@pytest.mark.full
def test_fitting_in_another_process():
    # The CPU's allocator does not count, and has no limit: the network's own batch is taken.
    fitting = largest_batch.Fitting("fcn", "compression=0.5", "spectra", 2)
    assert fitting.found() == {"batch": steps.TASKS["fcn"].batch, "peak": 0, "limit": 0}
    assert len(fitting.seconds()) == 2


@pytest.mark.full
def test_what_the_other_process_says_when_it_fails():
    with pytest.raises(largest_batch.UserError, match=r"fcn, compression=2, .*: error: .*rate"):
        largest_batch.Fitting("fcn", "compression=2", "spectra").found()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--networks", "vgg"], "no 'vgg'; known: resnet18"),
        (["--variants", "half"], "no 'half'; known: plain"),
        (["--bands", "half"], "half"),
        (["--batch", "0"], "--batch >= 1"),
        (["--device", "gpu"], "the backend of JAX is cpu"),
    ],
)
def test_arguments_that_cannot_be(arguments, part, capsys):
    assert memory.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert part in error
    assert error.count("\n") == 1
