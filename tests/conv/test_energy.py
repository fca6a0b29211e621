"""The box that holds a share of the energy: found in the call, and then a band like any other."""

from __future__ import annotations

import functools
import itertools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import HERE, METHODS, chosen
from choices import crossed
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bandjax

pytestmark = pytest.mark.thin(10)

SHAPES = [(9,), (40,), (33,), (8, 8), (12, 7), (5, 16), (3, 4, 5), (6, 6, 6)]


def smooth(rng, shape):
    """Noise whose spectrum falls off, more or less steeply along each axis."""
    x = rng.normal(size=shape)
    for axis in range(1, len(shape) - 1):
        for _ in range(rng.integers(4)):
            x = x + np.roll(x, 1, axis)
    return x + rng.normal()


def smallest_box(x, grid, share, bound):
    """The search by trying: NumPy's whole FFT, every box of the design, the fewest coefficients.

    Returns its limits, and how close the energy of any box comes to the share.
    """
    axes = tuple(range(1, len(grid) + 1))
    energy = (np.abs(np.fft.fftn(x, grid, axes)) ** 2).sum((0, -1))
    total = energy.sum()
    u = [np.abs(np.fft.fftfreq(g, 1 / g)).round() for g in grid]
    found, gap = None, np.inf
    for half in (g // 2 for g in grid):
        for m in range(half + 1):
            limits = [min(m * (g // 2) // half, b) for g, b in zip(grid, bound, strict=True)]
            kept = functools.reduce(
                np.logical_and.outer, [f <= limit for f, limit in zip(u, limits, strict=True)]
            )
            part = energy[kept].sum() / total
            gap = min(gap, abs(part - share))
            if part >= share and (found is None or kept.sum() < found[0]):
                found = kept.sum(), tuple(limits)
    return found[1] if found else tuple(bound), gap


@functools.partial(jax.jit, static_argnums=2)
def boxes(inputs, kernel, band):
    def box(x):
        return bandjax.band_conv(x, kernel, band, method="fft", return_modes=True)[1]

    return jax.lax.map(box, inputs)


@pytest.mark.thin(12)
@pytest.mark.parametrize(
    ("shape", "bound"), crossed(SHAPES, [None, bandjax.Compression(0.5)], strength=1)
)
def test_the_box_is_the_smallest(shape, bound):
    rng = np.random.default_rng((5, *shape))
    for share in (0.6, 0.97):
        band = bandjax.Energy(share, at_most=bound)
        kernel = np.ones((*(3,) * len(shape), 2, 1))
        grid = bandjax.conv_geometry((3, *shape, 2), kernel.shape, band).grid
        limit = bandjax.conv_geometry((3, *shape, 2), kernel.shape, bound).modes
        inputs = [smooth(rng, (3, *shape, 2)) for _ in range(10)]
        wanted = [smallest_box(x, grid, share, limit) for x in inputs]
        for dtype in (np.float64, np.float32):
            with jax.enable_x64(dtype == np.float64):
                arrays = jnp.asarray(np.stack(inputs), dtype)

                actual = np.asarray(boxes(arrays, jnp.asarray(kernel, dtype), band))
            for found, (box, gap) in zip(actual, wanted, strict=True):
                assert tuple(found) == box or (dtype == np.float32 and gap < 1e-5)
        assert bound is not None or share > 0.9 or len({box for box, _ in wanted}) > 1


def test_nothing_is_dropped_but_nothing():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 12, 11, 3)), rng.normal(size=(3, 3, 3, 2))

    @jax.jit
    def run(x, kernel):
        every = functools.partial(bandjax.band_conv, band=bandjax.Energy(1.0), return_modes=True)
        found = [every(x, kernel, **chosen(method)) for method in HERE]
        return bandjax.band_conv(x, kernel), found

    with jax.enable_x64(True):
        exact, found = run(x, kernel)
        for y, modes in found:
            assert np.abs(y - exact).max() <= 1e-12
            assert tuple(modes) == (6, 6)
    # A signal of one frequency, on a circle of its own, has no other to keep.
    tone = np.cos(2 * np.pi * 2 * np.arange(16) / 16 + 0.3)[None, :, None].astype(np.float32)
    band = bandjax.Energy(1 - 1e-6)
    found = bandjax.band_conv(
        tone, np.ones((1, 1, 1), np.float32), band, padding="CIRCULAR", return_modes=True
    )
    assert tuple(found[1]) == (2,)
    assert np.abs(found[0] - tone).max() <= 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_keeps_all(bad):
    x = np.ones((1, 8, 1), np.float32)
    x[0, 3] = bad
    find = functools.partial(bandjax.band_conv, band=bandjax.Energy(0.5), return_modes=True)
    y, modes = jax.jit(find)(x, np.ones((3, 1, 1), np.float32))
    assert tuple(modes) == (4,)
    assert np.isnan(y).all()


def test_zeros_keep_the_mean_alone():
    x, kernel = np.zeros((2, 9, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
    find = jax.jit(
        functools.partial(bandjax.band_conv, band=bandjax.Energy(0.9), return_modes=True)
    )
    y, modes = find(x, kernel)
    assert tuple(modes) == (0, 0)
    assert not y.any()
    y, modes = find(x[:0], kernel)
    assert y.shape == (0, 9, 8, 4)
    assert modes.shape == (2,)


HALF = bandjax.Compression(0.5)
CASES = itertools.starmap(
    pytest.param,
    [
        (None, (2, 14, 13, 4), (3, 3, 4, 6), {"strides": 2}),
        (HALF, (2, 14, 13, 4), (3, 3, 4, 6), {}),
        (HALF, (3, 30, 4), (5, 2, 4), {"feature_group_count": 2, "kernel_dilation": 2}),
        (None, (2, 8, 8, 2), (3, 3, 2, 3), {"padding": "CIRCULAR"}),
        (None, (2, 7, 6, 2), (3, 3, 2, 3), {"padding": "REFLECT"}),
        (HALF, (2, 5, 6, 7, 2), (3, 3, 3, 2, 2), {"input_dilation": (1, 2, 1), "padding": 1}),
    ],
)


@functools.cache
def on_the_box_that_is_found(bound, x_shape, kernel_shape, arguments):
    """The arrays of a case, the box, and values and derivatives with that box as a band."""
    arguments = dict(arguments)
    rng = np.random.default_rng(7)
    x, kernel = smooth(rng, x_shape), rng.normal(size=kernel_shape)
    tangent = rng.normal(size=x_shape)
    band = bandjax.Energy(0.6, at_most=bound)

    @jax.jit
    def find(x, kernel):
        options = {"return_modes": True, "method": "fft"} | arguments
        return bandjax.band_conv(x, kernel, band, **options)[1]

    modes = tuple(map(int, find(x, kernel)))
    assert 0 < sum(modes) < sum(bandjax.conv_geometry(x_shape, kernel_shape, **arguments).modes)

    def values(band, method):
        def f(x, kernel):
            return bandjax.band_conv(x, kernel, band, **chosen(method), **arguments)

        def loss(x, kernel):
            return jnp.sum(jnp.sin(f(x, kernel)))

        def slope(x, kernel):
            return jnp.sum(jax.grad(loss)(x, kernel) * tangent)

        orders = f, jax.grad(loss, (0, 1)), jax.grad(slope, (0, 1))
        return jax.jit(lambda x, kernel: [order(x, kernel) for order in orders])(x, kernel)

    return functools.partial(values, band), values(bandjax.Modes(*modes), "fft")


@pytest.mark.thin(12)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("bound", "x_shape", "kernel_shape", "arguments", "method"),
    crossed(CASES, [method for method in METHODS if method != "auto"], strength=1),
)
def test_it_is_the_convolution_on_the_box_that_it_found(
    x_shape, kernel_shape, arguments, bound, method
):
    """Values, and derivatives of first and second order, for which the box is a constant."""
    case = bound, x_shape, kernel_shape, tuple(arguments.items())
    by_method, expected = on_the_box_that_is_found(*case)
    leaves = zip(jax.tree.leaves(by_method(method)), jax.tree.leaves(expected), strict=True)
    for value, wanted in leaves:
        assert np.abs(value - wanted).max() <= 1e-11 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize(
    ("method", "residual_dtype"), crossed(METHODS, [None, jnp.bfloat16, jnp.int8], strength=1)
)
def test_what_it_keeps(method, residual_dtype):
    """The spectrum of the bound, cut, with the level of the box: never the input."""
    rng = np.random.default_rng(8)
    x = smooth(rng, (2, 16, 16, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 4)).astype(np.float32)
    band = bandjax.Energy(0.7, at_most=bandjax.Compression(0.6))

    def loss(kernel, x, band=band):
        options = chosen(method) | {"residual_dtype": residual_dtype}
        y, modes = bandjax.band_conv(x, kernel, band, **options, return_modes=True)
        return jnp.sum(jnp.sin(y)), modes

    # Recomputation starts from what was kept, the level included.
    remat = jax.checkpoint(loss, policy=bandjax.save_spectra)
    static = functools.partial(loss, band=band.at_most)
    for dynamic, bound in (
        (loss, static),
        (remat, jax.checkpoint(static, policy=bandjax.save_spectra)),
    ):
        kept, of_bound = (
            bandjax.memory.saved_bytes(f, kernel, x, argnums=(0, 1), has_aux=True).total
            for f in (dynamic, bound)
        )
        assert kept == of_bound + 4
    gradient = functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    plain, modes = jax.jit(gradient(loss))(kernel, x)
    again, _ = jax.jit(gradient(remat))(kernel, x)
    for value, wanted in zip(again, plain, strict=True):
        assert np.abs(value - wanted).max() <= 1e-5 * np.abs(wanted).max()
    on_box = jax.jit(gradient(functools.partial(loss, band=bandjax.Modes(*map(int, modes)))))
    tolerance = {None: 1e-5, jnp.bfloat16: 2e-2, jnp.int8: 3e-2}[residual_dtype]
    for value, wanted in zip(plain, on_box(kernel, x)[0], strict=True):
        assert np.abs(value - wanted).max() <= tolerance * np.abs(wanted).max()


def test_an_input_kept_in_bfloat16():
    """Without a bound the input is kept; the forward pass goes on from its rounded values."""
    rng = np.random.default_rng(9)
    x = smooth(rng, (2, 8, 8, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 4)).astype(np.float32)

    def f(x, dtype):
        return bandjax.band_conv(
            x, kernel, bandjax.Energy(0.9), residual_dtype=dtype, return_modes=True
        )

    rounded = x.astype(jnp.bfloat16).astype(np.float32)
    both = jax.jit(lambda x, rounded: (f(x, jnp.bfloat16), f(rounded, None)))
    (y, modes), (wanted, same) = both(x, rounded)
    assert tuple(modes) == tuple(same)
    assert np.abs(y - wanted).max() <= 1e-5


@pytest.mark.parametrize("method", ["fft", "dft"])
def test_a_filter_spectrum_that_is_kept(method):
    rng = np.random.default_rng(10)
    x, kernel = smooth(rng, (2, 9, 8, 4)), rng.normal(size=(3, 3, 4, 4))

    def gradient(recompute_filter):
        def loss(x, kernel):
            y = bandjax.band_conv(
                x,
                kernel,
                bandjax.Energy(0.7, at_most=bandjax.Compression(0.5)),
                method=method,
                implementation="xla",
                recompute_filter=recompute_filter,
            )
            return jnp.sum(jnp.sin(y))

        return jax.grad(loss, (0, 1))(x.astype(np.float32), kernel.astype(np.float32))

    both = jax.jit(lambda: (gradient(False), gradient(True)))
    for value, wanted in zip(*both(), strict=True):
        assert np.abs(value - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.full
def test_each_element_of_a_vmap_finds_its_own():
    rng = np.random.default_rng(11)
    x = np.stack([smooth(rng, (2, 12, 11, 3)), rng.normal(size=(2, 12, 11, 3))])
    x, kernel = x.astype(np.float32), rng.normal(size=(3, 3, 3, 2)).astype(np.float32)
    band = bandjax.Energy(0.8)
    for method in HERE:

        def f(x, method=method):
            return bandjax.band_conv(x, kernel, band, **chosen(method), return_modes=True)

        (y, modes), each = jax.jit(lambda x, f=f: (jax.vmap(f)(x), [f(x[0]), f(x[1])]))(x)
        assert tuple(modes[0]) != tuple(modes[1])
        for i, (alone, found) in enumerate(each):
            assert tuple(modes[i]) == tuple(found)
            assert np.abs(y[i] - alone).max() <= 1e-4


@pytest.mark.parametrize(("method", "kind"), crossed(METHODS, ["auto", "explicit"], strength=1))
def test_a_sharded_batch_has_one_box(method, kind):
    types = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(types[kind],))
    rng = np.random.default_rng(12)
    x = np.concatenate([smooth(rng, (4, 10, 9, 3)), rng.normal(size=(4, 10, 9, 3))])
    x, kernel = x.astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)

    def run(x, kernel):
        def loss(x, kernel):
            band = bandjax.Energy(0.85, at_most=bandjax.Compression(0.3))
            y, modes = bandjax.band_conv(x, kernel, band, **chosen(method), return_modes=True)
            return jnp.mean(jnp.sin(y)), modes

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)

    expected = jax.jit(run)(x, kernel)
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, NamedSharding(mesh, P("batch")))
        actual = jax.jit(run)(spread, jax.device_put(kernel, NamedSharding(mesh, P())))
    for value, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(value - wanted).max() <= 1e-6


class Net(nnx.Module):
    def __init__(self, band, rngs):
        self.first = bandjax.BandConv(3, 4, (3, 3), band=band, rngs=rngs)
        self.second = bandjax.BandConv(4, 4, (3, 3), (2, 2), band=band, rngs=rngs)

    def __call__(self, x):
        return self.rest(nnx.relu(self.first(x)))

    @bandjax.nnx.remat
    def rest(self, x):
        return nnx.relu(self.second(x))


def test_layers_of_nnx_tell_their_boxes():
    x = smooth(np.random.default_rng(13), (2, 16, 16, 3)).astype(np.float32)
    band = bandjax.Energy(0.7)
    model = Net(band, nnx.Rngs(0))
    before = jax.tree.structure(nnx.state(model))

    @nnx.jit
    def step(model, x):
        def loss(model, x):
            y, found = nnx.capture(lambda model, x: model(x), nnx.Intermediate)(model, x)
            return jnp.sum(y**2), found

        (_, found), _ = nnx.value_and_grad(loss, has_aux=True)(model, x)
        return found

    found = nnx.to_pure_dict(step(model, x))

    @jax.jit
    def boxes(x, first, second):
        find = functools.partial(bandjax.band_conv, band=band, return_modes=True)
        y, modes = find(x, first)
        return modes, find(nnx.relu(y), second, strides=2)[1]

    layers = {"first": model.first, "second": model.second}
    of_layers = boxes(x, *(layer.kernel[...] for layer in layers.values()))
    for (name, layer), modes in zip(layers.items(), of_layers, strict=True):
        assert tuple(found[name]["modes"][0]) == tuple(modes)
        limits = bandjax.Modes(*map(int, modes))
        geometry = bandjax.conv_geometry(
            (2, 16, 16, layer.kernel.shape[-2]), layer.kernel.shape, limits
        )
        assert np.isclose(found[name]["compression"][0], geometry.compression, atol=1e-6)
    # Outside of nnx.capture nothing is left behind.
    nnx.jit(lambda model, x: model(x))(model, x)
    assert jax.tree.structure(nnx.state(model)) == before
    static = Net(bandjax.Compression(0.5), nnx.Rngs(0))
    capture = nnx.jit(lambda model, x: nnx.capture(model, nnx.Intermediate)(x)[1])
    assert not jax.tree.leaves(capture(static, x))


def test_layers_of_linen_tell_their_boxes():
    x = smooth(np.random.default_rng(14), (2, 16, 16, 3)).astype(np.float32)
    layer = bandjax.linen.BandConv(4, (3, 3), padding="CIRCULAR", band=bandjax.Energy(0.7))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    # The hook in Flax's own layer is the same convolution; it has nowhere to tell the box.
    hook = bandjax.conv_general_dilated(bandjax.Energy(0.7))
    plain = flax.linen.Conv(4, (3, 3), conv_general_dilated=hook)
    same = bandjax.linen.BandConv(4, (3, 3), band=bandjax.Energy(0.7))

    @jax.jit
    def run(variables, x):
        kernel = variables["params"]["kernel"]
        return (
            layer.apply(variables, x, mutable=["intermediates"]),
            bandjax.band_conv(x, kernel, layer.band, padding="CIRCULAR", return_modes=True),
            [each.apply(variables, x) for each in (plain, same)],
        )

    (y, found), (wanted, modes), (hooked, alike) = run(variables, x)
    found = found["intermediates"]
    assert np.abs(y - wanted).max() <= 1e-5
    assert tuple(found["modes"][0]) == tuple(modes)
    kept = (2 * int(modes[0]) + 1) * (int(modes[1]) + 1)
    assert np.isclose(found["compression"][0], 1 - kept / (16 * 9), atol=1e-6)
    assert np.abs(hooked - alike).max() <= 1e-5


def test_candidates_lie_within_one_another():
    for grid in itertools.product((1, 2, 5, 8), (1, 4, 9, 33)):
        boxes = bandjax.Energy(0.5).boxes(grid)
        assert boxes[0] == (0, 0)
        assert boxes[-1] == tuple(g // 2 for g in grid)
        for small, large in itertools.pairwise(boxes):
            assert small != large
            assert all(a <= b for a, b in zip(small, large, strict=True))
    bounded = bandjax.Energy(0.5, at_most=bandjax.Modes(1, 9)).boxes((9, 33))
    assert bounded[-1] == (1, 9)
    assert (1, 8) in bounded
