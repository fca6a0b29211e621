"""What users of Flax's convolutions do, by every way in which a layer becomes band-limited.

With every frequency kept each way must give what the dense layer gives, and its gradients. The
arguments are those that Flax's own tests go through. Few cases run by default; ``make foreign``
runs all.
"""

from __future__ import annotations

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from calls import METHODS, chosen
from choices import covering
from flax import nnx
from flax_layers import ARGUMENTS, BATCHES, conv_arguments, data

import bandjax

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.thin(48)]
EVERY = bandjax.Compression(0.0)


def nnx_layer(rank, changes, **more):
    arguments = conv_arguments(rank, changes)
    return nnx.Conv(4, arguments.pop("features"), **arguments, **more, rngs=nnx.Rngs(7))


def as_functions(layer):
    """A dense layer of Flax as a function of parameters and input, and its parameters."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), params


def as_layer(rank, changes, how):
    arguments = conv_arguments(rank, changes)
    features = arguments.pop("features")
    layer = bandjax.nnx.BandConv(4, features, **arguments, **how, rngs=nnx.Rngs(7))
    return as_functions(layer)[0]


def by_hook(rank, changes, how):
    hook = bandjax.conv_general_dilated(how.pop("band"), **how)
    return as_functions(nnx_layer(rank, changes, conv_general_dilated=hook))[0]


def by_band_limit(rank, changes, how):
    model = nnx.Sequential(nnx_layer(rank, changes))
    bandjax.nnx.band_limit(model, how.pop("band"), **how)
    return as_functions(model.layers[0])[0]


def through_linen(rank, changes, how, hooked=False):
    arguments = conv_arguments(rank, changes)
    if hooked:
        hook = bandjax.conv_general_dilated(how.pop("band"), **how)
        layer = flax.linen.Conv(**arguments, conv_general_dilated=hook)
    else:
        layer = bandjax.linen.BandConv(**arguments, **how)

    def call(params, x):
        values = {name: value[...] for name, value in params.items() if name in ("kernel", "bias")}
        return layer.apply({"params": {k: v for k, v in values.items() if v is not None}}, x)

    return call


def linen_hook(rank, changes, how):
    return through_linen(rank, changes, how, hooked=True)


def linen_band_limited(rank, changes, how):
    layer = flax.linen.Conv(**conv_arguments(rank, changes))

    def call(params, x):
        values = {name: value[...] for name, value in params.items() if value[...] is not None}
        with bandjax.linen.band_limited(
            how.get("band"), **{k: v for k, v in how.items() if k != "band"}
        ):
            return layer.apply({"params": values}, x)

    return call


WAYS = (as_layer, by_hook, by_band_limit, through_linen, linen_hook, linen_band_limited)


def results(call, params, x):
    """Output, and the gradients of a function of it, in one program."""

    @jax.jit
    def run(params, x):
        y, back = jax.vjp(call, params, x)
        return y, back(jnp.cos(y))

    y, (ct_params, ct_x) = run(params, x)
    leaves = jax.tree.leaves(ct_params)
    return [np.asarray(a) for a in (y, ct_x, *leaves)]


CASES = covering(ARGUMENTS, BATCHES, WAYS, METHODS)


@pytest.mark.parametrize(("rank", "changes", "batch", "way", "method"), CASES)
def test_every_way_is_the_dense_layer(rank, changes, batch, way, method):
    dense, params = as_functions(nnx_layer(rank, changes))
    ours = way(rank, dict(changes), {"band": EVERY, **chosen(method)})
    x = data(rank, batch)
    for got, expected in zip(results(ours, params, x), results(dense, params, x), strict=True):
        assert got.dtype == expected.dtype
        assert oracle.gap(got, expected) <= 1e-11


TYPES = ("float32", "bfloat16", "float16")
HALVES = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "input_dtype", "way"),
    covering((None, *TYPES), TYPES, TYPES, WAYS),
)
def test_types_are_promoted_as_in_flax(dtype, param_dtype, input_dtype, way):
    changes = {"dtype": dtype, "param_dtype": jnp.dtype(param_dtype)}
    dense, params = as_functions(nnx_layer(2, changes))
    ours = way(2, dict(changes), {"band": EVERY})
    x = data(2).astype(input_dtype)
    with jax.numpy_dtype_promotion("standard"):  # The tests' own setting is stricter.
        got, expected = results(ours, params, x), results(dense, params, x)
    bound = max(HALVES[str(a.dtype)] for a in expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert oracle.gap(one, other) <= bound * max(1, np.sqrt(one.size))


@pytest.mark.parametrize("way", [as_layer, through_linen], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_masks(rank, groups, way):
    shape = ((3,) * rank) + (4 // groups, 6)
    mask = jnp.asarray(np.random.default_rng(5).integers(2, size=shape), jnp.float64)
    changes = {"mask": mask, "feature_group_count": groups}
    dense, params = as_functions(nnx_layer(rank, changes))
    ours = way(rank, dict(changes), {"band": EVERY})
    x = data(rank)
    for got, expected in zip(results(ours, params, x), results(dense, params, x), strict=True):
        assert oracle.gap(got, expected) <= 1e-11
