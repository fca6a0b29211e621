"""Models of linen prepared for inference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn

from bandjax import Compression
from bandjax._flax import prepared as ways
from bandjax.linen import BandConv, band_limited, prepare

HALF = Compression(0.5)
X = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32)


class Block(nn.Module):
    """A residual block of bound width, by layers of a kind."""

    kind: type = nn.Conv
    strides: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        y = self.kind(6, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(not train)(y))
        y = nn.BatchNorm(not train, use_scale=False)(self.kind(6, (3, 3))(y))
        return nn.relu(nn.BatchNorm(not train)(self.kind(6, (1, 1), self.strides)(x)) + y)


class Network(nn.Module):
    """Blocks, one of them under ``remat``, and a head with a norm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.remat(Block, static_argnums=(2,))()(x, train)
        x = Block(BandConv, 2, name="low")(nn.BatchNorm(not train)(x), train)
        return nn.BatchNorm(not train)(nn.Dense(3, use_bias=False)(x.mean((1, 2))))


class Of(nn.Module):
    """A model of a function of it and its input."""

    call: object

    @nn.compact
    def __call__(self, x):
        return self.call(x)


def drawn(model, seed=1):
    """Variables of which none is 0 or 1."""
    numbers = np.random.default_rng(seed)

    def draw(path, old):
        if path[-1].key in ("var", "scale"):
            return jnp.asarray(numbers.uniform(0.5, 2, old.shape), old.dtype)
        return old + jnp.asarray(0.3 * numbers.normal(size=old.shape), old.dtype)

    return jax.tree.map_with_path(draw, jax.jit(model.init)(jax.random.key(0), X))


def same(model, variables, wanted=None, **options):
    """Prepares a model and checks its values."""
    before = jax.tree.map(np.asarray, variables)
    apply, prepared, report = prepare(model, variables, X, **{"measure": False, **options})
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    wanted = jax.jit(model.apply)(variables, X) if wanted is None else wanted
    got = jax.jit(apply)(prepared, X)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        assert a.dtype == b.dtype
        assert oracle.relative_gap(b, np.asarray(a)) < 1e-5
    return apply, prepared, report


def by_block(path):
    return {f"{path}/BatchNorm_{i}": f"{path}/Conv_{i}" for i in range(3)}


def test_a_network():
    model = Network()
    variables = drawn(model)
    _, prepared, report = same(model, variables)
    block = "CheckpointBlock_0"
    wanted = {**by_block(block), "BatchNorm_0": None, **by_block("low"), "BatchNorm_1": "Dense_0"}
    assert report.norms == wanted
    assert list(report.unfolded) == ["BatchNorm_0"]
    assert len(report.layers) == 6
    assert set(prepared["batch_stats"]) == {"BatchNorm_0"}
    assert set(prepared["params"]["low"]) == {f"Conv_{i}" for i in range(3)}


@pytest.mark.parametrize("way", ["spectrum", "taps"])
def test_within_a_context(monkeypatch, way):
    monkeypatch.setattr(
        ways, "timed", lambda found, *_: {n: float(not n.startswith(way)) for n in found}
    )
    model = Block()
    variables = drawn(model)
    limited = band_limited(HALF)
    wanted = jax.jit(limited(model.apply))(variables, X)
    _, prepared, report = limited(lambda: same(model, variables, wanted, measure=True))()
    assert oracle.relative_gap(wanted, np.asarray(model.apply(variables, X))) > 0.01
    assert {layer.way.partition(",")[0] for layer in report.layers.values()} == {way}
    name = "kernel" if way == "taps" else "kernel_spectrum"
    assert all(set(layer) == {name, "bias"} for layer in prepared["params"].values())


def norm(x, **options):
    return nn.BatchNorm(use_running_average=True, **options)(x)


def twice(x):
    y = nn.Conv(4, (3, 3))(x)
    return norm(y) + y


def shared(x):
    layer = nn.Conv(4, (3, 3))
    return norm(layer(x)) + norm(layer(2 * x))


CASES = {  # and the layer that the first norm is folded into, or a part of the reason
    "a spectral layer": (
        lambda x: norm(BandConv(5, (3, 3), band=HALF, strides=2, param_domain="spectral")(x)),
        "Conv_0",
    ),
    "groups": (lambda x: norm(nn.Conv(8, (3,), feature_group_count=2)(x)), "Conv_0"),
    "before": (lambda x: nn.Conv(4, (3, 3))(norm(x)), "input is not the output"),
    "used twice": (twice, "not it alone reads"),
    "shared": (shared, "not it alone reads"),
    "another axis": (lambda x: norm(nn.Conv(4, (3, 3))(x), axis=1), "another axis"),
    "local": (
        lambda x: norm(nn.ConvLocal(4, (3, 3))(nn.Conv(4, (3, 3))(x))),
        "from place to place",
    ),
    "transposed": (
        lambda x: norm(nn.ConvTranspose(4, (3, 3))(nn.Conv(4, (3, 3))(x))),
        "is not the output",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_norms(name):
    call, wanted = CASES[name]
    model = Of(call)
    _, _, report = same(model, drawn(model))
    into = report.norms["BatchNorm_0"]
    assert wanted in (into or report.unfolded["BatchNorm_0"])
    assert (into is None) == (" " in wanted)


def test_outputs_that_are_sown_are_read():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Conv(4, (3, 3))(x)
            self.sow("intermediates", "y", y)
            return norm(y)

    model = Sowing()
    _, _, report = same(model, drawn(model))
    assert "not it alone reads" in report.unfolded["BatchNorm_0"]


def test_scanned_layers_are_left_alone():
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3))(x)
            step = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )
            return step(nn.Conv(4, (3, 3), name="scanned"), x, None)[0]

    model = Scanned()
    _, _, report = same(model, drawn(model))
    assert list(report.layers) == ["Conv_0"]
    assert "stacked" in report.left["scanned"]


def test_gradients_and_batches():
    model = Block()
    variables = drawn(model)
    apply, prepared, _ = prepare(model, variables, X, measure=False)
    x = jnp.asarray(np.concatenate([X, X]))
    gradients = [
        jax.grad(lambda x, f=f, v=v: (f(v, x) ** 2).sum())(x)
        for f, v in ((model.apply, variables), (apply, prepared))
    ]
    assert oracle.relative_gap(gradients[1], np.asarray(gradients[0])) < 1e-5


def test_errors():
    model = Block()
    variables = drawn(model)
    apply, prepared, _ = prepare(model, variables, X, measure=False)
    *_, report = prepare(model, variables, X, measure=False, train=True)
    assert all("running statistics" in why for why in report.unfolded.values())
    for wrong, error, told in (
        (lambda: prepare(model.apply, variables, X), TypeError, "nnx.prepare"),
        (lambda: prepare(nn.Dense(3), drawn(nn.Dense(3)), X), ValueError, "no convolution"),
        (lambda: prepare(model, variables, X, measure=1), TypeError, "measure must be"),
        (lambda: prepare(model, variables, X, dtype=jnp.int8), ValueError, "dtype must be"),
        (lambda: apply(variables, X), ValueError, "that bandjax.linen.prepare returned"),
        (lambda: apply(prepared, X[:, 1:]), ValueError, "was prepared for inputs of size"),
        (lambda: apply(prepared, X, train=True), ValueError, "is for inference"),
    ):
        with pytest.raises(error, match=told):
            wrong()
