"""The fuzzing program finds a planted fault, and tells the least of it."""

from __future__ import annotations

import dataclasses
import json
import re

import jax.numpy as jnp
import pytest

import bandjax
from experiments.checks import fuzz


def small(number=0, **changes):
    """A case without transformations but those asked for."""
    plain = {"maps": (), "remat": "none", "jit": False, "mesh": False}
    return dataclasses.replace(fuzz.case_of(number), **{**plain, **changes})


@pytest.mark.parametrize("maps", [("x",), ("kernel", "scan"), ("both",)])
def test_a_case_is_right_under_its_transformations(maps):
    case = small(1, maps=maps, method="dft", implementation="xla", remat="bandjax", jit=True)
    assert fuzz.error_of(case) <= fuzz.BOUND


def test_a_case_is_a_function_of_its_number():
    assert [fuzz.case_of(n) for n in range(20)] == [fuzz.case_of(n) for n in range(20)]
    cases = [fuzz.case_of(n) for n in range(200)]
    assert {case.remat for case in cases} == {"none", "jax", "bandjax"}
    assert {len(case.maps) for case in cases} == {0, 1, 2}
    assert {case.mesh for case in cases} == {case.jit for case in cases} == {False, True}


@pytest.fixture
def flipped(monkeypatch):
    """A convolution in place of a correlation, if there is more than one tap."""
    right = bandjax.band_conv

    def wrong(x, kernel, *arguments, **options):
        return right(x, jnp.flip(kernel, 0), *arguments, **options)

    monkeypatch.setattr(bandjax, "band_conv", wrong)


@pytest.mark.full
def test_a_fault_is_found_and_reduced(flipped, capsys, tmp_path):
    number = next(n for n in range(50) if fuzz.case_of(n).config.taps[0] > 1)
    record = tmp_path / "fuzz.json"
    words = ["--first", str(number), "--cases", "1", "--out", str(record)]
    assert fuzz.main(words) == 1
    found = json.loads(record.read_text())
    assert found["cases"] == 1
    (off,) = found["off"]
    assert off["case"] == number
    assert float(off["result"]) > fuzz.BOUND
    assert re.search(r"maps \(\), remat none, jit False, mesh False$", off["reduced"])
    assert "strides=(1," in off["reduced"]
    assert "1 off" in capsys.readouterr().out


def test_an_error_is_a_case_that_is_off(monkeypatch, capsys):
    def fails(*arguments, **options):
        raise RuntimeError("planted")

    monkeypatch.setattr(bandjax, "band_conv", fails)
    assert fuzz.main(["--case", "3"]) == 1
    assert "RuntimeError: planted" in capsys.readouterr().out


def test_time_must_be_positive(capsys):
    for words in (["--case", "-1"], ["--first", "-1"], ["--cases", "0"]):
        assert fuzz.main(words) == 2
        assert f"{words[0].removeprefix('--')} must be >=" in capsys.readouterr().err
    assert fuzz.main(["--minutes", "0"]) == 2
    assert capsys.readouterr().err == "error: minutes must be positive, got 0.0\n"
