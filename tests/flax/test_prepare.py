"""Models of nnx prepared for inference: the same values, norms folded where that is exact alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bandjax
from bandjax import Compression, Energy, Modes

HALF = Compression(0.5)
X = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32)


def conv(inputs=4, outputs=4, size=(3, 3), *, band="dense", **options):
    if band == "dense":
        return nnx.Conv(inputs, outputs, size, rngs=nnx.Rngs(0), **options)
    return bandjax.BandConv(inputs, outputs, size, band=band, rngs=nnx.Rngs(0), **options)


def norm(features=4, **options):
    return nnx.BatchNorm(features, rngs=nnx.Rngs(0), **options)


def drawn(model, seed=1):
    """The model with parameters and statistics of which none is 0 or 1."""
    numbers = np.random.default_rng(seed)
    for _, module in nnx.iter_modules(model):
        for name, variable in list(vars(module).items()):
            if isinstance(variable, nnx.Variable):
                old = variable[...]
                new = numbers.uniform(0.5, 2, old.shape) if name in ("var", "scale") else None
                new = old + 0.3 * numbers.normal(size=old.shape) if new is None else new
                variable[...] = jnp.asarray(new, old.dtype)
    return model


def applied(models, x):
    """The outputs of models, compiled as one program."""
    graphs, states = zip(*map(nnx.split, models), strict=True)

    def call(states, x):
        return [nnx.merge(g, s)(x) for g, s in zip(graphs, states, strict=True)]

    return jax.jit(call)(list(states), x)


def same(model, x=X, *, tolerance=1e-5, **options):
    """Prepares a model, checks its values on another batch, and that the model is as it was."""
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    options = {"measure": False, **options}
    prepared, report = bandjax.nnx.prepare(model, x, **options)
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    model.eval()
    more = jnp.concatenate([x, 2 * x[:1]])
    for outputs in zip(*map(jax.tree.leaves, applied([model, prepared], more)), strict=True):
        assert len({(y.dtype, y.shape) for y in outputs}) == 1
        wanted, got = (np.asarray(y, np.float64) for y in outputs)
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    return prepared, report


class Of(nnx.Module):
    """A model of layers by name and a function of it and its input."""

    def __init__(self, call, **layers):
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x):
        return self.call(self, x)


class Block(nnx.Module):
    """A residual block with a projection."""

    def __init__(self, band="dense", strides=1):
        self.conv1 = conv(4, 6, band=band, strides=strides, use_bias=False, padding=1)
        self.norm1 = norm(6)
        self.conv2 = conv(6, 6, band=band)
        self.norm2 = norm(6)
        self.shortcut = conv(4, 6, (1, 1), band=band, strides=strides, padding=0)
        self.shortcut_norm = norm(6)

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.shortcut_norm(self.shortcut(x)))


BY_BLOCK = {"norm1": "conv1", "norm2": "conv2", "shortcut_norm": "shortcut"}


@pytest.mark.thin(3)
@pytest.mark.parametrize("band", ["dense", None, HALF, Modes(1, 2)], ids=str)
@pytest.mark.parametrize("strides", [1, 2])
def test_a_residual_block(band, strides):
    prepared, report = same(drawn(Block(band, strides)))
    assert report.norms == BY_BLOCK
    assert report.unfolded == report.left == {}
    assert {path: layer.norm for path, layer in report.layers.items()} == {
        into: path for path, into in BY_BLOCK.items()
    }
    assert not jax.tree.leaves(nnx.state(prepared.norm1))
    assert isinstance(prepared.norm1, nnx.BatchNorm)
    assert isinstance(prepared.conv1, nnx.Conv)


def tied():
    model = Of(lambda m, x: m.norm(m.conv(x)) * m.other(x), conv=conv(), other=conv(), norm=norm())
    model.other.kernel = model.conv.kernel
    return model


FOLDED = {
    "no bias": lambda: Of(lambda m, x: m.norm(m.conv(x)), conv=conv(use_bias=False), norm=norm()),
    "bare norm": lambda: Of(
        lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=norm(use_scale=False, use_bias=False)
    ),
    "groups": lambda: Of(
        lambda m, x: m.norm(m.conv(x)),
        conv=conv(4, 6, feature_group_count=2, band=HALF),
        norm=norm(6, axis=3),
    ),
    "depthwise": lambda: Of(
        lambda m, x: m.norm(m.conv(x)), conv=conv(4, 8, feature_group_count=4), norm=norm(8)
    ),
    "mask": lambda: Of(
        lambda m, x: m.norm(m.conv(x)),
        conv=conv(mask=jnp.tril(jnp.ones((3, 3, 4, 4))), band=HALF),
        norm=norm(),
    ),
    "periodic": lambda: Of(
        lambda m, x: m.norm(m.conv(x)), conv=conv(padding="CIRCULAR", band=HALF), norm=norm()
    ),
    "reflected": lambda: Of(
        lambda m, x: m.norm(m.conv(x)), conv=conv(padding="REFLECT", band=HALF), norm=norm()
    ),
    "dilated": lambda: Of(
        lambda m, x: m.norm(m.conv(x)), conv=conv(kernel_dilation=2, band=HALF), norm=norm()
    ),
    "one axis": lambda: Of(
        lambda m, x: m.norm(m.conv(x)), conv=conv(size=(3,), padding="CAUSAL"), norm=norm()
    ),
    "spectral": lambda: Of(
        lambda m, x: m.norm(m.conv(x)),
        conv=conv(band=HALF, strides=2, param_domain="spectral", spatial_shape=(9, 8)),
        norm=norm(),
    ),
    "spectral of another size": lambda: Of(
        lambda m, x: m.norm(m.conv(x)),
        conv=conv(band=Modes(3, 3), param_domain="spectral", spatial_shape=(15, 7)),
        norm=norm(),
    ),
    "hook": lambda: Of(
        lambda m, x: m.norm(m.conv(x)),
        conv=conv(conv_general_dilated=bandjax.conv_general_dilated(HALF)),
        norm=norm(),
    ),
    "energy": lambda: Of(lambda m, x: m.norm(m.conv(x)), conv=conv(band=Energy(0.7)), norm=norm()),
    "linear": lambda: Of(
        lambda m, x: m.norm(m.linear(m.conv(x))),
        conv=conv(),
        linear=nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0)),
        norm=norm(3),
    ),
    "shared with its norm": lambda: Of(
        lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(2 * x)), conv=conv(band=HALF), norm=norm()
    ),
    "of several sizes": lambda: Of(
        lambda m, x: m.norm(m.conv(x)).sum(1) + m.norm(m.conv(x[:, :5])).sum(1),
        conv=conv(band=HALF),
        norm=norm(),
    ),
    "remat": lambda: Of(nnx.remat(lambda m, x: m.norm(m.conv(x))), conv=conv(), norm=norm()),
    "jit": lambda: Of(
        lambda m, x: nnx.jit(lambda n, x: n(x))(m.norm, nnx.jit(lambda c, x: c(x))(m.conv, x)),
        conv=conv(),
        norm=norm(),
    ),
    "a tied kernel": tied,
    "by keywords": lambda: Of(
        lambda m, x: m.norm(x=m.conv(inputs=x), use_running_average=True), conv=conv(), norm=norm()
    ),
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", FOLDED)
def test_norms_that_are_folded(name):
    _, report = same(drawn(FOLDED[name]()))
    assert report.unfolded == report.left == {}
    assert list(report.norms.values()) == ["linear" if name == "linear" else "conv"]


class OwnConv(nnx.Conv):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


class OwnNorm(nnx.BatchNorm):
    def __call__(self, x):
        return super().__call__(x) + 1


def residual(m, x):
    y = m.conv(x)
    return m.norm(y) + y


def returned(m, x):
    y = m.conv(x)
    return m.norm(y), y


def in_a_branch(m, x):
    y = m.conv(x)
    return m.norm(y) + jax.lax.cond(x[0, 0, 0, 0] > 0, jnp.sin, jnp.cos, y)


def wide(m, x):
    return m.norm(jnp.concatenate([m.conv(x), x], -1))


UNFOLDED = {  # each with a part of the reason
    "before": (lambda m, x: m.conv(nnx.relu(m.norm(x))), {}, "input is not the output"),
    "after relu": (lambda m, x: m.norm(nnx.relu(m.conv(x))), {}, "input is not the output"),
    "of a part": (lambda m, x: m.norm(m.conv(x)[:, 1:]), {}, "input is not the output"),
    "residual": (residual, {}, "not it alone reads"),
    "returned": (returned, {}, "not it alone reads"),
    "in a branch": (in_a_branch, {}, "not it alone reads"),
    "remat": (nnx.remat(residual), {}, "not it alone reads"),
    "two norms": (
        lambda m, x: m.norm(m.conv(x)) + m.more(m.conv(2 * x)),
        {"more": norm()},
        "not it alone reads",
    ),
    "two layers": (
        lambda m, x: m.norm(m.conv(x)) + m.norm(m.more(x)),
        {"more": conv()},
        "several layers",
    ),
    "the input too": (
        lambda m, x: m.norm(m.conv(x)) + m.norm(x),
        {},
        "several layers",
    ),
    "another axis": (lambda m, x: m.norm(m.conv(x)), {"norm": norm(9, axis=1)}, "axis 1"),
    "concatenated": (wide, {"norm": norm(8)}, "input is not the output"),
    "its own class": (
        lambda m, x: m.norm(m.conv(x)),
        {"norm": OwnNorm(4, rngs=nnx.Rngs(0))},
        "call of its own",
    ),
    "a convolution of its own class": (
        lambda m, x: m.norm(m.conv(x)) + m.more(x),
        {"conv": OwnConv(4, 4, (3, 3), rngs=nnx.Rngs(0)), "more": conv()},
        "input is not the output",
    ),
    "kernel read elsewhere": (
        lambda m, x: m.norm(m.conv(x)) + m.conv.kernel[...].sum(),
        {},
        "read elsewhere",
    ),
    "statistics read elsewhere": (
        lambda m, x: m.norm(m.conv(x)) + m.norm.mean[...].sum(),
        {},
        "read elsewhere",
    ),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_norms_that_are_not_folded(name):
    call, layers, reason = UNFOLDED[name]
    model = drawn(Of(call, **{"conv": conv(), "norm": norm(), **layers}))
    _, report = same(model)
    assert report.norms["norm"] is None
    assert reason in report.unfolded["norm"]


def test_a_norm_by_the_statistics_of_the_batch_is_not_folded():
    model = drawn(
        Of(
            lambda m, x: m.norm(m.conv(x), use_running_average=False),
            conv=conv(),
            norm=norm(momentum=0.5),
        )
    )
    _, report = bandjax.nnx.prepare(model, X, measure=False)
    assert "running statistics" in report.unfolded["norm"]


def test_what_is_sown_is_read():
    def call(m, x):
        y = m.conv(x)
        m.seen = nnx.Intermediate(y)
        return m.norm(y)

    model = drawn(Of(call, conv=conv(), norm=norm()))
    _, report = bandjax.nnx.prepare(model, X, measure=False)
    assert "not it alone reads" in report.unfolded["norm"]
