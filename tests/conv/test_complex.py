"""Complex numbers: values and gradients against complex sums in NumPy, and layers of them."""

from __future__ import annotations

import itertools
import math

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import METHODS, band_of, chosen, convolution
from choices import thinned
from configs import random_config
from flax import nnx
from jax.test_util import check_grads

import bandjax
from bandjax import Compression, Energy, Modes


def projected(x, axes):
    """``P x`` on the circles, by exponentials of both signs; ``(N, *sizes, C)``."""
    for n, axis in enumerate(axes, start=1):
        residues = sorted({u % axis.grid for u in range(-axis.modes, axis.modes + 1)})
        turns = np.outer(residues, np.arange(axis.grid)) % axis.grid
        waves = np.exp(2j * math.pi * turns / axis.grid)  # (kept, grid)
        places = [axis.input_dilation * j for j in range(axis.size)]
        whole = waves.T @ waves.conj()[:, places] / axis.grid
        x = np.moveaxis(np.tensordot(whole, x, axes=(1, n)), 0, n)
    return x


def expected(x, kernel, axes, groups):
    """The sums over taps, channel by channel; nothing is conjugated."""
    rank = len(axes)
    batch = x.shape[: x.ndim - rank - 1]
    circle = projected(x.reshape(-1, *x.shape[len(batch) :]), axes)
    width, features = kernel.shape[-2:]
    y = np.zeros((circle.shape[0], *(a.out for a in axes), features), complex)
    for taps in itertools.product(*(range(a.taps) for a in axes)):
        read = circle
        for n, (axis, t) in enumerate(zip(axes, taps, strict=True), start=1):
            read = np.take(read, [axis.position(i, t) for i in range(axis.out)], axis=n)
        for o in range(features):
            group = o // (features // groups)
            for c in range(width):
                y[..., o] += read[..., group * width + c] * kernel[taps][c, o]
    return y.reshape(*batch, *y.shape[1:])


def gap(actual, wanted):
    """Of both parts."""
    actual = np.asarray(actual)
    assert np.iscomplexobj(actual)
    assert actual.shape == wanted.shape
    if wanted.size == 0:
        return 0.0
    return np.abs(actual - wanted).max() / max(1.0, np.abs(wanted).max())


def arrays(config):
    rng = np.random.default_rng((*config.seed, 7))
    shapes = config.x_shape, config.kernel_shape
    return [rng.normal(size=shape) + 1j * rng.normal(size=shape) for shape in shapes]


def test_nothing_is_conjugated_in_lax_either():
    x, kernel = jnp.asarray([1j, 2.0]).reshape(1, 2, 1), jnp.asarray([3j]).reshape(1, 1, 1)
    y = jax.lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert jnp.allclose(y.ravel(), jnp.asarray([-3.0, 6j]))


@pytest.mark.usefixtures("x64")
@pytest.mark.no_cover
@pytest.mark.parametrize("index", thinned(range(300), 5))
def test_random_configurations(index):
    config = random_config(31, index, banded=index % 4 > 0)
    method = ("auto", "fft", "dft", "direct")[index % 4]
    x, kernel = arrays(config)
    call = jax.jit(convolution(config, band_of(config), method))
    y, pull_back = jax.vjp(call, jnp.asarray(x), jnp.asarray(kernel))
    axes = config.geometry
    wanted = expected(x, kernel, axes, config.groups)
    assert y.dtype == jnp.complex128
    assert gap(y, wanted) < 1e-11

    # The transposes of the two maps, without a conjugate: JAX's convention.
    rng = np.random.default_rng(index)
    ct = rng.normal(size=y.shape) + 1j * rng.normal(size=y.shape)
    of_x, of_kernel = (np.asarray(a) for a in pull_back(jnp.asarray(ct)))
    along_x, along_kernel = (a * np.exp(1j * rng.normal(size=a.shape)) for a in (x, kernel))
    for gradient, direction, image in (
        (of_x, along_x, expected(along_x, kernel, axes, config.groups)),
        (of_kernel, along_kernel, expected(x, along_kernel, axes, config.groups)),
    ):
        product, other = np.sum(ct * image), np.sum(gradient * direction)
        assert abs(product - other) < 1e-10 * max(1.0, np.sum(np.abs(ct * image)))


def small(shape, seed=0, dtype=jnp.complex64):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), dtype)


def by_parts(x, kernel, band, **options):
    """Four real convolutions."""
    compiled = jax.jit(lambda a, b: bandjax.band_conv(a, b, band, **options))

    def real(a, b):
        return np.asarray(compiled(a, b), np.float64)

    xr, xi, wr, wi = x.real, x.imag, kernel.real, kernel.imag
    return real(xr, wr) - real(xi, wi) + 1j * (real(xr, wi) + real(xi, wr))


@pytest.mark.thin(4)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [1, 2])
def test_single_precision_by_every_method(method, groups):
    x, kernel = small((2, 9, 8, 4)), small((3, 2, 4 // groups, 6), 1)
    options = {"feature_group_count": groups, "strides": 2, **chosen(method)}
    y = jax.jit(lambda x, w: bandjax.band_conv(x, w, Compression(0.5), **options))(x, kernel)
    assert y.dtype == jnp.complex64
    assert gap(y, by_parts(x, kernel, Compression(0.5), **options)) < 1e-5


def test_one_wave_of_either_sign_is_kept_or_dropped():
    """On a periodic axis: ``u`` and ``-u`` alike, and neither turns into the other."""
    n = np.arange(12)
    kernel = jnp.ones((1, 1, 1), jnp.complex64)
    for u in (-5, -3, -2, 0, 2, 3, 5, 6):
        wave = jnp.asarray(np.exp(2j * np.pi * u * n / 12)[:, None], jnp.complex64)
        y = bandjax.band_conv(wave, kernel, Modes(3), padding="CIRCULAR")
        assert gap(y, np.asarray(wave) * (abs(u) <= 3)) < 1e-5


@pytest.mark.usefixtures("x64")
def test_derivatives_of_second_order():
    x, kernel = (small(s, dtype=jnp.complex128) for s in ((1, 5, 2), (3, 2, 2)))

    @jax.jit
    def f(x, kernel):
        return bandjax.band_conv(x, kernel, Modes(1))

    check_grads(f, (x, kernel), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_narrow_residuals(dtype):
    x, kernel = small((2, 16, 3)), small((3, 3, 4), 1)
    exact, narrow = (
        bandjax.band_conv(x, kernel, Compression(0.5), residual_dtype=d) for d in (None, dtype)
    )
    assert 1e-4 < gap(narrow, np.asarray(exact)) < 0.05


def test_a_band_of_energy_counts_both_parts():
    x, kernel = small((2, 17, 1)), small((3, 1, 2), 1)
    for parts in (x, jax.lax.complex(x.real, 0 * x.real), jax.lax.complex(0 * x.imag, x.imag)):
        _, modes = bandjax.band_conv(
            parts, kernel, Energy(0.6), padding="CIRCULAR", return_modes=True
        )
        spectrum = np.abs(np.fft.fft(np.asarray(parts), axis=1)) ** 2
        by_frequency = spectrum.sum((0, 2))
        shares = [
            by_frequency[[u % 17 for u in range(-m, m + 1)]].sum() / by_frequency.sum()
            for m in range(9)
        ]
        assert int(modes[0]) == next(m for m, share in enumerate(shares) if share >= 0.6)


def test_under_vmap_and_recomputed_from_spectra():
    x, kernel = small((3, 2, 9, 2)), small((3, 2, 2), 1)

    def loss(kernel, x):
        return jnp.abs(bandjax.band_conv(x, kernel, Compression(0.5))).sum()

    gradient = jax.jit(jax.grad(loss))
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(kernel, x)
    one = jnp.stack([gradient(kernel, a) for a in x])
    assert gap(each, np.asarray(one)) < 1e-4
    recomputed = jax.jit(jax.grad(bandjax.checkpoint(loss)))(kernel, x[0])
    assert gap(recomputed, np.asarray(one[0])) < 1e-4


@pytest.mark.parametrize("padding", ["CIRCULAR", pytest.param("SAME", marks=pytest.mark.full)])
def test_layers_of_complex_parameters(padding):
    options = {"param_dtype": jnp.complex64, "padding": padding}
    x = small((2, 10, 8, 3))
    dense = nnx.Conv(3, 4, (3, 3), **options, rngs=nnx.Rngs(0))
    layer = bandjax.nnx.BandConv(3, 4, (3, 3), **options, rngs=nnx.Rngs(0))
    assert layer.kernel.dtype == jnp.complex64
    assert gap(layer(x), np.asarray(dense(x))) < 1e-5
    bandjax.nnx.band_limit(dense, Compression(0.5))
    layer.band = Compression(0.5)
    linen = bandjax.linen.BandConv(4, (3, 3), band=Compression(0.5), **options)
    variables = {"params": {"kernel": layer.kernel[...], "bias": layer.bias[...]}}
    y = np.asarray(layer(x))
    assert gap(dense(x), y) < 1e-5
    assert gap(linen.apply(variables, x), y) < 1e-5
    assert jax.tree.leaves(linen.init(jax.random.key(0), x))[1].dtype == jnp.complex64
    (record,) = bandjax.summary(layer, jax.ShapeDtypeStruct(x.shape, x.dtype)).layers
    (real,) = bandjax.summary(
        bandjax.nnx.BandConv(3, 4, (3, 3), padding=padding, band=layer.band, rngs=nnx.Rngs(0)),
        x.shape,
    ).layers
    assert record.geometry == real.geometry
    assert record.dense_multiply_adds == 4 * real.dense_multiply_adds
    assert record.kept_bytes == 2 * real.kept_bytes
    assert record.dense_bytes == 2 * real.dense_bytes


def test_the_hook_sums_in_the_wider_type():
    hook = jax.jit(
        bandjax.conv_general_dilated(Compression(0.5)),
        static_argnums=(2, 3),
        static_argnames="preferred_element_type",
    )
    x, kernel = small((2, 3, 9)), small((4, 3, 3), 1)
    y = hook(x, kernel, (1,), "SAME")
    wanted = by_parts(x.swapaxes(1, 2), kernel.transpose(2, 1, 0), Compression(0.5))
    assert gap(y, wanted.swapaxes(1, 2)) < 1e-5
    with jax.enable_x64(True):
        wide = hook(x, kernel, (1,), "SAME", preferred_element_type=jnp.complex128)
        assert wide.dtype == jnp.complex128
        assert gap(wide, np.asarray(y)) < 1e-5


def test_spectra_of_filters_are_of_real_ones():
    for error, make in (
        (
            ValueError,
            lambda: bandjax.nnx.BandConv(
                2,
                2,
                (3,),
                param_domain="spectral",
                spatial_shape=(8,),
                param_dtype=jnp.complex64,
                rngs=nnx.Rngs(0),
            ),
        ),
        (
            TypeError,
            lambda: bandjax.spectral_conv(small((1, 8, 2)), small((2, 5, 2, 2)), (3,)),
        ),
    ):
        with pytest.raises(error, match=r"spectra of real filters|of a floating-point type"):
            make()


@pytest.mark.full
def test_a_model_of_complex_layers_is_calibrated():
    model = bandjax.nnx.BandConv(3, 4, (3, 3), param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
    x = small((2, 10, 8, 3))
    plan = bandjax.calibrate(model, [x], Energy(0.5))
    _, modes = bandjax.band_conv(x, model.kernel[...], Energy(0.5), return_modes=True)
    assert plan.layers[""].modes == tuple(int(m) for m in modes)


def test_flax_without_a_band_is_flax():
    layer = flax.linen.Conv(2, (3,), param_dtype=jnp.complex64)
    x = small((1, 7, 2))
    variables = layer.init(jax.random.key(0), x)
    with bandjax.linen.band_limited(None):
        exact = layer.apply(variables, x)
    assert gap(exact, np.asarray(layer.apply(variables, x))) < 1e-5
