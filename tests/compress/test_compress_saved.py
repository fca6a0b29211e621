"""Functions whose values are exact and whose residuals are compressed."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

from bandjax import compress_saved
from bandjax.codecs import Average, Codec, Dct, Uniform

pytestmark = pytest.mark.thin(3)


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("codec", [Dct(bits=2.5), Uniform()], ids=repr)
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
def test_values_and_auxiliary_values_are_equal_bit_for_bit(codec, compiled):
    wrap = jax.jit if compiled else lambda f: f

    def with_gradient(f):
        return wrap(jax.value_and_grad(functools.partial(loss, f=f), has_aux=True))

    packed = compress_saved(block, codec)
    exact, near = (with_gradient(f)(PARAMETERS, X)[0] for f in (block, packed))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(near), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        *(jax.tree.leaves(wrap(f)(PARAMETERS, X)) for f in (block, packed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_without_loss_gradients_are_those_of_the_function():
    exact, same = (
        jax.jit(gradient(f, (0, 1)))(PARAMETERS, X) for f in (block, compress_saved(block, EXACT))
    )
    assert_near(same, exact)


@pytest.mark.parametrize(
    ("codec", "least"),
    [(Dct(bits=8), 0.9998), (Dct(bits=4), 0.98), (Uniform(8), 0.9998), (Average(bits=4), 0.97)],
    ids=repr,
)
def test_with_loss_gradients_are_near(codec, least):
    exact = gradient(block)(PARAMETERS, X)
    near = jax.jit(gradient(compress_saved(block, codec)))(PARAMETERS, X)
    assert least < cosine(exact, near) < 1 - 1e-9


def test_a_gradient_is_the_same_in_every_call():
    f = jax.jit(gradient(compress_saved(block, Dct(bits=3))))
    for a, b in zip(*(jax.tree.leaves(f(PARAMETERS, X)) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------ what is kept


def test_each_tensor_is_kept_once():
    """Of both convolutions their results; of ReLU bits; of the pooling four bits a maximum."""
    codec = Dct(bits=4)
    kept = saved(compress_saved(block, codec), PARAMETERS, X, argnums=0)
    maps = 2 * codec.nbytes(X.shape)
    flags = 2 * X.size // 8 + 4 * (X.size // 4) // 8
    assert kept.by_codec() == {"Dct(bits=4)": maps, "bits": flags}
    assert kept.by_kind()["packed"] == maps + flags
    assert kept.total - maps - flags < 1024  # Statistics.
    assert saved(block, PARAMETERS, X, argnums=0).total > 5 * X.nbytes


@jax.custom_jvp
def first_of(a, b):
    """The ReLU of one of two."""
    return jax.lax.max(a, 0.0)


@first_of.defjvp
def first_of_jvp(primals, tangents):
    return first_of(*primals), jnp.where(primals[0] > 0, tangents[0], 0.0)


def of_both(y, other, w):
    return convolve(jax.nn.relu(other), w) + convolve(first_of(y, other), w)


@pytest.mark.parametrize(
    ("after", "comparisons"),
    [
        (lambda y, w: convolve(jax.nn.relu(y), w), 0),  # The result of ReLU lies in memory.
        (lambda y, w: convolve(jax.lax.reshape(jax.nn.relu(y), y.shape), w), 0),
        (lambda y, w: jax.nn.relu(y) * 2, 0),  # So does that of the convolution.
        (lambda y, w: jnp.where(y > 0, y, 0.1 * y), 1),  # The function's own.
        (lambda y, w: jax.nn.relu(y + 1) * 2, 1),  # XLA would make these two in one go.
        (lambda y, w: jnp.where(y + 1 > 1, y, 0.1 * y), 1),
        (lambda y, w: jnp.where(y >= 0, y, 0.1 * y), 1),
        (lambda y, w: convolve(jnp.where(y > 1, y, 0.1), w), 1),
        (lambda y, w: of_both(y, -y, w), 0),
        (lambda y, w: convolve(jax.nn.relu(y.astype(jnp.bfloat16)).astype(y.dtype), w), 1),
    ],
    ids=["relu", "view", "direct", "where", "alone", "shifted", "ge", "threshold", "two", "half"],
)
def test_masks_are_the_signs_of_what_lies_in_memory(after, comparisons):
    """No comparison is made for them; at zero they are exact."""

    def f(parameters, x):
        y = convolve(x, parameters[0])
        with jax.numpy_dtype_promotion("standard"):
            return (after(y, parameters[1]) * jnp.cos(jnp.arange(8.0))[None, None, None]).sum()

    parameters = jax.tree.map(jnp.round, PARAMETERS)
    x = jnp.round(0.4 * X)  # Whole numbers, many of them zero after a convolution.
    assert float((convolve(x, parameters[0]) == 0).mean()) > 0.1
    packed = jax.grad(compress_saved(f, EXACT))
    assert_near(jax.jit(packed)(parameters, x), jax.grad(f)(parameters, x))
    made = re.findall(r"bool\[4,16,16,8\] = (?:gt|ge)", str(jax.make_jaxpr(packed)(parameters, x)))
    assert len(made) == comparisons


@pytest.mark.parametrize(
    "f",
    [
        *(jnp.tanh, jnp.exp2, jnp.cosh, jnp.arctan, jax.lax.logistic),
        *(jax.lax.erf, jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.softplus, jax.nn.elu),
        *(jax.nn.mish, jax.nn.hard_swish, jax.nn.log_sigmoid, lambda x: x**3),
    ],
    ids=lambda f: f.__name__,
)
def test_what_acts_on_each_element_keeps_one_map(f):
    """Whichever primitives this version of JAX makes of it, and two masks at most."""

    def part(w, x):
        with jax.numpy_dtype_promotion("standard"):
            return f(convolve(x, w)).sum()

    codec = Dct(bits=8)
    kept = saved(compress_saved(part, codec), PARAMETERS[0], X, argnums=0)
    assert kept.by_codec().get("Dct(bits=8)", 0) <= codec.nbytes(X.shape)
    assert kept.total < codec.nbytes(X.shape) + 2 * X.size // 8 + 64


@pytest.mark.parametrize(
    "f",
    [
        lambda y: jnp.clip(y, -0.3, 0.3),  # compares within a compiled function
        lambda y: jax.nn.relu6(3 * y),
        lambda y: jnp.linalg.norm(y, axis=-1),  # whose root has no bound at zero
        lambda y: y / jnp.abs(y).max(-1, keepdims=True),
    ],
    ids=["clip", "relu6", "norm", "largest"],
)
def test_neither_jumps_nor_poles_are_met_where_they_are_not(f):
    x, w = normal(2, 4, 32, 32, 8), 0.1 * normal(3, 3, 3, 8, 8)

    def loss(w):
        y = f(convolve(convolve(x, w), w))
        return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)).sum()

    exact, near = jax.grad(loss)(w), jax.grad(compress_saved(loss, Dct(bits=4)))(w)
    assert jnp.linalg.norm(near - exact) <= 0.4 * jnp.linalg.norm(exact)


def test_the_input_of_a_part_is_packed_where_it_is_named_and_has_a_gradient():
    codec = Dct(bits=4)
    for argnums, differentiated, maps in (((), (0, 1), 2), (1, (0, 1), 3), (1, 0, 2)):
        kept = saved(
            compress_saved(block, codec, argnums=argnums), PARAMETERS, X, argnums=differentiated
        )
        assert kept.by_codec()["Dct(bits=4)"] == maps * codec.nbytes(X.shape)


def test_concatenated_maps_are_kept_by_their_parts():
    def dense(w, x):
        for each in w:
            x = jnp.concatenate([x, jnp.tanh(convolve(x, each))], -1)
        return x.sum()

    w, x = [normal(i, 3, 3, 4 + 4 * i, 4) for i in range(3)], normal(9, 2, 12, 12, 4)
    kept = saved(compress_saved(dense, Dct(bits=8)), w, x, argnums=0)
    assert kept.by_codec() == {"Dct(bits=8)": 3 * Dct(bits=8).nbytes((2, 12, 12, 4))}
    assert_near(jax.grad(compress_saved(dense, EXACT))(w, x), jax.grad(dense)(w, x))


def test_recomputation_does_not_reach_back_without_end():
    def deep(w, x):
        for each in w:
            x = x + jnp.tanh(convolve(x, each))
        return x.sum()

    w, x = [0.2 * normal(i, 3, 3, 4, 4) for i in range(9)], normal(9, 2, 12, 12, 4)
    kept = saved(compress_saved(deep, Dct(bits=8)), w, x, argnums=0)
    count = kept.by_codec()["Dct(bits=8)"] / Dct(bits=8).nbytes(x.shape)
    assert 9 < count <= 13
    assert_near(jax.grad(compress_saved(deep, EXACT))(w, x), jax.grad(deep)(w, x))


def test_a_function_without_maps_costs_nothing():
    def f(w, x):
        return jnp.sum(jnp.tanh(x @ w))

    w, x = normal(0, 8, 4), normal(1, 5, 8)
    kept = [saved(g, w, x, argnums=0) for g in (f, compress_saved(f))]
    assert kept[0].total == kept[1].total
    assert kept[1].by_codec() == {}
    assert_near(*(jax.grad(g)(w, x) for g in (compress_saved(f), f)), rtol=1e-6)


def test_the_compiled_step_needs_less_memory():
    """Maps are unpacked, and made of others, one after another, and take no memory in between."""

    def deep(parameters, x):
        for _ in range(6):
            y, _ = normalised(convolve(x, parameters[0]), parameters[2])
            y, _ = normalised(convolve(jax.nn.relu(y), parameters[1]), parameters[2])
            x = jax.nn.relu(y + x)
        return x.sum()

    x = normal(3, 8, 32, 32, 8)
    dense, packed = (
        jax.jit(jax.grad(f)).lower(PARAMETERS, x).compile().memory_analysis().temp_size_in_bytes
        for f in (deep, compress_saved(deep, Dct(bits=6)))
    )
    assert packed < 0.35 * dense


# --------------------------------------------------------------------------------- max pooling


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]),
        ((1, 2, 3, 1), (1, 3, 1, 1), [(0, 0), (0, 0), (2, 0), (0, 0)]),
        ((1, 2, 2, 1), (1, 2, 2, 1), [(0, 0)] * 4),
        ((1, 13, 12, 8), (1, 1, 1, 1), [(0, 0)] * 4),
        ((1, 9, 7, 5), (1, 2, 5, 1), [(0, 0), (3, 0), (0, 2), (1, 2)]),
    ],
)
@pytest.mark.parametrize("find", ["maxima", "minima"])
def test_the_places_of_maxima_are_kept_ties_included(window, strides, padding, find):
    init, compare = (-jnp.inf, jax.lax.max) if find == "maxima" else (jnp.inf, jax.lax.min)

    def f(x, y):
        x = jnp.tanh(x) * y  # Not an argument itself.
        pooled = jax.lax.reduce_window(x, init, compare, window, strides, padding)
        return jnp.sum(pooled * normal(5, *pooled.shape))

    x, y = jnp.round(normal(0, 2, 13, 12, 8)), jnp.ones((2, 13, 12, 8))
    exact = jax.grad(f, (0, 1))(x, y)
    kept = str(jax.make_jaxpr(jax.grad(compress_saved(f, EXACT)))(x, y))
    assert "select_and_scatter_add" not in kept
    assert_near(jax.grad(compress_saved(f, EXACT), (0, 1))(x, y), exact, 1e-6)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: compress_saved(3), TypeError, "f must be a function, got int"),
        (lambda: compress_saved(block, "dct"), TypeError, "codec must be one of bandjax.codecs"),
        (
            lambda: compress_saved(block, argnums=2)(PARAMETERS, X),
            ValueError,
            "argnums must lie within the 2 positional arguments, got (2,)",
        ),
        (
            lambda: compress_saved(block, static_argnums=5)(PARAMETERS, X),
            ValueError,
            "static_argnums must lie within",
        ),
    ],
)
def test_wrong_arguments_raise_one_clear_line(call, error, said):
    with pytest.raises(error) as raised:
        call()
    assert said in str(raised.value)


def test_a_codec_of_one_s_own():
    class Halved(Codec):
        def _pack(self, x):
            return (x.astype(jnp.float16),)

        def _unpack(self, arrays, shape, dtype):
            return arrays[0].astype(dtype)

    near = gradient(compress_saved(block, Halved()))(PARAMETERS, X)
    assert cosine(near, gradient(block)(PARAMETERS, X)) > 0.99999
