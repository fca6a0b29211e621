"""Filters that live in the frequency domain."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import thinned
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import bandjax
from bandjax.spectral import kernel_to_spectrum, spectrum_to_kernel

pytestmark = pytest.mark.thin(6)

HALF = bandjax.Compression(0.5)
# (What has no native kernels has "dft" once.)
DFT = [{"method": "dft", "implementation": how} for how in ("xla", None)]
METHODS = [{"method": "fft"}, *DFT, {"method": "auto"}]


def frequencies(g, limit, half):
    u = list(range(limit + 1))
    return u if half else u + [v for v in range(-limit, 0) if (v - limit) % g]


def by_sums(x, spectrum, grid, strides, groups=1):
    """The formula written out: X, the product, and the real part of the weighted sum."""
    rank = len(grid)
    n, *sizes, channels = x.shape
    outs = [-(-h // s) for h, s in zip(sizes, strides, strict=True)]
    box = spectrum.shape[1:-2]
    u = [
        frequencies(g, b - 1 if i == rank - 1 else b // 2, i == rank - 1)
        for i, (g, b) in enumerate(zip(grid, box, strict=True))
    ]
    w = spectrum[0] + 1j * spectrum[1]
    w = w.reshape(*box, channels // groups, groups, -1)
    y = np.zeros((n, *outs, groups, w.shape[-1]), complex)
    for k in np.ndindex(*box):
        f = [axis[i] for axis, i in zip(u, k, strict=True)]
        wave, back = np.ones(()), np.ones(())
        for v, g, h, s, o in zip(f, grid, sizes, strides, outs, strict=True):
            wave = np.multiply.outer(wave, np.exp(-2j * np.pi * v * np.arange(h) / g))
            back = np.multiply.outer(back, np.exp(2j * np.pi * v * s * np.arange(o) / g) / g)
        axes = tuple(range(rank))
        X = np.tensordot(wave, x, (axes, tuple(range(1, rank + 1))))
        X = X.reshape(n, groups, channels // groups)
        Y = np.einsum("ngc,cgo->ngo", X, np.conj(w[k]))
        count = 1 if f[-1] == 0 or 2 * f[-1] == grid[-1] else 2
        y += count * back[None, ..., None, None] * Y.reshape(n, *(1,) * rank, groups, -1)
    return y.real.reshape(n, *outs, -1)


CASES = [
    ((2, 7, 4), (3,), (3,), 2, {"feature_group_count": 2, "strides": 2}),
    ((2, 6, 5, 3), (3, 3), (2, 3), 1, {}),
    ((2, 6, 4, 2), (3, 3), (3, 2), 1, {"padding": "CIRCULAR"}),
    ((1, 3, 4, 4, 2), (3, 2, 3), (1, 2, 1), 1, {}),
]


@pytest.mark.thin(4)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "taps", "modes", "groups", "arguments"),
    thinned([pytest.param(*case) for case in CASES], 2),
)
def test_it_is_the_sum(shape, taps, modes, groups, arguments):
    rng = np.random.default_rng(0)
    strides = (arguments.get("strides", 1),) * len(taps)
    kernel_shape = (*taps, shape[-1] // groups, 4)
    geometry = bandjax.conv_geometry(shape, kernel_shape, bandjax.Modes(*modes), **arguments)
    x, spectrum = rng.normal(size=shape), rng.normal(size=(2, *geometry.box, *kernel_shape[-2:]))
    expected = by_sums(x, spectrum, geometry.grid, strides, groups)

    @jax.jit
    def run(x, spectrum):
        return [
            bandjax.spectral_conv(x, spectrum, taps, **method, **arguments) for method in METHODS
        ]

    for y in run(x, spectrum):
        assert y.shape == expected.shape
        assert np.abs(y - expected).max() <= 1e-12 * max(1, np.abs(expected).max())
    for dft in DFT:
        f = jax.jit(functools.partial(bandjax.spectral_conv, kernel_size=taps, **dft, **arguments))
        check_grads(f, (x, spectrum), order=2, modes=["rev"], atol=1e-6, rtol=1e-6, eps=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("band", [None, HALF], ids=["all", "half"])
@pytest.mark.parametrize(
    ("shape", "kernel_shape", "arguments"),
    [
        ((2, 14, 13, 4), (3, 3, 2, 6), {"strides": 2, "feature_group_count": 2}),
        ((3, 30, 4), (5, 4, 2), {"kernel_dilation": 2, "padding": "CAUSAL"}),
        ((2, 8, 8, 2), (3, 3, 2, 3), {"padding": "CIRCULAR"}),
        ((2, 5, 6, 7, 2), (2, 3, 3, 2, 2), {"padding": "VALID", "input_dilation": 2}),
    ],
)
def test_the_spectrum_of_a_kernel_is_the_kernel(shape, kernel_shape, arguments, band):
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=shape), jnp.asarray(rng.normal(size=kernel_shape))
    geometry = bandjax.conv_geometry(shape, kernel_shape, band, **arguments)
    where = {
        "centre": [axis.padding[0] for axis in geometry.axes],
        "dilation": arguments.get("kernel_dilation", 1),
    }
    spectrum = kernel_to_spectrum(kernel, geometry.grid, geometry.modes, **where)
    taps = kernel_shape[:-2]
    for dft in DFT:
        y = bandjax.spectral_conv(x, spectrum, taps, **dft, **arguments)
        assert np.abs(y - bandjax.band_conv(x, kernel, band, **arguments)).max() <= 1e-12
    back = spectrum_to_kernel(spectrum, taps, geometry.grid, **where)
    assert np.abs(back - kernel).max() <= 1e-12


@pytest.mark.usefixtures("x64")
def test_the_nearest_kernel():
    """With every frequency kept, what is cut off by fewer taps is what lies outside of them."""
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(5, 5, 2, 3)))
    spectrum = kernel_to_spectrum(kernel, (12, 11), (6, 5))
    cut = jax.jit(lambda s: spectrum_to_kernel(s, (3, 3), (12, 11)))(spectrum)
    assert np.abs(cut - kernel[1:4, 1:4]).max() <= 1e-12
    # Three frequencies do not tell five taps apart: of the kernels that fit, the least (by NumPy).
    spectrum = kernel_to_spectrum(kernel[0], (12,), (1,))
    least = spectrum_to_kernel(spectrum, (5,), (12,))
    waves = np.exp(-2j * np.pi * np.outer([-1, 0, 1], np.arange(-2, 3)) / 12)
    expected = (np.linalg.pinv(waves) @ waves).real @ np.asarray(kernel[0]).reshape(5, -1)
    assert np.abs(least.reshape(5, -1) - expected).max() <= 1e-12
    assert np.abs(kernel_to_spectrum(least, (12,), (1,)) - spectrum).max() <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [(12, 24), (24, 9), (11, 12), (12, 12)], ids=str)
def test_another_resolution_is_another_sampling(sizes):
    """A smooth signal, sampled finer or coarser: the result is the same function."""
    rng = np.random.default_rng(3)
    amplitudes = rng.normal(size=(4, 4, 2)) + 1j * rng.normal(size=(4, 4, 2))

    def sampled(n):
        t = np.arange(n) / n
        waves = np.exp(2j * np.pi * np.outer(np.arange(4), t))
        return np.einsum("abc,ax,by->xyc", amplitudes, waves, waves).real[None]

    spectrum = rng.normal(size=(2, 7, 4, 2, 3))
    call = functools.partial(
        bandjax.spectral_conv,
        kernel_spectrum=jnp.asarray(spectrum),
        kernel_size=(3, 3),
        kernel_grid=(12, 12),
        padding="CIRCULAR",
    )
    coarse, fine = (np.asarray(call(sampled(n)))[0] for n in sizes)
    # The first point, and one that both have.
    assert np.abs(coarse[0, 0] - fine[0, 0]).max() <= 1e-12 * np.abs(fine).max()
    step = np.gcd(*sizes)
    a, b = sizes[0] // step, sizes[1] // step
    assert np.abs(coarse[::a, ::a] - fine[::b, ::b]).max() <= 1e-12 * np.abs(fine).max()


def test_frequencies_that_another_resolution_has_not():
    spectrum = jnp.asarray(np.random.default_rng(4).normal(size=(2, 12, 7, 1, 1)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 7, 20, 1)), jnp.float32)
    call = functools.partial(
        bandjax.spectral_conv, x, kernel_size=(3, 3), padding="CIRCULAR", method="dft"
    )
    y = call(spectrum, kernel_grid=(12, 12))
    # Seven points have three frequencies of either sign; Nyquist's of twelve has no partner.
    rows = np.r_[0:4, 9:12]
    assert np.abs(y - call(spectrum[:, rows, :6], kernel_grid=(7, 20))).max() <= 1e-5


def test_what_it_keeps_and_how_it_rounds():
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.normal(size=(2, 16, 16, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 5)), jnp.float32)
    geometry = bandjax.conv_geometry(x.shape, kernel.shape, HALF)
    spectrum = kernel_to_spectrum(kernel, geometry.grid, geometry.modes)

    def loss(spectrum, x, dtype=None):
        y = bandjax.spectral_conv(x, spectrum, (3, 3), residual_dtype=dtype)
        return jnp.sum(jnp.sin(y))

    def gradients(f):
        return jax.jit(jax.grad(f, (0, 1)))(spectrum, x)

    plain = gradients(loss)
    remat = jax.checkpoint(loss, policy=bandjax.save_spectra)
    bytes_kept = 2 * geometry.kept * 2 * 4 * 4
    saved = bandjax.memory.saved_bytes(remat, spectrum, x, argnums=(0, 1))
    assert saved.total == bytes_kept
    for value, wanted in zip(gradients(remat), plain, strict=True):
        assert np.abs(value - wanted).max() <= 1e-5 * np.abs(wanted).max()
    for dtype, share in ((jnp.bfloat16, 2), (jnp.int8, 4)):
        rounded = functools.partial(loss, dtype=dtype)
        remat = jax.checkpoint(rounded, policy=bandjax.save_spectra)
        saved = bandjax.memory.saved_bytes(remat, spectrum, x, argnums=(0, 1))
        assert bytes_kept / share <= saved.total <= 1.3 * bytes_kept / share
        for value, wanted in zip(gradients(rounded), plain, strict=True):
            assert np.linalg.norm(value - wanted) <= 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("how", [{"method": "fft"}, DFT[1]], ids=["fft", "dft"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_sharded_batch_and_vmap(kind, how):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType[kind],))
    rng = np.random.default_rng(7)
    x = rng.normal(size=(8, 9, 8, 3)).astype(np.float32)
    spectrum = rng.normal(size=(2, 5, 3, 3, 4)).astype(np.float32)

    def run(x, spectrum):
        def loss(x, spectrum):
            return jnp.mean(jnp.sin(bandjax.spectral_conv(x, spectrum, (3, 3), **how)))

        return jax.value_and_grad(loss, (0, 1))(x, spectrum)

    expected = jax.jit(run)(x, spectrum)
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, NamedSharding(mesh, P("batch")))
        actual = jax.jit(run)(spread, jax.device_put(spectrum, NamedSharding(mesh, P())))
    for value, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(value - wanted).max() <= 1e-6
    each = jax.vmap(lambda x: bandjax.spectral_conv(x, spectrum, (3, 3)))(x)
    assert np.abs(each - bandjax.spectral_conv(x, spectrum, (3, 3))).max() <= 1e-4
    assert bandjax.spectral_conv(x[:0], spectrum, (3, 3)).shape == (0, 9, 8, 4)


X, W = np.ones((1, 8, 8, 2), np.float32), np.ones((2, 5, 3, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("kind", "part", "arguments"),
    [
        (ValueError, "method must be one of auto, dft, fft", {"method": "direct"}),
        (ValueError, "method must be one of", {"method": "best"}),
        (ValueError, "REFLECT", {"padding": "REFLECT"}),
        (ValueError, "'jax' does not go with a spectral", {"implementation": "jax"}),
        (ValueError, "2 axes of frequencies", {"kernel_spectrum": W[:, 0]}),
        (ValueError, "2 axes of frequencies", {"kernel_spectrum": W[:1]}),
        (ValueError, "both signs of each frequency", {"kernel_spectrum": W[:, :4]}),
        (ValueError, "up to 5 on axis 1", {"kernel_spectrum": np.ones((2, 5, 6, 2, 3), "f4")}),
        (ValueError, "kernel_grid must have 2 axes", {"kernel_grid": (9,)}),
        (TypeError, "kernel_spectrum must be an array", {"kernel_spectrum": 3}),
        (
            TypeError,
            "kernel_size must be a sequence of integers",
            {"kernel_size": bandjax.Modes(2, 2)},
        ),
        (TypeError, "same type", {"kernel_spectrum": W.astype(np.float16)}),
    ],
)
def test_wrong_arguments(kind, part, arguments):
    with pytest.raises(kind, match=part):
        bandjax.spectral_conv(**{"x": X, "kernel_spectrum": W, "kernel_size": (3, 3)} | arguments)


def test_wrong_arguments_of_the_conversions():
    kernel = jnp.ones((3, 3, 2, 2))
    with pytest.raises(ValueError, match="grid must have one value for each of the 2"):
        kernel_to_spectrum(kernel, (8,), (3, 3))
    with pytest.raises(ValueError, match="centre must have one value"):
        kernel_to_spectrum(kernel, (8, 8), (3, 3), centre=(1,))
    with pytest.raises(ValueError, match="above 4"):
        kernel_to_spectrum(kernel, (8, 8), (3, 5))
    with pytest.raises(AttributeError, match="no attribute 'kernels'"):
        _ = bandjax.spectral.kernels


def test_a_filter_without_taps_reads_everywhere():
    """One tap would meet the zeros between the samples alone; a spectrum has no taps."""
    x, real, imag = np.random.default_rng(3).normal(size=(3, 8)).astype(np.float32)
    x = x[:5]
    w = np.stack([real, imag])[..., None, None]
    stretched = np.zeros(14)
    stretched[:13:3] = x
    everywhere = np.fft.irfft(np.fft.rfft(stretched) * (real - 1j * imag), 14)
    options = {"strides": (3,), "input_dilation": (3,), "padding": [(1, 1)]}
    y = bandjax.spectral_conv(x[None, :, None], w, (1,), **options)
    np.testing.assert_allclose(y[0, :, 0], everywhere[::3], atol=1e-5)
