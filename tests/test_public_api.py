"""Names and signatures stay, and what version 0.1 wrote is still read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import public_api
import pytest

import bandjax
from bandjax import Compression, Energy, Modes, schedule

SAVED = Path(__file__).parent / "saved"


def test_names_and_signatures_are_those_that_were_promised():
    """What is new is added to the file by ``python -m tests.public_api``; nothing goes unsaid."""
    promised = (SAVED / "public_api.txt").read_text().splitlines()
    now = list(public_api.lines())
    assert sorted(set(promised) - set(now)) == []
    assert sorted(set(now) - set(promised)) == []


def test_the_package_lists_what_needs_flax():
    assert {"BandConv", "linen", "nnx"} <= set(dir(bandjax))


@pytest.fixture(scope="module")
def pickled():
    return pickle.loads((SAVED / "version_0_1.pickle").read_bytes())


def test_every_pickle_of_version_0_1_loads(pickled):
    loaded = {name: pickle.loads(content) for name, content in pickled.items()}
    assert loaded["compression"] == Compression(0.5)
    assert loaded["modes"] == Modes(3, 2)
    assert loaded["energy"] == Energy(0.9, at_most=Compression(0.5))
    assert loaded["geometry"] == bandjax.conv_geometry(
        (2, 32, 32, 3), (3, 3, 3, 8), Compression(0.5)
    )
    assert loaded["hook"] == bandjax.conv_general_dilated(
        Compression(0.5), method="dft", residual_dtype=jnp.bfloat16
    )
    assert loaded["ramp"] == schedule.ramp(0, 0.5, 10, levels=3)
    plan = loaded["plan"]
    assert plan.layers["layers.0"] == loaded["layer_plan"]
    assert loaded["planned"] == loaded["layer_plan"].band("layers.0")
    assert loaded["recalibrated"](2).as_dict() == plan.as_dict()
    assert loaded["summary"].layers[0].kernel_shape == (3, 3, 3, 8)
    assert loaded.keys() == {
        *("compression", "energy", "fraction", "geometry", "hook", "layer_plan", "modes"),
        *("plan", "planned", "ramp", "recalibrated", "summary"),
    }


def test_what_is_pickled_now_loads_too(pickled):
    for content in pickled.values():
        value = pickle.loads(content)
        again = pickle.loads(pickle.dumps(value))
        assert type(again) is type(value)
        assert repr(again) == repr(value)


def test_plans_and_schedules_as_json_of_version_0_1_load(pickled):
    saved = json.loads((SAVED / "version_0_1.json").read_text())
    assert bandjax.Plan.from_dict(saved["plan"]) == pickle.loads(pickled["plan"])
    for name in ("ramp", "recalibrated"):
        read = schedule.from_dict(saved[name])
        assert json.loads(json.dumps(read.as_dict())) == saved[name]
        assert repr(read) == repr(pickle.loads(pickled[name]))
