"""``band_conv`` under JAX's transformations."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, PLAIN, chosen, export_checks
from choices import crossed
from flax import nnx

import bandjax

pytestmark = pytest.mark.thin(6)

BAND = bandjax.Modes(2, 1)


def conv(x, kernel, method="auto", **more):
    return bandjax.band_conv(x, kernel, BAND, strides=(1, 2), **chosen(method) | more)


def normal(seed, *shape, dtype=None):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, dtype)


# -------------------------------------------------------------------------------------------- jit


@pytest.mark.parametrize("method", METHODS)
def test_jit_traces_once(method):
    traces = []

    @jax.jit
    def step(x, kernel):
        traces.append(None)
        return jax.grad(lambda *args: jnp.sum(conv(*args, method) ** 2), (0, 1))(x, kernel)

    for seed in range(3):
        step(normal(seed, 2, 6, 5, 2), normal(seed + 9, 3, 3, 2, 3))
    assert len(traces) == 1


def test_a_new_but_equal_callable_does_not_retrace():
    traces = []

    def step(hook, x, kernel):
        traces.append(None)
        spec = ("NXC", "XIO", "NXC")
        return hook(x, kernel, (1,), "SAME", dimension_numbers=spec)

    step = jax.jit(step, static_argnums=0)
    x, kernel = normal(0, 2, 9, 3), normal(1, 3, 3, 4)
    for _ in range(3):
        step(bandjax.conv_general_dilated(bandjax.Compression(0.5)), x, kernel)
    assert len(traces) == 1
    step(bandjax.conv_general_dilated(bandjax.Compression(0.75)), x, kernel)
    assert len(traces) == 2


def test_callables_compare_by_their_arguments():
    make = bandjax.conv_general_dilated
    first = make(bandjax.Modes(3), method="dft")
    assert first == make(bandjax.Modes(3), method="dft")
    assert hash(first) == hash(make(bandjax.Modes(3), method="dft"))
    others = [
        make(bandjax.Modes(2), method="dft"),
        make(bandjax.Modes(3), method="fft"),
        make(None),
    ]
    assert first not in others
    with pytest.raises(AttributeError):
        first.method = "fft"


def test_a_model_made_anew_with_the_hook_does_not_retrace():
    traces = []

    @nnx.jit
    def step(model, x):
        traces.append(None)
        return model(x)

    x = normal(0, 2, 9, 3)
    for seed in range(3):
        hook = bandjax.conv_general_dilated(bandjax.Compression(0.5))
        step(nnx.Conv(3, 4, (3,), conv_general_dilated=hook, rngs=nnx.Rngs(seed)), x)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("channels", "size", "method"),
    crossed([pytest.param(64, 32), pytest.param(512, 4)], METHODS, strength=1),
)
def test_a_layer_of_resnet18_compiles_fast(channels, size, method):
    # Matrices that XLA folds instead of NumPy take many seconds. CPU time, as other tests may run.
    def step(x, kernel):
        def f(x, kernel):
            return bandjax.band_conv(x, kernel, bandjax.Compression(0.5), **chosen(method))

        y, back = jax.vjp(f, x, kernel)
        return y, *back(y)

    shapes = ((8, size, size, channels), (3, 3, channels, channels))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def seconds():
        start = time.process_time()
        jax.jit(functools.partial(step)).lower(*arguments).compile()  # a new one each time
        return time.process_time() - start

    # A busy machine can slow one attempt, not make one fast.
    assert any(seconds() <= 2 for _ in range(3))


# ------------------------------------------------------------------------------------------- vmap


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_vmap_is_a_loop(method):
    x = normal(0, 3, 2, 4, 5, 2)
    kernel = normal(1, 3, 2, 2, 2, 3)

    def f(x, kernel):
        return conv(x, kernel, method)

    @jax.jit
    def run(x, kernel):
        over_input = jax.vmap(f, (0, None))(x, kernel[0])
        over_kernel = jax.vmap(f, (None, 0))(x[0], kernel)
        both = jax.vmap(f)(x, kernel)
        nested = jax.vmap(jax.vmap(f, (None, 0)), (0, None))(x, kernel)
        other_axes = jax.vmap(f, (3, 4), 2)(jnp.moveaxis(x, 0, 3), jnp.moveaxis(kernel, 0, 4))
        loop = [[f(x[i], kernel[j]) for j in range(3)] for i in range(3)]
        return over_input, over_kernel, both, nested, other_axes, loop

    over_input, over_kernel, both, nested, other_axes, loop = run(x, kernel)
    table = np.array(loop)
    assert oracle.gap(over_input, table[:, 0]) <= 1e-12
    assert oracle.gap(over_kernel, table[0]) <= 1e-12
    assert oracle.gap(both, np.stack([table[i, i] for i in range(3)])) <= 1e-12
    assert oracle.gap(nested, table) <= 1e-12
    assert oracle.gap(np.moveaxis(other_axes, 2, 0), both) <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("axes", "method"), crossed([(0, None), (None, 0), (0, 0)], METHODS, strength=1)
)
def test_gradients_under_vmap_are_a_loop(axes, method):
    x, kernel = normal(0, 3, 2, 4, 5, 2), normal(1, 3, 2, 2, 2, 3)
    grad = jax.grad(lambda *args: jnp.sum(jnp.sin(conv(*args, method))), (0, 1))
    arguments = [v if axis == 0 else v[0] for v, axis in zip((x, kernel), axes, strict=True)]

    @jax.jit
    def run(x, kernel):
        loop = [
            grad(*(v[i] if axis == 0 else v for v, axis in zip((x, kernel), axes, strict=True)))
            for i in range(3)
        ]
        return jax.vmap(grad, axes)(x, kernel), loop

    mapped, loop = run(*arguments)
    for n in range(2):
        assert oracle.gap(mapped[n], np.stack([pair[n] for pair in loop])) <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_a_vmapped_loss(method):
    x, kernel = normal(0, 3, 4, 5, 2), normal(1, 2, 2, 2, 3)

    @jax.jit
    def run(x, kernel):
        def f(x, kernel):
            return conv(x, kernel, method)

        def mapped(x, kernel):
            return jnp.sum(jnp.sin(jax.vmap(f, (0, None))(x, kernel)))

        def batched(x, kernel):
            return jnp.sum(jnp.sin(f(x, kernel)))

        return jax.grad(mapped, (0, 1))(x, kernel), jax.grad(batched, (0, 1))(x, kernel)

    mapped, batched = run(x, kernel)
    for actual, expected in zip(mapped, batched, strict=True):
        assert oracle.gap(actual, expected) <= 1e-12


# ------------------------------------------------------------------------------- remat, scan, loops


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_scan_and_remat_are_a_loop(method):
    x, kernels = normal(0, 2, 6, 5, 3), normal(1, 4, 3, 2, 3, 3)

    def layer(x, kernel):
        y = bandjax.band_conv(x, kernel, BAND, **chosen(method))
        return jnp.tanh(0.3 * y)

    def by_loop(x, kernels):
        for kernel in kernels:
            x = layer(x, kernel)
        return jnp.sum(x**2)

    def by_scan(x, kernels, layer=layer):
        x, _ = jax.lax.scan(lambda x, kernel: (layer(x, kernel), None), x, kernels)
        return jnp.sum(x**2)

    def by_remat(x, kernels):
        return by_scan(x, kernels, jax.checkpoint(layer))

    @jax.jit
    def run(x, kernels):
        return [jax.value_and_grad(f, (0, 1))(x, kernels) for f in (by_loop, by_scan, by_remat)]

    expected, *others = map(jax.tree.leaves, run(x, kernels))
    for other in others:
        for actual, wanted in zip(other, expected, strict=True):
            assert oracle.gap(actual, wanted) <= 1e-12


# -------------------------------------------------------------------------------- batch dimensions


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_batch_dimensions(method):
    x, kernel = normal(0, 2, 3, 4, 5, 2), normal(1, 2, 3, 2, 3)

    @jax.jit
    def run(x):
        shapes = ((6, 4, 5, 2), x.shape, (1, 2, 1, 3, 4, 5, 2))
        one = conv(x[1, 2], kernel, method)
        return one, *(conv(x.reshape(shape), kernel, method) for shape in shapes)

    one, flat, two, four = run(x)
    assert flat.shape == (6, 4, 3, 3)
    assert two.shape == (2, 3, 4, 3, 3)
    assert four.shape == (1, 2, 1, 3, 4, 3, 3)
    assert oracle.gap(one, flat[5]) <= 1e-12
    for other in (two, four):
        assert oracle.gap(other.reshape(flat.shape), flat) <= 1e-12


@pytest.mark.parametrize(
    ("band", "batch", "method"), crossed([BAND, None], [(0,), (2, 0), (0, 3)], METHODS)
)
def test_a_batch_of_zero_is_empty(band, batch, method):
    x, kernel = normal(0, *batch, 6, 5, 2), normal(1, 3, 3, 2, 4)

    @jax.jit
    def run(x, kernel):
        y, back = jax.vjp(lambda *a: bandjax.band_conv(*a, band, **chosen(method)), x, kernel)
        return y, *back(y)

    y, dx, dkernel = run(x, kernel)
    assert y.shape == (*batch, 6, 5, 4)
    assert y.dtype == x.dtype
    assert dx.shape == x.shape
    assert dkernel.shape == kernel.shape
    assert not np.any(dkernel)


# ---------------------------------------------------------------------------------- NaN, infinity


@pytest.mark.parametrize(
    ("band", "value", "method"), crossed([BAND, None], [np.nan, np.inf, -np.inf], METHODS)
)
def test_what_is_not_finite_propagates(band, value, method):
    x, kernel = normal(0, 2, 6, 5, 2), normal(1, 3, 3, 2, 3)

    @jax.jit
    def run(x, kernel):
        dense = bandjax.band_conv(x, kernel, method="direct")
        return bandjax.band_conv(x, kernel, band, **chosen(method)), dense

    clean, _ = run(x, kernel)
    spoiled = np.array(x)
    spoiled[1, 2, 3, 0] = value
    y, dense = run(spoiled, kernel)
    # One bad sample spoils its own example, at least where a dense convolution would.
    assert oracle.gap(y[0], clean[0]) <= 1e-5
    assert np.all(~np.isfinite(y[1])[~np.isfinite(dense[1])])
    assert np.sum(~np.isfinite(dense[1])) == 27

    spoiled = np.array(kernel)
    spoiled[1, 1, 0, 2] = value
    y, dense = run(x, spoiled)
    # One bad weight spoils its own feature.
    assert oracle.gap(y[..., :2], clean[..., :2]) <= 1e-5
    assert np.all(~np.isfinite(y[..., 2]))
    assert np.all(~np.isfinite(dense[..., 2]))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_what_is_not_finite(method):
    x, kernel = normal(0, 2, 6, 5, 2), normal(1, 3, 3, 2, 3)

    @jax.jit
    def run(x, kernel):
        return jax.grad(lambda *args: jnp.sum(conv(*args, method) ** 2), (0, 1))(x, kernel)

    dx, dkernel = run(x.at[1, 2, 3, 0].set(jnp.nan), kernel)
    assert np.all(np.isfinite(dx[0]))
    assert np.all(np.isnan(dx[1]))
    assert np.all(np.isnan(dkernel[:, :, 0]))


# --------------------------------------------------------------------- forward mode, higher orders


@pytest.mark.parametrize(("band", "method"), crossed([BAND, None], METHODS, strength=1))
def test_forward_mode_raises_the_error_of_jax(band, method):
    x, kernel = normal(0, 1, 4, 3, 1), normal(1, 2, 2, 1, 2)

    def loss(x):
        return jnp.sum(bandjax.band_conv(x, kernel, band, **chosen(method)) ** 2)

    with pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
        jax.jvp(loss, (x,), (x,))
    if band is not None:
        with pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
            jax.hessian(loss)(x)
    value, hessian = jax.jit(lambda x: (loss(x), jax.jacrev(jax.jacrev(loss))(x)))(x)
    matrix = np.asarray(hessian).reshape(x.size, x.size)
    assert oracle.gap(matrix, matrix.T) <= 1e-5
    # The loss is a quadratic form: x H x = 2 loss.
    vector = np.asarray(x).ravel()
    assert vector @ matrix @ vector == pytest.approx(2 * float(value), rel=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_third_order(method):
    # Σ y⁴ is a form f of degree four in the kernel: by Euler <∇f, w> = 4 f, again and again.
    x, kernel = normal(0, 1, 4, 3, 1), normal(1, 2, 2, 1, 2)

    def loss(kernel):
        return jnp.sum(conv(x, kernel, method) ** 4)

    def along(f):
        return lambda kernel: jnp.vdot(jax.grad(f)(kernel), kernel)

    @jax.jit
    def run(kernel):
        forms = [along(loss), along(along(loss)), along(along(along(loss)))]
        return [form(kernel) for form in forms], loss(kernel)

    actual, value = run(kernel)
    expected = [4.0**n * float(value) for n in (1, 2, 3)]
    assert [float(v) for v in actual] == pytest.approx(expected, rel=1e-12)


# ----------------------------------------------------------------------------------------- export


def test_a_model_can_be_exported():
    class Model(nnx.Module):
        def __init__(self, rngs):
            band = bandjax.Compression(0.5)
            self.first = bandjax.nnx.BandConv(2, 4, (3, 3), band=band, rngs=rngs)
            self.second = bandjax.nnx.BandConv(
                4, 3, (3, 3), strides=2, band=band, implementation="xla", rngs=rngs
            )

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(state)

    @jax.jit
    def loss(leaves, x):
        return jnp.sum(nnx.merge(graph, jax.tree.unflatten(tree, leaves))(x) ** 2)

    x = normal(3, 2, 9, 8, 2)
    blob = jax.export.export(loss, disabled_checks=export_checks())(leaves, x)
    blob = blob.serialize(vjp_order=1)
    loaded = jax.export.deserialize(bytearray(blob))
    (value, actual), (wanted, expected) = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(leaves, x) for f in (loaded.call, loss)
    )
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    for gradient, true in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert oracle.relative_gap(gradient, true) <= 1e-5


@pytest.mark.parametrize("method", PLAIN)  # test_native.py has the kernels.
def test_the_operator_can_be_exported(method):
    x, kernel = normal(0, 2, 6, 5, 2), normal(1, 3, 3, 2, 3)
    f = jax.jit(lambda x, kernel: conv(x, kernel, method, implementation="xla"))
    loaded = jax.export.deserialize(jax.export.export(f)(x, kernel).serialize())
    assert oracle.relative_gap(loaded.call(x, kernel), f(x, kernel)) <= 1e-6
