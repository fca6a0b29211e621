"""What is kept between forward and backward, against sizes computed by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from memory_cases import F32, SAVE_SPECTRA, SPECTRUM, array, band_conv

import bandjax
from bandjax import memory

mpl.use("Agg")


def kept(fun, *args, **options):
    """Operation, shape and type of each tensor."""
    saved = memory.saved_bytes(fun, *args, **options)
    return [(t.operation, t.shape, jnp.dtype(t.dtype).name) for t in saved.tensors]


def test_a_chain_of_sines_keeps_a_cosine_each():
    saved = memory.saved_bytes(lambda x: jnp.sin(jnp.sin(x)), array(5, 7))
    assert [t.operation for t in saved.tensors] == ["cos", "cos"]
    assert {t.shape for t in saved.tensors} == {(5, 7)}
    assert {t.nbytes for t in saved.tensors} == {4 * 5 * 7}
    assert (saved.total, saved.arguments, saved.constants) == (2 * 4 * 5 * 7, 0, 0)
    assert all("test_memory.py" in t.source for t in saved.tensors)


@pytest.mark.parametrize(
    "fun",
    [
        lambda x, w: jnp.tanh(x @ w).sum(),
        lambda x, w: jnp.sin(jnp.cos(x @ w) @ w.T) ** 2,
        lambda x, w: jax.nn.softmax(x @ w),
        jax.jit(lambda x, w: jnp.exp(x @ w)),
    ],
)
def test_the_sizes_are_those_of_the_arrays_that_jax_vjp_returns(fun):
    args = jnp.ones((6, 5)), jnp.ones((5, 3))
    _, pull_back = jax.vjp(fun, *args)
    arrays = {id(a): a for a in jax.tree.leaves(pull_back) if isinstance(a, jax.Array)}
    saved = memory.saved_bytes(fun, *args)
    assert saved.total > 0
    own = sum(a.nbytes for a in arrays.values())
    assert own == saved.total + saved.arguments + saved.constants


def test_average_over_the_tensors_made():
    saved = memory.saved_bytes(lambda x: jnp.exp(jnp.exp(jnp.exp(x)[:50])[:10]), array(100))
    assert [t.nbytes for t in saved.tensors] == [400, 200, 40]
    assert saved.average == pytest.approx((400 + 600 + 640) / 3)
    assert saved.total == 640


def test_nothing_kept():
    saved = memory.saved_bytes(lambda x: 2 * x, array(4))
    assert saved.tensors == ()
    assert (saved.total, saved.average, saved.by_name()) == (0, 0, {})


def test_arguments_are_told_apart():
    saved = memory.saved_bytes(lambda x, w: x @ w, array(3, 5), array(5, 2))
    assert saved.tensors == ()
    assert saved.arguments == 4 * (3 * 5 + 5 * 2)


def test_an_argument_reshaped_or_named_is_the_argument():
    def fun(x):
        flat = x.reshape(-1)
        return jnp.sum(checkpoint_name(flat, "flat") * flat) + jnp.sum(x * x)

    saved = memory.saved_bytes(fun, array(3, 5))
    assert saved.tensors == ()
    assert saved.arguments == 4 * 15


def test_an_array_kept_twice_counts_once_with_its_name():
    def fun(x):
        y = jnp.sqrt(x * 3)
        z = checkpoint_name(y, "root")
        return jnp.sum(y * z) + jnp.sum(y.reshape(-1) * z.reshape(-1))

    policy = jax.checkpoint_policies.everything_saveable
    for f in (fun, jax.jit(fun), jax.checkpoint(fun, policy=policy)):
        saved = memory.saved_bytes(f, array(4, 6))
        assert saved.by_name()["root"] == 4 * 24
        roots = [t for t in saved.tensors if t.operation == "sqrt"]
        assert len(roots) == 1


def test_constants_are_not_counted():
    captured = jnp.asarray(np.random.default_rng(0).normal(size=(6,)), F32)
    saved = memory.saved_bytes(lambda x: x * captured + x * jnp.arange(6, dtype=F32), array(6))
    assert saved.tensors == ()
    assert saved.constants == 2 * 4 * 6


def test_a_constant_of_a_function_under_jit_is_none_of_its_arguments():
    @jax.jit
    def pair(x):
        return x + 1, jnp.arange(6, dtype=F32)

    def fun(x):
        y, numbers = pair(x)
        return y * jnp.exp(numbers)

    saved = memory.saved_bytes(fun, array(6))
    assert saved.tensors == ()
    assert saved.constants == 4 * 6


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_zeros_in_the_derivative_of_relu_are_constants(wrap):
    saved = memory.saved_bytes(wrap(lambda x: jax.nn.relu(x).sum()), array(5, 7))
    assert [(t.operation, t.nbytes) for t in saved.tensors] == [("gt", 35)]
    assert saved.constants == 4 * 35


def test_integer_and_key_arguments():
    def loss(w, labels, key):
        mask = jax.random.bernoulli(key, 0.5, (4, 3))
        logits = jnp.where(mask, w[labels], 0)
        return jnp.sum(jnp.sin(logits))

    saved = memory.saved_bytes(loss, array(9, 3), array(4, dtype=jnp.int32), jax.random.key(1))
    names = [(t.operation, t.nbytes) for t in saved.tensors]
    assert ("cos", 4 * 12) in names
    assert 12 in [t.nbytes for t in saved.tensors if t.dtype == bool]  # the mask of the dropout


def test_argnums_and_has_aux():
    def loss(w, x):
        return jnp.sum(w * jnp.exp(x)), jnp.tan(w)

    args = array(5), array(5)
    assert kept(loss, *args, argnums=0, has_aux=True) == [("exp", (5,), "float32")]
    both = memory.saved_bytes(loss, *args, has_aux=True)
    assert both.arguments == 4 * 5
    aux = memory.saved_bytes(loss, *args, argnums=(0,))
    assert aux.total > 4 * 5
    for wrong in ((), 2, -3):
        with pytest.raises(ValueError, match="argnums must choose among 2 arguments"):
            memory.saved_bytes(loss, *args, argnums=wrong)
    with pytest.raises(TypeError, match="fun must be a function"):
        memory.saved_bytes(3, *args)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_band_conv_keeps_spectrum_and_kernel(wrap):
    saved = memory.saved_bytes(wrap(band_conv), array(2, 16, 16, 3), array(3, 3, 3, 4))
    assert saved.by_name() == {"bandjax_spectrum": SPECTRUM}
    assert saved.by_kind() == {"spectrum": SPECTRUM}
    assert saved.arguments == 4 * 3 * 3 * 3 * 4
    assert all("band_conv" in t.source for t in saved.tensors)


def test_band_conv_without_a_band_keeps_input_and_kernel():
    saved = memory.saved_bytes(bandjax.band_conv, array(2, 8, 8, 3), array(3, 3, 3, 4))
    assert saved.total == 0
    assert saved.arguments == 4 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 4)


def test_checkpoint_keeps_what_its_policy_names():
    def block(x, kernel):
        return jnp.sum(jax.nn.relu(jnp.sin(band_conv(x, kernel))))

    args = array(2, 16, 16, 3), array(3, 3, 3, 4)
    plain = memory.saved_bytes(block, *args)
    assert plain.total == SPECTRUM + (4 + 1) * 2 * 16 * 16 * 4  # the cosine and the mask
    again = memory.saved_bytes(jax.checkpoint(block, policy=SAVE_SPECTRA), *args)
    assert again.by_kind() == {"spectrum": SPECTRUM}
    nothing = memory.saved_bytes(jax.checkpoint(block), *args)
    assert nothing.total == 0
    assert nothing.arguments == 4 * (2 * 16 * 16 * 3 + 3 * 3 * 3 * 4)


def test_scan_keeps_every_step():
    saved = memory.saved_bytes(
        lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0], array(5)
    )
    assert [(t.operation, t.shape, t.nbytes) for t in saved.tensors] == [("cos", (3, 5), 60)]


def test_scan_passes_names_and_arguments_on():
    def fun(x, rows):
        def step(c, row):
            return checkpoint_name(jnp.exp(c), "grown") * row, None

        return jax.lax.scan(step, x, rows)[0]

    saved = memory.saved_bytes(fun, array(5), array(7, 5))
    assert saved.by_name() == {"grown": 4 * 35}
    assert {t.operation for t in saved.tensors} == {"exp"}
    assert saved.arguments == 4 * 35


def test_scan_of_named_rows_keeps_the_argument():
    def fun(x, rows):
        return jax.lax.scan(lambda c, row: (c * checkpoint_name(row, "row"), None), x, rows)[0]

    saved = memory.saved_bytes(fun, array(5), array(7, 5), argnums=0)
    assert saved.tensors == ()
    assert saved.arguments == 4 * 35


def test_scan_tells_what_it_carries_from_what_stays():
    def fun(x, w):
        return jax.lax.scan(lambda c, _: (checkpoint_name(c, "c") * c * w, None), x, length=4)[0]

    saved = memory.saved_bytes(fun, array(5), array(5), argnums=0)
    assert saved.by_name()["c"] == 4 * 4 * 5
    assert [t.operation for t in saved.tensors if t.name == "c"] == ["mul"]
    assert saved.arguments == 4 * 5


def test_scan_keeps_what_it_carries():
    saved = memory.saved_bytes(
        lambda x: jax.lax.scan(lambda c, _: (c * c, None), x, None, length=4)[0], array(5)
    )
    assert {t.operation for t in saved.tensors} == {"mul"}
    assert all(t.shape == (4, 5) for t in saved.tensors)


def test_branches_tell_what_they_made():
    def part(x):
        return checkpoint_name(jnp.floor(x), "floor") * x

    def fun(x, flag):
        return jax.lax.cond(flag, part, lambda x: 2 * x, x)

    saved = memory.saved_bytes(fun, array(5), array(dtype=jnp.bool_))
    assert saved.by_name()["floor"] == 4 * 5
    assert [t.operation for t in saved.tensors if t.name == "floor"] == ["floor"]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_an_array_named_once_it_is_kept(wrap):
    # The exponential is its own derivative, and kept before it has the name.
    saved = memory.saved_bytes(wrap(lambda x: checkpoint_name(jnp.exp(x), "grown")), array(5))
    assert saved.by_name() == {"grown": 4 * 5}


def test_scales_of_eight_bit_spectra():
    @jax.custom_vjp
    def convolve(x):
        return x

    def forward(x):
        steps = jnp.abs(x).astype(jnp.uint8)
        pieces = [jnp.abs(x).astype(jnp.int8), x[..., :1], steps[:1, :1]]
        return x, [checkpoint_name(piece, "bandjax_spectrum") for piece in pieces]

    convolve.defvjp(forward, lambda _, ct: (ct,))
    saved = memory.saved_bytes(convolve, array(5, 3, 2, 4))
    assert saved.by_kind() == {"spectrum": 5 * 3 * 2 * 4, "scale": 4 * (5 * 3 * 2) + 2 * 4}


def total_of(fun, *args):
    """Bytes kept when the first argument is differentiated."""
    return memory.saved_bytes(fun, *args, argnums=0).total


def test_saved_bytes_of_a_product():
    """d(sin(p) * x)/dp = cos(p) * x: only cos(p) is new, 40 bytes; x is an input."""
    p, x = jnp.arange(10.0), jnp.arange(10.0) + 1
    assert total_of(lambda p, x: jnp.sum(jnp.sin(p) * x), p, x) == 40


def test_saved_bytes_of_linear_steps_is_nothing():
    """The backward pass of a sum of products with the input reads the input alone."""
    p, x = jnp.ones((3, 4)), jnp.ones((5, 3))
    assert total_of(lambda p, x: jnp.sum(x @ p), p, x) == 0


def test_saved_bytes_of_two_dense_layers():
    """tanh keeps its output h (5 x 4 floats), which the second product's gradient reads too; the
    chain rule of the square keeps 2 * (h @ b), 5 x 2 floats. x, a and b are inputs."""
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    x = jnp.ones((5, 3))

    def loss(params, x):
        h = jnp.tanh(x @ params["a"])
        return jnp.sum((h @ params["b"]) ** 2)

    # tanh's rule keeps h for the product, and 1 - h * h or h for itself.
    assert total_of(loss, params, x) in (4 * (20 + 10), 4 * (40 + 10))


def test_saved_bytes_counts_an_array_once_and_by_its_type():
    p = jnp.ones(6, jnp.bfloat16)

    def loss(p):
        h = jnp.exp(p)  # exp's derivative is its value: one array for both products
        return jnp.sum(h * h)

    assert total_of(loss, p) == 6 * 2


def test_saved_bytes_of_one_band_limited_layer():
    """The layer keeps the compressed spectrum instead of the hidden input: kept complex numbers
    of 8 bytes per image and channel."""
    layer = bandjax.BandConv(
        4, 4, (3, 3), band=bandjax.Compression(0.75), use_bias=False, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))

    def loss(pair):
        weight, params = pair  # x * weight is neither a parameter nor an input
        return jnp.sum(nnx.merge(graph, params)(x * weight))

    kept = layer.geometry((2, 16, 16, 4)).kept
    assert total_of(loss, (jnp.float32(2), params)) == 2 * 4 * kept * 8
