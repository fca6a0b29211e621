"""Compressed residuals under the transformations of JAX, and with any arguments."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from saved_cases import (
    EXACT,
    PARAMETERS,
    X,
    assert_near,
    block,
    convolve,
    cosine,
    gradient,
    loss,
    normal,
    normalised,
    saved,
)

import bandjax
from bandjax import compress_saved
from bandjax.codecs import Dct

pytestmark = pytest.mark.thin(3)


def test_vmap():
    xs = jnp.stack([X, 2 * X])
    of_one = gradient(compress_saved(block, Dct(bits=8)))
    mapped = jax.jit(jax.vmap(of_one, (None, 0)))(PARAMETERS, xs)
    of_one = jax.jit(of_one)
    alone = [of_one(PARAMETERS, x) for x in xs]
    assert_near(mapped, jax.tree.map(lambda *g: jnp.stack(g), *alone))


@pytest.mark.full
def test_scan_around_and_within():
    w = 0.3 * normal(0, 3, 3, 3, 8, 8)

    def step(x, w):
        return jnp.tanh(convolve(x, w)) + x, None

    def deep(w, x, step=step):
        return jax.lax.scan(step, x, w)[0].sum()

    exact = jax.grad(deep)(w, X)
    around = functools.partial(deep, step=compress_saved(step, EXACT, argnums=0))
    for f in (around, compress_saved(deep, EXACT)):
        assert_near(jax.jit(jax.grad(f))(w, X), exact)
    for f in (
        functools.partial(deep, step=compress_saved(step, Dct(bits=8), argnums=0)),
        compress_saved(deep, Dct(bits=8)),
    ):
        assert (
            cosine(jax.jit(jax.grad(f))(w, X), exact) > 0.99
        )  # Of noise, which has no low frequencies.
        assert saved(f, w, X, argnums=0).total < saved(deep, w, X, argnums=0).total / 2


def test_checkpoint_within_keeps_the_inputs_of_blocks():
    def blocks(parameters, x, wrap=lambda f: f):
        def one(x):
            y, _ = normalised(convolve(x, parameters[0]), parameters[2])
            return jax.nn.relu(convolve(jax.nn.relu(y), parameters[1]) + x)

        for _ in range(3):
            x = wrap(one)(x)
        return x.sum()

    exact = jax.grad(blocks)(PARAMETERS, X)
    within = functools.partial(blocks, wrap=jax.checkpoint)
    assert_near(jax.jit(jax.grad(compress_saved(within, EXACT)))(PARAMETERS, X), exact)
    kept = saved(compress_saved(within, Dct(bits=6)), PARAMETERS, X, argnums=0)
    assert kept.by_codec() == {"Dct(bits=6)": 2 * Dct(bits=6).nbytes(X.shape)}


def test_checkpoint_around():
    f = jax.checkpoint(compress_saved(block, EXACT))
    assert_near(jax.jit(gradient(f))(PARAMETERS, X), gradient(block)(PARAMETERS, X))


def test_a_batch_over_devices_keeps_its_scales_to_itself():
    mesh = Mesh(np.array(jax.devices()[:4]), "data")
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    f = jax.jit(gradient(compress_saved(elementwise, Dct(bits=4))))
    assert_near(f(PARAMETERS, x), f(PARAMETERS, X))
    text = f.lower(PARAMETERS, x).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text


def elementwise(parameters, x):
    """Of examples each for itself."""
    return jnp.tanh(convolve(jnp.tanh(convolve(x, parameters[0])), parameters[1])), ()


def test_shard_map():
    mesh = Mesh(np.array(jax.devices()[:2]), "data")
    f = compress_saved(elementwise, Dct(bits=4))

    def local(parameters, x):
        return loss(parameters, x, f)[0][None]

    def whole(parameters, x):
        mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
        return mapped(parameters, x).sum()

    assert_near(jax.jit(jax.grad(whole))(PARAMETERS, X), gradient(f)(PARAMETERS, X))


@pytest.mark.parametrize("aux", [True, False], ids=["has_aux", "unused"])
def test_shard_map_where_a_result_has_no_cotangent(aux):
    mesh = Mesh(np.array(jax.devices()[:2]), "data")

    def f(w, x):
        y = jnp.tanh(jnp.tanh(x @ w) @ w)
        return (y**2).sum(), y.mean(0)

    def local(f, w, x):
        return f(w, x) if aux else f(w, x)[0]

    def whole(f):
        def mapped(w, x):
            gradient = jax.grad(functools.partial(local, f), has_aux=aux)(w, x)
            return (gradient[0] if aux else gradient)[None]

        specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
        return jax.jit(jax.shard_map(mapped, mesh=mesh, check_vma=True, **specs))

    w, x = normal(0, 64, 64), normal(1, 64, 64)
    assert_near(whole(compress_saved(f, EXACT))(w, x), whole(f)(w, x))


def test_a_custom_derivative_within_is_obeyed():
    @jax.custom_vjp
    def odd(x):
        return jnp.tanh(x)

    odd.defvjp(lambda x: (jnp.tanh(x), x), lambda x, ct: (7 * x * ct,))

    def f(w, x):
        y = odd(convolve(x, w))
        y = bandjax.band_conv(y, w, bandjax.Compression(0.5))
        return jnp.sum(bandjax.band_conv(y, w) ** 2)

    exact = jax.grad(f)(PARAMETERS[0], X)
    assert_near(jax.grad(compress_saved(f, EXACT))(PARAMETERS[0], X), exact)


def test_integers_closures_keywords_and_static_arguments():
    def f(w, x, labels, power, *, shift):
        y = jnp.tanh(convolve(x, w)) ** power + shift
        return jnp.take_along_axis(y, labels[:, None, None, None], -1).sum()

    labels = jnp.array([1, 5, 0, 7])
    g = compress_saved(f, EXACT, static_argnums=3)
    exact = jax.grad(f)(PARAMETERS[0], X, labels, 2, shift=0.5)
    assert_near(jax.grad(g)(PARAMETERS[0], X, labels, 2, shift=0.5), exact)

    @jax.jit
    def closed_over(w, x, labels):  # Traced values, of which one is differentiated, one integer.
        def of_w(w):
            twice = 2 * w
            inner = compress_saved(lambda x: f(twice, x, labels, 2, shift=0.5), EXACT)
            return inner(jnp.sin(x))

        return jax.grad(of_w)(w)

    by_hand = jax.grad(lambda w: f(2 * w, jnp.sin(X), labels, 2, shift=0.5))(PARAMETERS[0])
    assert_near(closed_over(PARAMETERS[0], X, labels), by_hand)
    mapped = jax.vmap(closed_over, (0, None, 0))(PARAMETERS[0][None], X, labels[None])
    assert_near(mapped[0], by_hand)


def test_integers_alone_have_no_gradient_and_no_error():
    f = compress_saved(lambda x: 2 * x)
    np.testing.assert_array_equal(f(jnp.arange(3)), [0, 2, 4])
    with pytest.raises(TypeError, match=r"real- or complex-valued|float|inexact"):
        jax.grad(lambda x: f(x).sum())(jnp.arange(3))


def test_the_result_may_be_what_is_kept():
    def f(x):
        y = jnp.exp(x)
        return y, y.astype(jnp.int32)

    x = normal(0, 2, 8, 8, 16)
    (exact, _), (near, _) = (jax.vjp(g, x)[0] for g in (f, compress_saved(f, Dct(bits=8))))
    np.testing.assert_array_equal(exact, near)


def test_half_precision():
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (PARAMETERS, X))

    def gradient_of(f):
        return jax.grad(lambda p, x: f(p, x)[0].astype(jnp.float32).sum())(*half)

    exact, near = map(gradient_of, (elementwise, compress_saved(elementwise, Dct(bits=8))))
    assert near[0].dtype == jnp.bfloat16
    assert cosine(jax.tree.map(lambda a: a.astype(jnp.float32), near), exact) > 0.99


def test_second_derivatives_and_forward_mode_are_refused():
    x, w = normal(0, 8, 8, 32), normal(1, 32, 32)
    f = compress_saved(lambda w: jnp.sum(jnp.tanh(x @ w) ** 3), Dct(bits=8))
    with pytest.raises(NotImplementedError, match="first derivatives in reverse mode alone"):
        jax.grad(lambda w: jax.grad(f)(w).sum())(w)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(f, (w,), (w,))


def test_where_nothing_is_packed_there_are_second_derivatives():
    def f(x):
        return jnp.sum(jnp.tanh(x) ** 3)

    x = normal(0, 8, 8, 32)
    exact, same = (
        jax.grad(lambda x, g=g: jnp.sum(jax.grad(g)(x) ** 2))(x) for g in (f, compress_saved(f))
    )
    assert_near(same, exact)
