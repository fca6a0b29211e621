"""Strides that do not alias: the dense convolution, an ideal low-pass, every s-th sample."""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction

import configs
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import by_every_method, convolution
from choices import thinned
from flax import nnx

import bandjax
from bandjax import Compression, Energy, Modes, Nyquist

pytestmark = pytest.mark.thin(8)

SWEEP, COUNT, CHUNK = 41, 192, 3


def kept(axis: oracle.Axis, limit: int) -> np.ndarray:
    """The circle's low-pass filter as a matrix: a sum of waves, |u| <= limit and g / (2 s)."""
    g, s = axis.grid, axis.stride
    points = np.arange(g)
    waves = {u % g for u in range(-limit, limit + 1) if abs(Fraction(u)) <= Fraction(g, 2 * s)}
    turns = np.subtract.outer(points, points)
    return sum(np.exp(2j * np.pi * u * turns / g) for u in waves).real / g


def literal(config: configs.Config, limits: tuple[int, ...]) -> np.ndarray:
    """Places the input on the circle, convolves at every point, filters, and takes samples."""
    x, kernel = config.arrays()
    axes = config.geometry
    rank = len(axes)
    x = x.reshape(-1, *config.sizes, config.channels)
    circle = np.zeros((len(x), *(a.grid for a in axes), config.channels))
    places = np.ix_(*(np.arange(a.size) * a.input_dilation for a in axes))
    circle[(slice(None), *places)] = x
    outputs = config.features // config.groups
    inputs = config.channels // config.groups
    dense = np.zeros((len(x), *(a.grid for a in axes), config.features))
    for tap in np.ndindex(*config.taps):
        shifts = [-t * a.kernel_dilation for t, a in zip(tap, axes, strict=True)]
        moved = np.roll(circle, shifts, range(1, rank + 1))
        for group in range(config.groups):
            out = slice(group * outputs, (group + 1) * outputs)
            of = slice(group * inputs, (group + 1) * inputs)
            dense[..., out] += moved[..., of] @ kernel[tap][:, out]
    for n, (axis, limit) in enumerate(zip(axes, limits, strict=True), start=1):
        smooth = np.moveaxis(np.tensordot(kept(axis, limit), dense, (1, n)), 0, n)
        samples = (np.arange(axis.out) * axis.stride - axis.low) % axis.grid
        dense = np.take(smooth, samples, n)
    return dense.reshape(*config.batch, *dense.shape[1:])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("first", thinned(range(0, COUNT, CHUNK), kept=1))
def test_random_configurations(first):
    """1 to 3 dimensions, odd and even sizes, every padding, dilations and groups."""
    for index, config in enumerate(configs.chunk(SWEEP, first, CHUNK, banded=True), start=first):
        bounded = config.rate is not None or config.modes is not None
        limits = tuple(a.modes for a in config.geometry)
        band = None
        if bounded and index % 2:
            band = Modes(*limits) if config.rate is None else Compression(config.rate)
        if band is None:
            limits = tuple(a.grid // 2 for a in config.geometry)
        expected = literal(config, limits)
        for method, actual in by_every_method(config, Nyquist(band)).items():
            assert actual.dtype == jnp.float64
            assert oracle.gap(actual, expected) <= 1e-12, (method, config)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(16, 2, "CIRCULAR"), (15, 2, "CIRCULAR"), (18, 3, "VALID"), (17, 4, "VALID")],
)
def test_a_tone_above_the_outputs_nyquist_gives_nothing(size, stride, padding):
    config = configs.Config(
        (0, 0), (), (size,), (3,), 1, 2, (stride,), padding, (1,), (1,), 1
    )  # fmt: skip
    kernel = jnp.asarray(config.arrays()[1])
    run = jax.jit(convolution(config, Nyquist(), "auto"))
    aliases = jax.jit(convolution(config, None, "auto"))
    for u in range(size // 2 + 1):
        tone = np.cos(2 * np.pi * u * np.arange(size) / size + 0.3)
        largest = np.abs(run(jnp.asarray(tone[:, None]), kernel)).max()
        assert np.abs(aliases(jnp.asarray(tone[:, None]), kernel)).max() > 0.1
        if 2 * u * stride > size:
            assert largest <= 1e-12
        else:
            assert largest > 0.1


def test_the_box():
    grid = (33, 32, 7)
    assert Nyquist().modes(grid) == (16, 16, 3)
    assert Nyquist().modes(grid, 2) == (8, 8, 1)
    assert Nyquist().modes(grid, (1, 2, 9)) == (16, 8, 0)
    assert Nyquist(Modes(9, 3, 2)).modes(grid, (2, 1, 2)) == (8, 3, 1)
    one = bandjax.conv_geometry((1, 32, 32, 3), (1, 1, 3, 8), Nyquist(), strides=2)
    assert one.grid == (32, 32)
    assert one.modes == (8, 8)
    assert one.compression == pytest.approx(1 - 17 * 9 / (32 * 17))
    plain = bandjax.conv_geometry((1, 32, 32, 3), (3, 3, 3, 8), Nyquist(Compression(0.5)))
    assert plain.modes == Compression(0.5).modes((33, 33))


@pytest.mark.full
def test_an_energy_band_within_it():
    arguments = ((2, 32, 3), (3, 3, 4))
    band = Energy(0.99, at_most=Nyquist(Compression(0.1)))
    geometry = bandjax.conv_geometry(*arguments, band, strides=3)
    assert geometry.modes == (5,)
    assert geometry.energy == Energy(0.99, at_most=Modes(5))
    x, kernel = (jax.random.normal(jax.random.key(n), s) for n, s in enumerate(arguments))
    call = functools.partial(bandjax.band_conv, x, kernel, strides=3, return_modes=True)
    y, modes = call(band)
    wanted, found = call(geometry.energy)
    assert modes == found
    assert np.array_equal(y, wanted)


def test_wrong_ones_are_refused():
    with pytest.raises(TypeError, match=r"write bandjax.Energy\(0.9, at_most=bandjax.Nyquist\(\)"):
        Nyquist(Energy(0.9))
    with pytest.raises(TypeError, match=r"Nyquist takes bandjax.Compression, .* got 0.5"):
        Nyquist(0.5)
    with pytest.raises(ValueError, match=r"keeps \|u\| <= 40 on spatial axis 0"):
        bandjax.conv_geometry((1, 32, 3), (3, 3, 4), Nyquist(Modes(40)), strides=2)


def test_models_and_their_summary():
    rngs = nnx.Rngs(0)
    make = functools.partial(nnx.Conv, 3, 4, padding=1, rngs=rngs)
    model = nnx.List([make((3, 3), strides=2), make((3, 3)), make((1, 1), strides=(2, 1))])

    class Parallel(nnx.Module):
        def __init__(self):
            self.layers = model

        def __call__(self, x):
            return [layer(x) for layer in self.layers]

    network = Parallel()
    report = bandjax.nnx.band_limit(network, Nyquist())
    assert set(report.limited.values()) == {Nyquist()}
    told = bandjax.summary(network, (1, 16, 16, 3))
    assert [layer.geometry.modes for layer in told.layers] == [(4, 4), (8, 8), (4, 8)]
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    plan = bandjax.calibrate(network, [x], Energy(1.0, at_most=Nyquist()))
    assert [layer.modes for layer in plan.layers.values()] == [(4, 4), (8, 8), (4, 8)]
    assert bandjax.Plan.from_dict(plan.as_dict()) == plan
    with pytest.raises(ValueError, match="is for 1 spatial axes"):
        bandjax.nnx.band_limit(network, Nyquist(Modes(3)))


def test_ramps_of_it():
    schedule = bandjax.schedule.ramp(Nyquist(Compression(0.5)), Nyquist(), 4, levels=3)
    rates = [band.band.rate for _, band in schedule.pieces]
    assert rates == [0.5, 0.25, 0.0]
    assert bandjax.schedule.from_json(schedule.to_json()) == schedule
    assert dataclasses.replace(schedule) == schedule
