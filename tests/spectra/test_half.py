"""``bandjax.spectral`` against NumPy's FFT and against its own definitions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bandjax import spectral

pytestmark = pytest.mark.thin(5)

GRIDS = [(1,), (7,), (8,), (5, 6), (6, 5), (8, 8), (1, 4), (3, 4, 5), (4, 2, 6)]


def boxes(grid):
    """The smallest box, the whole, and one between."""
    half = [g // 2 for g in grid]
    return sorted({tuple(n * share // 2 for n in half) for share in (0, 1, 2)})


def signal(grid, channels=2):
    return np.random.default_rng(grid).normal(size=(2, *grid, channels))


def residues(g, limit):
    """The kept frequencies of a full axis, by their place in the order of an FFT."""
    return sorted({u % g for u in range(-limit, limit + 1)})


@pytest.mark.parametrize("g", [1, 2, 5, 8, 9])
def test_frequencies_are_those_of_an_fft(g):
    for limit in range(g // 2 + 1):
        full = spectral.frequencies(g, limit)
        assert (full % g).tolist() == residues(g, limit)
        assert np.abs(full).max() == limit
        assert spectral.frequencies(g, limit, half=True).tolist() == list(range(limit + 1))


@pytest.mark.parametrize("g", [1, 2, 5, 8, 9, 64])
def test_hermitian_weights_count_the_whole_spectrum(g):
    spectrum = np.fft.fft(np.random.default_rng(g).normal(size=g))
    for limit in range(g // 2 + 1):
        weights = spectral.hermitian_weights(g, limit)
        assert weights.sum() == len(residues(g, limit))
        # Parseval: half a spectrum with weights has the energy of the whole one.
        energy = np.sum(np.abs(spectrum[residues(g, limit)]) ** 2)
        half = np.sum(weights * np.abs(spectrum[: limit + 1]) ** 2)
        assert half == pytest.approx(energy, rel=1e-13)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("g", [1, 6, 9])
def test_fourier_matrix(g, half, inverse):
    points = range(-3, 20, 4)
    for limit in range(g // 2 + 1):
        matrix = spectral.fourier_matrix(g, limit, points, half=half, inverse=inverse)
        rows = (
            range(limit + 1) if half else [u if 2 * u <= g else u - g for u in residues(g, limit)]
        )
        for row, u in zip(matrix, rows, strict=True):
            weight = 1.0
            if inverse:
                weight = (1 if not half or u == 0 or 2 * u == g else 2) / g
            expected = [weight * np.exp(-2j * np.pi * u * p / g) for p in points]
            assert np.abs(row - expected).max() <= 1e-13
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 0


def test_angles_are_exact_far_from_the_origin():
    # u p = 6.4e13 in radians has no correct digit after the point; modulo the grid it has all.
    far = 10**9 * 64
    actual = spectral.fourier_matrix(64, 20, range(far, far + 64))
    assert np.array_equal(actual, spectral.fourier_matrix(64, 20, range(64)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("grid", GRIDS)
def test_analysis_keeps_the_low_frequencies(grid):
    x = signal(grid)
    axes = range(1, len(grid) + 1)
    full = np.fft.rfftn(x, axes=axes)
    assert oracle.gap(np.abs(spectral.analysis(x) - full), np.zeros(full.shape)) <= 1e-12
    for modes in boxes(grid):
        expected = full
        for n, (g, limit) in enumerate(zip(grid[:-1], modes[:-1], strict=True), start=1):
            expected = np.take(expected, residues(g, limit), axis=n)
        expected = np.take(expected, range(modes[-1] + 1), axis=len(grid))
        actual = spectral.analysis(x, grid, modes)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= 1e-12


@pytest.mark.usefixtures("x64")
def test_analysis_lays_a_short_signal_on_a_longer_circle():
    x = signal((5, 6))
    padded = np.pad(x, [(0, 0), (0, 2), (0, 3), (0, 0)])
    actual = spectral.analysis(x, (7, 9), (3, 2))
    expected = np.fft.rfftn(padded, axes=(1, 2))[:, :, :3]
    assert np.abs(actual - expected).max() <= 1e-12


@functools.partial(jax.jit, static_argnums=(1, 2))
def there_and_back(x, grid, modes):
    return spectral.synthesis(spectral.analysis(x, grid, modes), grid)


@functools.partial(jax.jit, static_argnums=(1, 2))
def dropped_and_filled(spectrum, grid, modes):
    box = spectral.keep_box(spectrum, grid, modes)
    return box, spectral.fill_box(box, grid)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("grid", GRIDS)
def test_synthesis_of_an_analysis_is_the_projection(grid):
    x = signal(grid)
    for modes in boxes(grid):
        geometry = [
            oracle.Axis(g, 1, 1, 1, 1, 0, 0, g, g, u) for g, u in zip(grid, modes, strict=True)
        ]
        y = there_and_back(x, grid, modes)
        assert y.dtype == jnp.float64
        assert oracle.gap(y, oracle.lay_out(x, geometry)) <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("grid", GRIDS)
def test_synthesis_of_any_half_spectrum_is_the_real_part_of_the_weighted_sum(grid):
    # Half spectra that belong to no real signal: where libraries of FFTs begin to differ.
    half = (*grid[:-1], grid[-1] // 2 + 1)
    spectrum = signal(half) + 1j * signal((*half, 1))[..., 0, :]
    weights = [1 if u == 0 or 2 * u == grid[-1] else 2 for u in range(half[-1])]
    y = np.asarray(spectrum * np.array(weights)[:, None])
    for n, (g, kept) in enumerate(zip(grid, half, strict=True), start=1):
        phases = np.exp(2j * np.pi * np.outer(np.arange(g), np.arange(kept)) / g) / g
        y = np.moveaxis(np.tensordot(phases, y, axes=(1, n)), 0, n)
    assert oracle.gap(spectral.irfftn(spectrum, grid), y.real) <= 1e-12


@pytest.mark.parametrize("grid", GRIDS)
def test_fill_box_undoes_keep_box(grid):
    spectrum = np.fft.rfftn(signal(grid), axes=range(1, len(grid) + 1)).astype(np.complex64)
    for modes in boxes(grid):
        box, full = dropped_and_filled(spectrum, grid, modes)
        kept = np.zeros(spectrum.shape[1:-1], bool)
        rows = [residues(g, u) for g, u in zip(grid[:-1], modes[:-1], strict=True)]
        kept[np.ix_(*rows, range(modes[-1] + 1))] = True
        expected = np.where(kept[None, ..., None], spectrum, 0)
        assert np.array_equal(full, expected)
        assert box.size == kept.sum() * 4


@pytest.mark.parametrize(("grid", "modes"), [((8, 8), (2, 3)), ((5, 6), (2, 3)), ((6, 5), (3, 1))])
def test_corners(grid, modes):
    spectrum = np.fft.rfft2(signal(grid), axes=(1, 2)).astype(np.complex64)
    top, bottom = spectral.corners(spectrum, grid, modes)
    assert np.array_equal(top, spectrum[:, : modes[0] + 1, : modes[1] + 1])
    negative = min(2 * modes[0] + 1, grid[0]) - modes[0] - 1
    assert np.array_equal(bottom, spectrum[:, grid[0] - negative :, : modes[1] + 1])
    full = spectral.from_corners(top, bottom, grid)
    assert np.array_equal(spectral.keep_box(full, grid, modes), np.concatenate([top, bottom], 1))
    assert np.count_nonzero(full) == top.size + bottom.size


@pytest.mark.parametrize("shape", [(4,), (5,), (1,), (4, 6), (5, 7), (4, 5), (3, 4, 5)])
def test_shift_dc(shape):
    x = np.random.default_rng(shape).normal(size=(2, *shape, 3)).astype(np.float32)
    axes = tuple(range(1, len(shape) + 1))
    shifted = spectral.shift_dc(x, axes)
    assert np.array_equal(shifted, np.fft.fftshift(x, axes))
    assert np.array_equal(spectral.unshift_dc(shifted, axes), x)
    assert np.array_equal(spectral.unshift_dc(x, axes), np.fft.ifftshift(x, axes))
    assert np.array_equal(spectral.shift_dc(x, [-2]), np.fft.fftshift(x, -2))


def test_shift_dc_swaps_quadrants_by_slices():
    x = np.arange(16).reshape(4, 4)
    shifted = spectral.shift_dc(x, (0, 1))
    first, second, third, fourth = x[:2, 2:], x[:2, :2], x[2:, :2], x[2:, 2:]
    assert np.array_equal(shifted, np.block([[fourth, third], [first, second]]))
    lowered = jax.jit(lambda x: spectral.shift_dc(x, (0, 1))).lower(x).as_text()
    assert {"stablehlo.slice", "stablehlo.concatenate"} <= set(lowered.split())
    assert "gather" not in lowered


@pytest.mark.parametrize(("grid", "modes"), [((8, 8), (2, 3)), ((9, 7), (3, 2))])
def test_a_shifted_band_is_contiguous(grid, modes):
    spectrum = np.fft.rfft2(signal(grid), axes=(1, 2)).astype(np.complex64)
    shifted = spectral.shift_dc(spectrum, [1])
    dc = grid[0] // 2
    band = shifted[:, dc - modes[0] : dc + modes[0] + 1, : modes[1] + 1]
    expected = spectral.shift_dc(spectral.keep_box(spectrum, grid, modes), [1])
    assert np.array_equal(band, expected)


def test_errors():
    x = signal((5, 6)).astype(np.float32)
    spectrum = spectral.analysis(x)
    with pytest.raises(ValueError, match=r"grid must have one entry .* 2 axes, got \(5,\)"):
        spectral.analysis(x, (5,))
    with pytest.raises(ValueError, match=r"grid must be at least .*\(5, 6\), got \(4, 6\)"):
        spectral.analysis(x, (4, 6))
    with pytest.raises(ValueError, match=r"Modes\(1\) has 1 limits, but there are 2 spatial axes"):
        spectral.keep_box(spectrum, (5, 6), (1,))
    with pytest.raises(ValueError, match=r"grid must have one entry .* 2 axes, got \(5, 6, 7\)"):
        spectral.fill_box(spectrum, (5, 6, 7))
    with pytest.raises(ValueError, match=r"two spatial axes, got a grid of \(5,\)"):
        spectral.corners(spectrum, (5,), (2,))
