"""Recomputation from the spectra: same values, less memory, nothing done twice."""

from __future__ import annotations

import functools
import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, chosen, native
from choices import crossed
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bandjax

pytestmark = pytest.mark.thin(5)

BAND = bandjax.Compression(0.5)
PLAIN = functools.partial(jax.checkpoint, policy=bandjax.save_spectra)
WAYS = [
    pytest.param(PLAIN, id="jax.checkpoint"),
    pytest.param(bandjax.checkpoint, id="bandjax.checkpoint"),
]
DTYPES = [None, jnp.bfloat16, jnp.int8]


def data(*, layers=2, size=(2, 8, 9), channels=4):
    rng = np.random.default_rng((4, layers, *size))
    x = rng.normal(size=(*size, channels)).astype(np.float32)
    kernels = rng.normal(size=(layers, 3, 3, channels, channels)) / 6
    return jnp.asarray(kernels, jnp.float32), jnp.asarray(x)


def block(method, residual_dtype=None):
    """A convolution, and what keeps more than its spectrum."""

    def f(kernel, x):
        y = bandjax.band_conv(x, kernel, BAND, **chosen(method), residual_dtype=residual_dtype)
        return x + jnp.tanh(y - y.mean((0, 1, 2), keepdims=True))

    return f


def chain(block):
    """The loss of one block for each kernel, in a row."""

    def loss(kernels, x):
        for kernel in kernels:
            x = block(kernel, x)
        return jnp.sum(x**2)

    return loss


def assert_same(actual, expected, tolerance=1e-5):
    for value, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert value.dtype == wanted.dtype
        assert oracle.relative_gap(value, wanted) <= tolerance


@pytest.mark.thin(4)
@pytest.mark.parametrize(
    ("residual_dtype", "method", "whole", "way"),
    crossed(
        DTYPES,
        METHODS,
        [pytest.param(True, id="loss"), pytest.param(False, id="blocks")],
        WAYS,
        strength=1,
    ),
)
def test_gradients_are_those_without(residual_dtype, method, whole, way):
    f = block(method, residual_dtype)
    plain = jax.value_and_grad(chain(f), (0, 1))
    spared = jax.value_and_grad(way(chain(f)) if whole else chain(way(f)), (0, 1))
    assert_same(*jax.jit(lambda *args: (spared(*args), plain(*args)))(*data()))


def saved(f, *args):
    """Shapes and types of what the backward pass keeps, arguments and constants excepted."""
    program = jax.make_jaxpr(lambda *args: jax.tree.leaves(jax.vjp(f, *args)[1]))(*args).jaxpr
    known = {*program.invars, *program.constvars}
    kept = {v for v in program.outvars if isinstance(v, type(program.invars[0]))} - known
    return sorted((v.aval.shape, str(v.aval.dtype)) for v in kept)


@pytest.mark.parametrize(
    ("residual_dtype", "method", "way"),
    crossed(DTYPES, ["fft", pytest.param("native", marks=native)], WAYS),
)
def test_nothing_is_kept_but_spectra(residual_dtype, method, way):
    kernels, x = data()
    kept = saved(way(chain(block(method, residual_dtype))), kernels, x)
    modes = bandjax.conv_geometry(x.shape, kernels.shape[1:], BAND).modes
    spectrum = (2 * modes[0] + 1, modes[1] + 1, 2, 4)
    dtype = "float32" if residual_dtype is None else jnp.dtype(residual_dtype).name
    parts = [entry for entry in kept if entry == (spectrum, dtype)]
    assert len(parts) == 2 * len(kernels)
    # Beside them scales, the numbers that the barrier waits for, and matrices of the transforms.
    others = [shape for shape, kind in kept if (shape, kind) != (spectrum, dtype)]
    assert all(len(shape) < 4 or 1 in shape for shape in others)


def calls(f, *args):
    """How often the compiled program calls each native kernel."""
    text = jax.jit(f).lower(*args).compile().as_text()
    names = re.findall(r'custom_call_target="bandjax_(\w+)"', text)
    return {name: names.count(name) for name in set(names)}


@pytest.mark.thin(3)
@native
@pytest.mark.parametrize("residual_dtype", DTYPES)
def test_the_barrier_holds_and_nothing_is_analysed_twice(residual_dtype):
    f = block("native", residual_dtype)
    plain = calls(jax.grad(chain(f)), *data())
    barred = calls(jax.grad(chain(bandjax.checkpoint(f))), *data())
    assert plain["analysis"] == barred["analysis"] == 4  # of two inputs, of two cotangents
    # In one block the gradient needs the convolution's output again: a product and a synthesis.
    assert barred["multiply_sum"] == plain["multiply_sum"] + 2
    assert barred["synthesis"] == plain["synthesis"] + 2
    assert "hold" not in plain
    assert barred["hold"] >= 4
    # This is why there is a barrier of our own: the XLA of jax 0.10 undoes jax.checkpoint.
    # (It leaves what rounds to 8 bits.)
    undone = calls(jax.grad(chain(PLAIN(f))), *data()) == plain
    assert undone == (jax.__version_info__ < (0, 11) and residual_dtype != jnp.int8)


@native
def test_the_compiled_step_needs_less_memory():
    kernels, x = data(layers=6, size=(8, 32, 32), channels=8)

    def temporary(loss):
        compiled = jax.jit(jax.grad(loss)).lower(kernels, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    f = block("native")
    assert temporary(chain(bandjax.checkpoint(f))) <= 0.75 * temporary(chain(f))


def test_arguments_of_all_types_and_values_from_outside():
    kernels, x = data()
    factor = jnp.float32(3)

    def loss(way, kernels, x, factor):
        def f(key, count, tree):  # `factor` is not among the arguments
            kept = jax.random.bernoulli(key, 0.5, tree["x"].shape)
            return block("fft")(tree["kernel"], tree["x"]) * kept.astype(
                jnp.float32
            ) * factor * count.astype(jnp.float32), key

        y, _ = way(f)(jax.random.key(1), jnp.int32(2), {"kernel": kernels[0], "x": x})
        return jnp.sum(y**2)

    gradient = jax.grad(loss, (1, 2, 3))

    @jax.jit
    def both(*arguments):
        return gradient(bandjax.checkpoint, *arguments), gradient(lambda f: f, *arguments)

    assert_same(*both(kernels, x, factor))


@pytest.mark.parametrize("way", WAYS)
def test_scan_over_blocks(way):
    kernels, x = data(layers=3)

    def loss(f):
        def run(kernels, x):
            return jnp.sum(jax.lax.scan(lambda x, w: (f(w, x), None), x, kernels)[0] ** 2)

        return run

    f = block("auto")
    steps = [jax.grad(step, (0, 1)) for step in (loss(way(f)), chain(f))]
    assert_same(*jax.jit(lambda *args: [step(*args) for step in steps])(kernels, x))
    shapes = [shape for shape, _ in saved(loss(way(f)), kernels, x) if len(shape) == 5]
    modes = bandjax.conv_geometry(x.shape, kernels.shape[1:], BAND).modes
    # Stacked by the scan: the two parts of the spectra.
    assert shapes == 2 * [(3, 2 * modes[0] + 1, modes[1] + 1, 2, 4)]


@pytest.mark.thin(2)
@pytest.mark.parametrize("way", WAYS)
def test_accumulated_gradients(way):
    kernels, x = data(size=(6, 8, 9))
    loss = chain(block("auto"))
    parts = x.reshape(3, 2, *x.shape[1:])

    def accumulated(loss):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(kernels, part)), None

        return jax.lax.scan(add, jnp.zeros_like(kernels), parts)[0]

    # The loss is a sum over examples, but for the means over each part.
    def summed():
        return sum(jax.grad(loss)(kernels, part) for part in parts)

    assert_same(*jax.jit(lambda: (accumulated(way(loss)), summed()))())


@pytest.mark.parametrize("method", METHODS)
def test_vmap(method):
    kernels, x = data()
    f = block(method)
    many = jnp.stack([x, 2 * x, x + 1])

    def step(f):
        return jax.vmap(jax.grad(chain(f), (0, 1)), (None, 0))

    assert_same(*jax.jit(lambda *a: (step(bandjax.checkpoint(f))(*a), step(f)(*a)))(kernels, many))


@pytest.mark.full
def test_higher_derivatives_are_refused_with_the_way_out():
    kernels, x = data()
    f = block("auto")

    def curvature(loss):
        return jax.grad(lambda kernels: jnp.sum(jax.grad(loss)(kernels, x) ** 2))(kernels)

    assert_same(*jax.jit(lambda: (curvature(chain(PLAIN(f))), curvature(chain(f))))())
    with pytest.raises(NotImplementedError, match=r"first derivatives alone.*jax\.checkpoint\(fun"):
        curvature(chain(bandjax.checkpoint(f)))


# ---------------------------------------------------------------------------------------- devices


@pytest.mark.full
@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("method", "kind"),
    crossed(["fft", pytest.param("native", marks=native)], ["auto", "explicit"], strength=1),
)
def test_a_sharded_batch(method, kind):
    kernels, x = data(size=(16, 8, 9))
    axis_type = AxisType.Auto if kind == "auto" else AxisType.Explicit
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    f = block(method)
    expected = jax.jit(jax.grad(chain(f), (0, 1)))(kernels, x)
    x = jax.device_put(x, NamedSharding(mesh, P("batch")))
    kernels = jax.device_put(kernels, NamedSharding(mesh, P()))
    step = jax.jit(jax.grad(chain(bandjax.checkpoint(f)), (0, 1)))
    compiled = step.lower(kernels, x).compile()
    assert_same(compiled(kernels, x), expected)
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("method", ["fft", pytest.param("native", marks=native)])
def test_shard_map(method):
    kernels, x = data(size=(16, 8, 9))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

    def step(f):
        def local(kernels, x):
            def loss(kernels, x):
                return jax.lax.pmean(chain(f)(kernels, x), "batch")

            return jax.grad(loss, (0, 1))(kernels, x)

        return jax.shard_map(
            local, mesh=mesh, in_specs=(P(), P("batch")), out_specs=(P(), P("batch"))
        )

    f = block(method)
    both = jax.jit(lambda *args: (step(bandjax.checkpoint(f))(*args), step(f)(*args)))
    assert_same(*both(kernels, x))


# ------------------------------------------------------------------------------------------- Flax


class Block(nnx.Module):
    """All that has state: batch statistics, and the stream of dropout's masks."""

    def __init__(self, rngs):
        self.conv = bandjax.BandConv(4, 4, (3, 3), use_bias=False, band=BAND, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.relu(self.norm(self.conv(x))))


def through(transformation):
    """One training step of two blocks: what it returns, and the state it leaves."""
    call = Block.__call__ if transformation is None else transformation(Block.__call__)
    model = nnx.List([Block(nnx.Rngs(0, dropout=7)), Block(nnx.Rngs(1, dropout=8))])
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    _, x = data()

    def loss(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        y = x
        for layer in model:
            y = call(layer, y)
        return jnp.sum(y**2), (y, nnx.state(model, nnx.Not(nnx.Param)))

    (value, (y, state)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, rest)
    state = [
        jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        for a in jax.tree.leaves(state)
    ]
    return (value, y, state), gradient


@pytest.mark.parametrize(
    "transformation",
    [bandjax.nnx.remat, functools.partial(nnx.remat, policy=bandjax.save_spectra)],
    ids=["bandjax.nnx.remat", "nnx.remat"],
)
def test_statistics_masks_and_values_of_nnx(transformation):
    (*values, state), gradient = through(transformation)
    (*expected, expected_state), expected_gradient = through(None)
    for actual, wanted in zip([*values, *state], [*expected, *expected_state], strict=True):
        assert np.array_equal(actual, wanted)
    assert_same(gradient, expected_gradient)
    # A step has changed the statistics, and the masks' count, from what they begin with.
    fresh = jax.tree.leaves(nnx.state(Block(nnx.Rngs(0)).norm, nnx.BatchStat))
    assert not any(np.array_equal(a, b) for a, b in zip(fresh, state, strict=False))


def test_remat_of_nnx_keeps_the_block_s_input_and_spectrum():
    model = Block(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    _, x = data()

    def loss(call):
        def run(params, x):
            y = jnp.cos(x)  # not an argument
            return jnp.sum(call(nnx.merge(graph, params, rest, copy=True), y) ** 2)

        return run

    plain = [shape for shape, _ in saved(loss(Block.__call__), params, x) if shape == x.shape]
    spared = [
        shape
        for shape, _ in saved(loss(bandjax.nnx.remat(Block.__call__)), params, x)
        if shape == x.shape
    ]
    assert len(plain) > 3
    assert len(spared) <= 3  # sin(x), the block's input, and the derivative of the square


class LinenBlock(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        y = bandjax.linen.BandConv(4, (3, 3), use_bias=False, band=BAND)(x)
        y = flax.linen.BatchNorm(use_running_average=False, momentum=0.9)(y)
        return x + flax.linen.Dropout(0.3, deterministic=False)(flax.linen.relu(y))


def test_statistics_masks_and_values_of_linen():
    _, x = data()
    plain = LinenBlock()
    spared = flax.linen.remat(LinenBlock, policy=bandjax.save_spectra)()
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = plain.init(rngs, x)

    def step(module):
        def loss(params):
            y, state = module.apply(
                {**variables, "params": params},
                x,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2)},
            )
            return jnp.sum(y**2), (y, state)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    # The names of the two modules differ, not their parameters.
    (value, (y, state)), gradient = step(spared)
    (expected, (wanted, wanted_state)), wanted_gradient = step(plain)
    assert value == expected
    assert np.array_equal(y, wanted)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted_state), strict=True):
        assert np.array_equal(a, b)
    assert_same(gradient, wanted_gradient)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_closed_over_may_be_traced_and_of_any_type(way):
    """Labels, masks, counters of a scan and keys; differentiated before tracing, and after."""

    def loss(w, x, labels, mask, key):
        def f(w):
            y = jnp.where(mask, jnp.sin(w * x), jax.random.normal(key, w.shape))
            return (y * labels.astype(y.dtype)).sum()

        return way(f)(w)

    w, x = jnp.linspace(0.1, 1, 4), jnp.linspace(1, 2, 4)
    others = x, jnp.array([1, 2, 3, 0]), jnp.array([True, False, True, True]), jax.random.key(0)
    exact = np.asarray(np.cos(w * x) * x) * np.asarray(others[1]) * np.asarray(others[2])
    for gradient in (jax.grad(jax.jit(loss)), jax.jit(jax.grad(loss)), jax.grad(loss)):
        np.testing.assert_allclose(gradient(w, *others), exact, rtol=1e-6)

    def scanned(w):
        def body(carry, i):
            return carry, way(lambda w: jnp.sin(w * x).sum() * i.astype(w.dtype))(w)

        return jax.lax.scan(body, 0.0, jnp.arange(3))[1].sum()

    np.testing.assert_allclose(jax.grad(scanned)(w), 3 * np.cos(w * x) * x, rtol=1e-5)
