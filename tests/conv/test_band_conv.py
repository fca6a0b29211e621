"""``band_conv`` against the literal sums of the oracle, and the box that a band stands for."""

from __future__ import annotations

from fractions import Fraction

import configs
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import HERE, METHODS, band_of, by_every_method, chosen
from choices import thinned

import bandjax

SWEEP, COUNT, CHUNK = 3, 504, 3


@pytest.mark.no_cover
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("first", thinned(range(0, COUNT, CHUNK)))
def test_random_configurations(first):
    for config in configs.chunk(SWEEP, first, CHUNK, banded=True):
        expected = oracle.convolve(*config.arrays(), config.geometry, config.groups)
        for method, actual in by_every_method(config, band_of(config)).items():
            assert actual.dtype == jnp.float64
            assert oracle.gap(actual, expected) <= 1e-12, (method, config)


@pytest.mark.thin(6)
@pytest.mark.parametrize(("channels", "size"), [(64, 32), (128, 16), (256, 8), (512, 4)])
@pytest.mark.parametrize("rate", [0.5, 0.75])
def test_float32_at_the_layers_of_resnet18(channels, size, rate):
    rng = np.random.default_rng((channels, size))
    x = rng.normal(size=(2, size, size, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, channels)).astype(np.float32)
    ones = (1, 1)
    geometry = oracle.axes(
        (size, size),
        (3, 3),
        strides=ones,
        padding="SAME",
        input_dilation=ones,
        kernel_dilation=ones,
        rate=Fraction(rate),
    )
    expected = oracle.convolve(x, kernel, geometry)
    for method in HERE:
        run = jax.jit(
            lambda x, kernel, method=method: bandjax.band_conv(
                x, kernel, bandjax.Compression(rate), **chosen(method)
            )
        )
        assert oracle.relative_gap(run(x, kernel), expected) <= 1e-5, method


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_geometry(first):
    for config in configs.chunk(SWEEP, first, 100, banded=True):
        axes = config.geometry
        grid = tuple(axis.grid for axis in axes)
        modes = tuple(axis.modes for axis in axes)
        total = oracle.kept(grid, [g // 2 for g in grid])
        actual = bandjax.conv_geometry(
            config.x_shape, config.kernel_shape, band_of(config), **config.arguments()
        )
        assert actual.grid == grid, config
        assert actual.modes == modes, config
        assert actual.kept == oracle.kept(grid, modes), config
        assert actual.total == total, config
        assert actual.compression == pytest.approx(1 - actual.kept / total, abs=1e-15), config
        outs = (axis.out for axis in axes)
        assert actual.output_shape == (*config.batch, *outs, config.features), config


@pytest.mark.parametrize(
    "sizes", [(4,), (5,), (9,), (64,), (1, 1), (1, 6), (5, 5), (6, 9), (33, 33), (3, 4, 5)]
)
def test_the_box_of_every_rate(sizes):
    # A kernel of one tap needs no padding, so that the grid is the input's own size.
    kernel_shape = (*(1 for _ in sizes), 2, 3)
    for hundredths in range(100):
        rate = hundredths / 100
        # A rate is the decimal number that it prints as: 0.1 is a tenth.
        expected = oracle.compression_box(sizes, Fraction(hundredths, 100))
        actual = bandjax.conv_geometry(
            (2, *sizes, 2), kernel_shape, bandjax.Compression(rate), padding="VALID"
        )
        assert actual.grid == sizes
        assert actual.modes == expected, (sizes, rate)


def test_a_tie_keeps_more():
    # Four points hold three coefficients; one half is midway between dropping one and dropping two.
    assert oracle.compression_box((4,), Fraction(1, 2)) == (1,)
    actual = bandjax.conv_geometry((1, 4, 1), (1, 1, 1), bandjax.Compression(0.5), padding="VALID")
    assert actual.modes == (1,)


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_a_shift_of_the_input_shifts_a_periodic_output_alone(padding):
    x = np.random.default_rng(5).normal(size=(1, 8, 2)).astype(np.float32)
    kernel = np.random.default_rng(6).normal(size=(3, 2, 2)).astype(np.float32)
    band = bandjax.Modes(2)
    y = bandjax.band_conv(x, kernel, band, padding=padding)
    shifted = bandjax.band_conv(np.roll(x, 3, axis=1), kernel, band, padding=padding)
    periodic = oracle.relative_gap(np.roll(y, 3, axis=1), shifted) <= 1e-5
    assert periodic == (padding == "CIRCULAR")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_a_tone_outside_the_band_leaves_nothing(method):
    n = np.arange(16)
    kernel = jnp.asarray(np.random.default_rng(7).normal(size=(3, 1, 1)))
    for frequency, passes in ((2, True), (3, True), (4, False), (8, False)):
        tone = jnp.asarray(np.cos(2 * np.pi * frequency * n / 16 + 0.4)[None, :, None])
        run = jax.jit(
            lambda x, w: [
                bandjax.band_conv(x, w, band, padding="CIRCULAR", **chosen(method))
                for band in (bandjax.Modes(3), None)
            ]
        )
        banded, dense = run(tone, kernel)
        assert oracle.gap(banded, dense if passes else np.zeros_like(dense)) <= 1e-12


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize(
    ("band", "options"),
    [
        # The second axis reads the zeros between the samples alone; of the first, some are kept.
        (None, {"strides": (1, 3), "input_dilation": (1, 3), "padding": [(0, 0), (1, 1)]}),
        (
            bandjax.Modes(1, 5),
            {"input_dilation": (1, 2), "strides": 2, "padding": [(0, 0), (1, 1)]},
        ),
        # No window reaches from the padding to the input.
        (None, {"strides": (1, 9), "padding": [(0, 0), (3, 0)]}),
    ],
)
def test_what_reads_no_sample_is_zero(method, band, options):
    """To the last bit, and without gradients, where the rounding of a transform leaves traces."""
    x = np.random.default_rng(7).normal(size=(2, 6, 5, 2)).astype(np.float32)
    kernel = np.random.default_rng(8).normal(size=(3, 1, 2, 3)).astype(np.float32)

    def conv(x, kernel):
        return bandjax.band_conv(x, kernel, band, **options, **chosen(method))

    y, pull_back = jax.vjp(jax.jit(conv), x, kernel)
    assert y.size > 0
    for each in (y, *pull_back(1e6 * jnp.ones_like(y))):
        assert not np.any(each)
