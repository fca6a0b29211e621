"""A run on meshes and by several processes: the losses of one device, and what ends it."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.checks import devices as check
from experiments.cluster.devices import ONE, parse_mesh
from experiments.data import load_digits
from experiments.data.examples import place
from experiments.settings.bands import parse_band
from experiments.settings.compiler import quick_jit
from experiments.settings.config import settings_for
from experiments.settings.errors import UserError
from experiments.train import main
from experiments.training.loop import Trainer

FEW = ("--limit", "128", "--batch-size", "64", "--seeds", "0", "--augment", "flip-crop")


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_a_mesh_trains_as_one_device_and_checkpoints_move(tmp_path, capsys):
    words = [*FEW, "--band", "compression=0.5", "--epochs", "3"]
    meshes = {"one": [], "mesh": ["--mesh", "data=4,model=2"]}
    curves = {}
    for name, mesh in meshes.items():
        assert main([*words, *mesh, "--out", str(tmp_path / name)]) == 0
        record = json.loads((tmp_path / name / f"{check.STEM}.json").read_text())
        curves[name] = record["curves"]
    assert record["devices"]["mesh"] == {"data": 4, "model": 2}
    for loss in ("train_loss", "test_loss"):
        np.testing.assert_allclose(curves["mesh"][loss], curves["one"][loss], rtol=1e-4)

    # A checkpoint of the mesh goes on elsewhere: its run is not done, but for its last checkpoint.
    out = tmp_path / "mesh"
    (out / f"{check.STEM}.json").unlink()
    capsys.readouterr()
    assert main(["--resume", str(out), "--mesh", "data=2"]) == 0
    assert "goes on after step 6" in capsys.readouterr().out
    record = json.loads((out / f"{check.STEM}.json").read_text())
    assert record["devices"]["mesh"] == {"data": 2, "model": 1}
    assert record["curves"] == curves["mesh"]


def test_what_the_mesh_splits():
    devices = parse_mesh("data=2,model=4")
    examples = place(load_digits().limited(128), devices=devices)
    trainer = Trainer(
        settings_for("cnn", "digits", batch_size=16), examples, parse_band("none")[1], devices
    )
    state = trainer.start(0)
    channels = set()
    for leaf in jax.tree.leaves(state.params):
        channels.add(leaf.shape[-1])
        wanted = P(*[None] * (leaf.ndim - 1), "model") if leaf.shape[-1] % 4 == 0 else P()
        assert leaf.sharding.spec == wanted
    assert 10 in channels  # The classes, which four do not divide.
    assert {batch[0].sharding.spec for batch in examples.test} == {P("data")}
    assert examples.test[0][0].shape[0] % 2 == 0
    assert sum(int(batch[2].sum()) for batch in examples.test) == examples.test_count
    assert len(examples.x.sharding.device_set) == 8
    whole = devices.gather(state.params)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(whole))
    assert parse_mesh(None) is ONE


def test_several_processes_use_all_their_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert dict(parse_mesh(None).mesh.shape) == {"data": 8, "model": 1}
    assert dict(parse_mesh("model=4, data=2").mesh.shape) == {"data": 2, "model": 4}
    with pytest.raises(UserError, match="'data=4' has 4 devices; it must have all 8 of the proc"):
        parse_mesh("data=4")


def test_no_activation_is_gathered_over_data():
    devices = parse_mesh("data=8")
    examples = place(load_digits().limited(128), devices=devices)
    trainer = Trainer(
        settings_for("cnn", "digits", batch_size=64, augment="flip-crop"),
        examples,
        parse_band("compression=0.5")[1],
        devices,
    )
    network, state, sums = trainer.network, trainer.start(0), trainer.no_steps()
    step = next(trainer._epoch_data(0, 1, 0))
    # XLA with less effort: what is shared out is decided before it optimises.
    text = quick_jit(network._update).lower(state, None, sums, *step).compile().as_text()
    assert re.search("all-reduce", text)
    # Eight devices have eight images each of 8x8x16 numbers or more; none may come from another.
    for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text):
        assert np.prod([int(n) for n in shape.split(",")]) < 8 * 8 * 16


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--mesh", "data"], "mesh must name data=N, model=N or both"),
        (["--mesh", "rows=2"], "mesh must name data=N, model=N or both"),
        (["--mesh", "data=0"], "mesh must name data=N, model=N or both"),
        (["--mesh", "data=2,data=2"], "mesh must name data=N, model=N or both"),
        (["--mesh", "data=16"], "needs 16 devices, there are 8"),
        (["--mesh", "data=3"], "batch_size must be a multiple of the 3 parts"),
        (["--cpu-devices", "0"], "cpu-devices must be at least 1, got 0"),
        (["--cpu-devices", "4"], "cpu-devices cannot be chosen"),
        (["--processes", "2"], "--coordinator, --processes and --process-id are for --distributed"),
    ],
)
def test_wrong_meshes_are_one_line(tmp_path, capsys, words, line):
    jax.devices()  # Too late to split the CPU.
    assert main([*FEW, *words, "--epochs", "1", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())
