"""What follows a prepared layer is done by its kernel: the same values, and fewer passes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import native, optimised
from flax import linen, nnx

import bandjax
from bandjax import Compression
from bandjax._flax import prepared as ways

NUMBERS = np.random.default_rng(8)
X = jnp.asarray(NUMBERS.normal(size=(2, 9, 8, 6)), jnp.float32)
# The ways that have a kernel with an epilogue, with the bands that they are of.
WAYS = [
    ("taps, dft (native)", Compression(0.5)),
    ("spectrum, dft (native)", Compression(0.5)),
    ("taps, direct (native)", Compression(0.5)),
    ("taps, direct (native)", None),
    ("taps, tiles (native)", None),
]


class Model(nnx.Module):
    """A function of an input and a layer's output, ``then(x, y)``."""

    def __init__(self, then, band, **options):
        options = {"use_bias": True, **options}
        layer = bandjax.BandConv(6, 6, (3, 3), band=band, rngs=nnx.Rngs(2), **options)
        if layer.use_bias:
            layer.bias[...] = jnp.linspace(-0.4, 0.4, 6)
        self.layer, self.then = layer, then

    def __call__(self, x):
        return self.then(x, self.layer(x))


def always(way):
    def timed(found, *_):
        assert way in found
        return {name: float(name != way) for name in found}

    return timed


def prepared(monkeypatch, model, way, x=X):
    monkeypatch.setattr(ways, "timed", always(way))
    monkeypatch.setattr(ways, "_HOPELESS", float("inf"))
    return bandjax.nnx.prepare(model, x)[0]


def compiled(model, *arguments):
    """The model's program, compiled, and the results."""
    graph, state = nnx.split(model)
    run = optimised(lambda state, *args: nnx.merge(graph, state)(*args))
    program = run.lower(state, *arguments).compile()
    return program.as_text(), program(state, *arguments)


def count(program, *operations):
    return sum(program.count(f" {operation}(") for operation in operations)


def low_pass(x, y):
    return jnp.maximum(jnp.minimum(y, 0.3), -0.2)


# Of the layer's output y and the input x, and what is left for the program to do.
FOLLOWS = {
    "nothing": (lambda x, y: y, 0),
    "relu": (lambda x, y: nnx.relu(y), 0),
    "what is added comes later": (lambda x, y: nnx.relu6(4 * x + y), 0),
    "relu6": (lambda x, y: nnx.relu6(y), 0),
    "clip": (lambda x, y: jnp.clip(y, -0.25, 0.5), 0),
    "a smaller limit comes last": (low_pass, 0),
    "residual": (lambda x, y: y + x, 0),
    "residual and relu": (lambda x, y: nnx.relu(x + y), 0),
    "in a function of its own": (jax.jit(lambda a, b: nnx.relu(a + b)), 0),
    "relu and then a residual": (lambda x, y: nnx.relu(y) + x, 1),
    "two residuals": (lambda x, y: x + (x + y), 1),
    "limits that cross": (lambda x, y: jnp.maximum(jnp.minimum(y, 0.1), 0.2), 1),
    "read twice": (lambda x, y: nnx.relu(y) + y, 2),
    "a result too": (lambda x, y: (nnx.relu(y), y), 1),
    "a vector": (lambda x, y: nnx.relu(y + jnp.cos(x[:1, :1, :1])), 2),
    "twice itself": (lambda x, y: y + y, 1),
    "the limit is an array": (lambda x, y: jnp.maximum(y, x), 1),
    "another nonlinearity": (lambda x, y: jnp.tanh(y), 0),
}


@native
@pytest.mark.parametrize("name", FOLLOWS)
def test_what_is_done_by_the_kernel(monkeypatch, name):
    then, left = FOLLOWS[name]
    model = prepared(monkeypatch, Model(then, Compression(0.5)), "taps, dft (native)")
    program, y = compiled(model, X)
    assert count(program, "maximum", "minimum", "add", "clamp") == left
    wanted = model(X)  # not compiled, and so not fused
    for got, value in zip(jax.tree.leaves(y), jax.tree.leaves(wanted), strict=True):
        assert oracle.relative_gap(got, np.asarray(value)) <= 1e-6


@native
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("way", "band"), WAYS, ids=str)
def test_every_way_with_such_a_kernel(monkeypatch, way, band, bias):
    model = Model(FOLLOWS["residual and relu"][0], band, use_bias=bias)
    model = prepared(monkeypatch, model, way)
    program, y = compiled(model, X)
    assert count(program, "maximum", "add") == 0
    assert oracle.relative_gap(y, np.asarray(model(X))) <= 1e-6


@native
@pytest.mark.parametrize("way", ["taps, dft (native)", "spectrum, dft (native)"])
def test_in_bfloat16(monkeypatch, way):
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
    model = Model(FOLLOWS["residual and relu"][0], Compression(0.5), **options)
    x = X.astype(jnp.bfloat16)
    model = prepared(monkeypatch, model, way, x)
    program, y = compiled(model, x)
    assert count(program, "maximum") == 0
    assert y.dtype == jnp.bfloat16
    wanted = np.asarray(model(x).astype(jnp.float32))
    assert oracle.relative_gap(y.astype(jnp.float32), wanted) <= 2**-7


@native
@pytest.mark.parametrize("sizes", [(21,), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("band", [Compression(0.5), None], ids=str)
def test_series_and_volumes(sizes, band):
    x = jnp.asarray(NUMBERS.normal(size=(2, *sizes, 6)), jnp.float32)
    model = Model(FOLLOWS["residual and relu"][0], band)
    model.layer = bandjax.BandConv(6, 6, (3,) * len(sizes), band=band, rngs=nnx.Rngs(3))
    model, _ = bandjax.nnx.prepare(model, x, measure=False)
    program, y = compiled(model, x)
    assert "bandjax_" not in program or count(program, "maximum") == 0
    assert oracle.relative_gap(y, np.asarray(model(x))) <= 1e-6


@native
def test_what_is_no_number_stays(monkeypatch):
    model = Model(FOLLOWS["clip"][0], None)
    model = prepared(monkeypatch, model, "taps, direct (native)")
    _, y = compiled(model, X.at[0, 4, 4, 0].set(jnp.nan))
    assert np.isnan(np.asarray(y[0, 3:6, 3:6])).all()
    assert np.isfinite(np.asarray(y[0, :3])).all()


@native
@pytest.mark.parametrize("way", ["taps, dft (native)", "taps, direct (native)"])
def test_derivatives_and_batches(monkeypatch, way):
    model = Model(FOLLOWS["residual and relu"][0], Compression(0.5))
    model = prepared(monkeypatch, model, way)
    graph, state = nnx.split(model)

    def loss(state, x):
        return (nnx.merge(graph, state)(x) ** 2).sum()

    wanted, got = (f(jax.grad(loss, (0, 1)))(state, X) for f in (lambda f: f, jax.jit))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert oracle.relative_gap(a, np.asarray(b)) <= 1e-5
    for axes in ((None, 0), (0, None), (0, 0)):
        given = [
            jax.tree.map(lambda a: jnp.stack([a, 2 * a]), value) if axis == 0 else value
            for value, axis in zip((state, X), axes, strict=True)
        ]
        each = jax.jit(jax.vmap(lambda s, x: nnx.merge(graph, s)(x), axes))(*given)
        for i in range(2):
            one = [
                jax.tree.map(lambda a, i=i: a[i], value) if axis == 0 else value
                for value, axis in zip(given, axes, strict=True)
            ]
            assert (
                oracle.relative_gap(each[i], np.asarray(nnx.merge(graph, one[0])(one[1]))) <= 1e-5
            )


@native
def test_within_loops_and_branches(monkeypatch):
    """There a layer is computed as it is, and so it is in what is recomputed."""

    def then(x, y):
        return y

    class Looping(Model):
        def __call__(self, x):
            def step(x, _):
                return nnx.relu(self.layer(x)), None

            x, _ = jax.lax.scan(step, x, None, length=2)
            x = jax.lax.cond(x.sum() > 0, lambda x: nnx.relu(self.layer(x)), lambda x: x, x)
            return jax.checkpoint(lambda x: nnx.relu(self.layer(x)))(x)

    model = prepared(monkeypatch, Looping(then, Compression(0.5)), "taps, dft (native)")
    graph, state = nnx.split(model)
    run = jax.jit(nnx.merge(graph, state))
    assert oracle.relative_gap(run(X), np.asarray(model(X))) <= 1e-6
    got, wanted = (jax.grad(lambda x, f=f: (f(x) ** 2).sum())(X) for f in (run, model))
    assert oracle.relative_gap(got, np.asarray(wanted)) <= 1e-5
    batched = jax.jit(jax.vmap(run))(X[:, None])[:, 0]
    assert oracle.relative_gap(batched, np.asarray(model(X))) <= 1e-6


class Counting(nnx.Module):
    """A model that changes its state, and takes and gives more than arrays."""

    def __init__(self, new):
        self.layer = bandjax.BandConv(6, 6, (3, 3), band=None, rngs=nnx.Rngs(0))
        self.calls, self.new = nnx.BatchStat(jnp.zeros(())), new

    def __call__(self, x, how="relu", *, write=True, **more):
        if write and self.new:
            self.seen = nnx.Intermediate(x.sum())
        elif write:
            self.calls[...] = self.calls[...] + 1
        y = self.layer(x["x"] if isinstance(x, dict) else x)
        return {"y": nnx.relu(y) if how == "relu" else y, "how": None, **more}


@pytest.mark.parametrize("new", [True, False])
def test_a_model_that_changes_its_state(new):
    model, _ = bandjax.nnx.prepare(Counting(new), X, measure=False)
    run = nnx.jit(lambda model, x: model(x)["y"])
    y = run(model, X)
    assert np.array_equal(y, np.maximum(np.asarray(model.layer(X)), 0))
    if new:
        assert model.seen[...] == X.sum()
    else:
        assert model.calls[...] == 1


def test_arguments_and_results_of_any_kind():
    model, _ = bandjax.nnx.prepare(Counting(False), X, measure=False)
    run = jax.jit(lambda x: model({"x": x}, "none", write=False, more=2 * x))
    out = run(X)
    assert out["how"] is None
    np.testing.assert_array_equal(out["more"], 2 * X)
    assert oracle.relative_gap(out["y"], np.asarray(model.layer(X))) <= 1e-6


@native
def test_linen(monkeypatch):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            y = bandjax.linen.BandConv(6, (3, 3), band=Compression(0.5))(x)
            return linen.relu(y + x)

    model = Net()
    variables = model.init(jax.random.key(0), X)
    monkeypatch.setattr(ways, "timed", always("taps, dft (native)"))
    apply, variables, _ = bandjax.linen.prepare(model, variables, X)
    program = optimised(apply).lower(variables, X).compile()
    assert count(program.as_text(), "maximum", "add") == 0
    assert oracle.relative_gap(program(variables, X), np.asarray(apply(variables, X))) <= 1e-6


@native
def test_on_several_devices(monkeypatch):
    """The sum over input channels that devices share is complete before it is rectified."""
    model = Model(FOLLOWS["residual and relu"][0], None)
    model = prepared(monkeypatch, model, "taps, direct (native)")
    mesh = jax.make_mesh((2, 2), ("n", "c"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (("n", None, None, None), ("n", None, None, "c"), (None, None, None, "c")):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        _, y = compiled(model, jax.device_put(X, sharding))
        assert oracle.relative_gap(y, np.asarray(model(X))) <= 1e-6
