"""The oracle itself: against ``lax``, against an FFT, and against numbers worked out by hand."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import configs
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from dense import lax_convolution

pytestmark = pytest.mark.thin(3)


@pytest.mark.full
@pytest.mark.no_cover
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("first", range(0, 120, 24))
def test_with_every_frequency_it_is_the_convolution_of_lax(first):
    for config in configs.chunk(0, first, 24, banded=False):
        x, kernel = config.arrays()
        expected = lax_convolution(config, jnp.asarray(x), jnp.asarray(kernel))
        actual = oracle.convolve(x, kernel, config.geometry, config.groups)
        assert oracle.gap(actual, expected) <= 1e-12, config


@pytest.mark.parametrize("grid", [1, 2, 3, 7, 8, 12])
def test_projection_is_a_truncated_fourier_transform(grid):
    x = np.random.default_rng(grid).normal(size=grid)
    for modes in range(grid // 2 + 1):
        spectrum = np.fft.rfft(x)
        spectrum[modes + 1 :] = 0
        expected = np.fft.irfft(spectrum, grid)
        assert oracle.gap(oracle.projection(grid, modes) @ x, expected) <= 1e-13


@pytest.mark.parametrize("index", range(6))
def test_jacobians_reproduce_the_bilinear_form(index):
    config = configs.random_config(9, index, banded=True)
    x, kernel = config.arrays()
    geometry = config.geometry
    y = oracle.convolve(x, kernel, geometry, config.groups)
    by_x = oracle.input_jacobian(kernel, geometry, config.channels, config.groups)
    by_kernel = oracle.kernel_jacobian(x, kernel.shape, geometry, config.groups)
    rank = len(geometry) + 1
    assert oracle.gap(np.tensordot(x, by_x, (range(-rank, 0),) * 2), y) <= 1e-12
    rank = kernel.ndim
    assert oracle.gap(np.tensordot(by_kernel, kernel, (range(-rank, 0), range(rank))), y) <= 1e-12


def test_kept_coefficients_and_compression_of_small_grids():
    # The shares that the design names for maps too small for a fine choice.
    assert oracle.kept((5, 5), (2, 2)) == 15
    shares = {
        1 - Fraction(oracle.kept((5, 5), box), 15)
        for rate in range(100)
        for box in [oracle.compression_box((5, 5), Fraction(rate, 100))]
    }
    assert shares == {Fraction(0), Fraction(9, 15), Fraction(14, 15)}
    box = oracle.compression_box((9, 9), Fraction(1, 2))
    assert round(float(1 - Fraction(oracle.kept((9, 9), box), 45)), 2) == 0.38
    assert oracle.compression_box((33, 33), Fraction(0)) == (16, 16)


def test_default_grids():
    assert oracle.default_grid(32, 1, 1, 1) == 33
    assert oracle.default_grid(64, 1, 0, 0) == 64
    assert oracle.default_grid(64, 1, 1, 1) == 72
    assert oracle.default_grid(5, 3, -1, -2) == 13


def test_sweeps_meet_every_kind_of_configuration():
    sweep = [config for n in range(0, 600, 25) for config in configs.chunk(1, n, 25, banded=True)]
    kinds = Counter((len(c.sizes), configs.PADDINGS[i // 3 % 8]) for i, c in enumerate(sweep))
    assert min(kinds.values()) >= 20
    assert len(kinds) == 24
    features = {
        "strided": lambda c, axes: max(c.strides) > 1,
        "input dilated": lambda c, axes: max(c.input_dilation) > 1,
        "kernel dilated": lambda c, axes: max(c.kernel_dilation) > 1,
        "grouped": lambda c, axes: c.groups > 1,
        "depthwise with a multiplier": lambda c, axes: 1 < c.groups == c.channels < c.features,
        "own grid": lambda c, axes: c.grid is not None,
        "long axis": lambda c, axes: max(a.grid for a in axes) > 64,
        "even grid": lambda c, axes: any(a.grid % 2 == 0 for a in axes),
        "Nyquist kept on an even grid": lambda c, axes: any(2 * a.modes == a.grid for a in axes),
        "cropped": lambda c, axes: min(min(a.low, a.high) for a in axes) < 0,
        "kernel beyond the input": lambda c, axes: any(a.taps > a.size for a in axes),
        "DC alone": lambda c, axes: any(a.modes == 0 for a in axes),
        "no batch": lambda c, axes: c.batch == (),
        "several batch dimensions": lambda c, axes: len(c.batch) > 1,
    }
    for name, holds in features.items():
        assert sum(holds(c, c.geometry) for c in sweep) >= 15, name
