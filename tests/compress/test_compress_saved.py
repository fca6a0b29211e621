"""Functions whose values are exact and whose residuals are compressed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bandjax
from bandjax import compress_saved
from bandjax.codecs import Average, Cast, Codec, Dct, Uniform

pytestmark = pytest.mark.thin(3)

EXACT = Cast(jnp.float32)  # Loses nothing: gradients are those of the function itself.


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def convolve(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normalised(x, scale):
    mean, var = (f(x, axis=(0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale[None, None, None]), (mean, var)


def block(parameters, x):
    """A residual block with pooling: its result, and the statistics."""
    first, second, scale = parameters
    y, one = normalised(convolve(x, first), scale)
    y, two = normalised(convolve(jax.nn.relu(y), second), scale)
    y = jax.nn.relu(y + x)
    pooled = jax.lax.reduce_window(
        y, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
    )
    return pooled, (one, two, jnp.argmax(pooled, -1))


PARAMETERS = 0.3 * normal(0, 3, 3, 8, 8), 0.3 * normal(1, 3, 3, 8, 8), 1 + 0.1 * normal(2, 8)
X = normal(3, 4, 16, 16, 8)


def loss(parameters, x, f=block):
    y, aux = f(parameters, x)
    return (y * jnp.cos(jnp.arange(8.0))[None, None, None]).sum(), aux


def gradient(f, argnums=0):
    return jax.grad(lambda p, x: loss(p, x, f)[0], argnums)


def cosine(a, b):
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)
        for tree in (a, b)
    ]
    return np.dot(*flat) / np.prod([np.linalg.norm(v) for v in flat])


def assert_near(a, b, rtol=2e-4):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.abs(other).max()) + 1e-6
        np.testing.assert_allclose(one, other, atol=rtol * scale)


def saved(f, *args, **options):
    return bandjax.memory.saved_bytes(f, *args, **options)


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


@pytest.mark.parametrize(
    "f",
    [
        *(jnp.tanh, jnp.log2, jnp.exp2, jnp.cosh, jnp.arctan, jnp.sqrt, jax.lax.logistic),
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
    ],
)
def test_the_places_of_maxima_are_kept_ties_included(window, strides, padding):
    def f(x, y):
        x = jnp.tanh(x) * y  # Not an argument itself.
        pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
        return jnp.sum(pooled * normal(5, *pooled.shape))

    x, y = jnp.round(normal(0, 2, 13, 12, 8)), jnp.ones((2, 13, 12, 8))
    exact = jax.grad(f, (0, 1))(x, y)
    kept = str(jax.make_jaxpr(jax.grad(compress_saved(f, EXACT)))(x, y))
    assert "select_and_scatter_add" not in kept
    assert_near(jax.grad(compress_saved(f, EXACT), (0, 1))(x, y), exact, 1e-6)


# ------------------------------------------------------------------------------- transformations


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
