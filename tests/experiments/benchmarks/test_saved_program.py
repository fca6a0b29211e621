"""The benchmark of compressed residuals."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from experiments.benchmarks import saved, steps
from experiments.models.resnet import ResNet
from experiments.models.vit import ViT

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = steps.Task(
    functools.partial(ResNet, widths=(8,), blocks=(1,)), (16, 16, 3), classes=3, batch=4
)
TINY = steps.Task(
    functools.partial(ViT, width=32, depth=1, heads=2), (16, 16, 3), classes=3, batch=4
)


@pytest.mark.full
@pytest.mark.parametrize("network", ["small", "vit"])
def test_run(tmp_path, capsys, monkeypatch, network, no_pictures):
    monkeypatch.setitem(steps.TASKS, network, SMALL if network == "small" else TINY)
    out = tmp_path / "deep" / "s.json"
    words = ["--networks", network, "--codecs", "dct:8bits", "--blocks", "--no-spectra"]
    words += ["--steps", "1", "--batches", "1", "--runs", "1", "--convolutions", "flax"]
    assert saved.main([*words, "--out", str(out)]) == 0
    assert f"{network}, batch 4" in capsys.readouterr().out
    assert out.with_name(f"s-{network}.png").exists()
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"dense", "jax.checkpoint of each block", "dct:8bits"}
    packed = rows["dct:8bits"]
    assert packed["saved_bytes"] < rows["dense"]["saved_bytes"] / 4
    assert packed["by_codec"]["Dct(bits=8)"] > 0
    for when in ("init", "1 steps"):
        assert rows["dense"][f"cosine, {when}"] == pytest.approx(1, abs=1e-6)
        assert 0.999 < packed[f"cosine, {when}"] < 1 - 1e-9
    assert packed["temporary_bytes"] > 0
    assert packed["seconds"]["runs"] == 1


def test_run_refuses(capsys):
    assert saved.main(["--networks", "lenet"]) == 2
    assert "no 'lenet'; known: resnet18" in capsys.readouterr().err
    assert saved.main(["--codecs", "none"]) == 2
    assert "take codecs, got 'none'" in capsys.readouterr().err


def test_examples_without_data_have_something_to_learn():
    """Of each example's class the wave stands out, whatever its phase."""
    rng = np.random.default_rng(3)
    patterns = saved._Patterns((20, 24, 2), 7)
    y = np.array([0, 3, 6, 3, 1])
    x = patterns.of(y, rng)
    assert x.shape == (5, 20, 24, 2)
    i, j = np.meshgrid(np.arange(20) / 20, np.arange(24) / 24, indexing="ij")
    for label in range(7):
        wave = np.exp(2j * np.pi * (patterns._waves[label, 0] * i + patterns._waves[label, 1] * j))
        found = np.abs(np.einsum("nijc,ij,c->n", x, wave, patterns._colours[label]))
        norm = np.linalg.norm(patterns._colours[label]) ** 2 * 240
        np.testing.assert_allclose(found[y == label], norm, rtol=0.2)
        assert (found[y != label] < 0.5 * norm).all()
    batches = saved._batches("unet3d", 2, saved.Options())
    x, y = next(batches)
    assert y.shape == x.shape[:-1]
    assert 0.2 < y.mean() < 0.8
    assert not np.array_equal(next(batches)[0], x)
