"""``python -m bandjax``: the report of the environment, and the self-test."""

from __future__ import annotations

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import bandjax
from bandjax import __main__ as program


def run(capsys, monkeypatch, number=None):
    """Status and lines of a run with the first checks, and without the timing."""
    checks = list(itertools.islice(program.checks(), number))
    monkeypatch.setattr(program, "checks", lambda: iter(checks))
    monkeypatch.setattr(program, "speed", lambda: "none")
    status = program.main()
    return status, capsys.readouterr().out.splitlines()


def test_the_environment_is_told(capsys, monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "0")
    status, told = run(capsys, monkeypatch, 0)
    assert status == 0
    named = dict(line.split(":", 1) for line in told)
    assert bandjax.__version__ in named["bandjax"]
    assert f"jax {jax.__version__}" in named["packages"]
    assert named["devices"].count("cpu:") == len(jax.devices())
    assert named["kernels"].strip() == bandjax.native_status()
    assert "JAX_LOG_COMPILES" in named
    assert "(not installed)" in program.version("no-such-package")


def test_a_reader_may_go_before_the_end():
    command = [sys.executable, "-P", "-m", "bandjax"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as report:
        assert report.stdout is not None
        report.stdout.close()
        _, told = report.communicate()
    assert (report.returncode, told) == (1, b"")


def test_the_allocator_is_told(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "does nothing" in program.allocator()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1073741824")
    library = program.ctypes.CDLL(None)
    told = "set by GLIBC_TUNABLES" if hasattr(library, "gnu_get_libc_version") else "does nothing"
    assert told in program.allocator()


@pytest.mark.thin(4)
@pytest.mark.parametrize("number", range(13))
def test_every_check_of_a_whole_library_passes(number):
    found = list(program.checks())
    assert len(found) == (13 if "native: available" in bandjax.native_status() else 8)
    if number < len(found):
        assert found[number][1]() < 1e-5


@pytest.mark.parametrize("modes", [None, (3, 2)])
def test_the_expected_numbers_are_the_oracles(modes):
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(11, 8, 2)), rng.normal(size=(3, 3, 2, 4))
    ones = (1, 1)
    axes = oracle.axes(
        (11, 8),
        (3, 3),
        strides=ones,
        padding="SAME",
        input_dilation=ones,
        kernel_dilation=ones,
        modes=modes,
    )
    wanted = oracle.convolve(x, kernel, axes)
    assert oracle.gap(program.expected(x, kernel, modes), wanted) < 1e-12


def wrong_output(convolve):
    return lambda *args, **options: convolve(*args, **options) + 0.01


def wrong_gradient(convolve):
    @jax.custom_vjp
    def linear(y):
        return y

    linear.defvjp(lambda y: (y, None), lambda _, ct: (1.001 * ct,))
    return lambda *args, **options: linear(convolve(*args, **options))


def not_there(convolve):
    def raises(*args, **options):
        raise RuntimeError("of no use")

    return raises


@pytest.mark.parametrize(
    ("broken", "verdict"),
    [
        (wrong_output, "WRONG (error"),
        (wrong_gradient, "WRONG (error"),
        (not_there, "FAILED: RuntimeError: of no use"),
    ],
)
def test_what_is_broken_is_found(broken, verdict, capsys, monkeypatch):
    monkeypatch.setattr(bandjax, "band_conv", broken(bandjax.band_conv))
    status, told = run(capsys, monkeypatch, 1)
    assert status == 1
    assert any(verdict in line for line in told)
    assert told[-1].endswith("1 checks failed")


def test_the_line_of_speed_names_each_side(monkeypatch):
    monkeypatch.setattr(program, "TIMED", (1, 8, 8, 4))
    monkeypatch.setattr(program, "REPEATS", 2)
    told = program.speed()
    assert [name in told for name in ("jax.lax", "exact", "at 50 %")] == [True] * 3


def test_a_call_is_timed_with_its_gradients():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    assert 0 < program._seconds(bandjax.band_conv, x, kernel) < 60


@pytest.mark.full
def test_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bandjax"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("all is well")
    assert "speed:" in done.stdout
