"""Layers of Flax and of the library, drawn alike."""

from __future__ import annotations

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from jax.nn import initializers

import bandjax

ROUNDING = 1e-12  # of float64
BATCHES = ((2,), (), (2, 3))

# (rank, changes); input and output have four and six channels.
ARGUMENTS = [
    pytest.param(rank, changes, id=f"{rank}-D {name}")
    for rank, name, changes in [
        (1, "defaults", {}),
        (2, "defaults", {}),
        (3, "defaults", {}),
        (1, "kernel_size as an int", {"kernel_size": 4}),
        (2, "even kernel", {"kernel_size": (2, 4)}),
        (2, "strides int", {"strides": 2}),
        (2, "strides pair", {"strides": (1, 3)}),
        (2, "strides None", {"strides": None}),
        (2, "VALID", {"padding": "VALID"}),
        (2, "SAME_LOWER", {"padding": "SAME_LOWER", "kernel_size": (4, 3)}),
        (2, "padding int", {"padding": 2}),
        (2, "padding ints", {"padding": (2, 1)}),
        (2, "padding pairs", {"padding": ((0, 2), (3, 1))}),
        (2, "padding mixed", {"padding": [1, (0, 2)]}),
        (2, "padding negative", {"padding": ((-1, 2), (1, -2))}),
        (1, "CIRCULAR", {"padding": "CIRCULAR"}),
        (2, "CIRCULAR", {"padding": "CIRCULAR", "kernel_size": (2, 4)}),
        (2, "CIRCULAR strided", {"padding": "CIRCULAR", "strides": (2, 3)}),
        (3, "CIRCULAR dilated", {"padding": "CIRCULAR", "kernel_dilation": (1, 2, 1)}),
        (1, "REFLECT", {"padding": "REFLECT"}),
        (2, "REFLECT", {"padding": "REFLECT", "kernel_size": (2, 4), "strides": (1, 2)}),
        (2, "REFLECT dilated", {"padding": "REFLECT", "kernel_dilation": 2}),
        (1, "CAUSAL", {"padding": "CAUSAL"}),
        (1, "CAUSAL strided", {"padding": "CAUSAL", "strides": 2, "kernel_dilation": 2}),
        (2, "input_dilation", {"input_dilation": (2, 3), "padding": ((1, 2), (0, 1))}),
        (2, "input_dilation int", {"input_dilation": 2, "padding": 1, "strides": 3}),
        (2, "input_dilation None", {"input_dilation": None}),
        (2, "kernel_dilation", {"kernel_dilation": (2, 3)}),
        (2, "kernel_dilation None", {"kernel_dilation": None}),
        (2, "groups", {"feature_group_count": 2}),
        (1, "depthwise", {"feature_group_count": 4, "features": 12}),
        (2, "no bias", {"use_bias": False}),
        (2, "precision", {"precision": "highest"}),
        (2, "initializers", {"kernel_init": initializers.normal(0.3)}),
    ]
]


def conv_arguments(rank: int, changes: dict) -> dict:
    """Constructor arguments in float64, with a bias that shows when it is lost."""
    return {
        "kernel_size": (3,) * rank,
        "param_dtype": jnp.float64,
        "bias_init": initializers.normal(1.0),
        "features": 6,
        **changes,
    }


def data(rank: int, batch=(2,)):
    rng = np.random.default_rng((rank, *batch))
    return jnp.asarray(rng.normal(size=(*batch, *(9, 8, 7)[:rank], 4)))


def nnx_layers(rank: int, changes: dict, **more):
    """Flax's layer and ours, drawn with the same key."""
    arguments = conv_arguments(rank, changes)
    features = arguments.pop("features")
    return (
        nnx.Conv(4, features, **arguments, rngs=nnx.Rngs(7)),
        bandjax.nnx.BandConv(4, features, **arguments, **more, rngs=nnx.Rngs(7)),
    )


def linen_layers(rank: int, changes: dict, **more):
    arguments = conv_arguments(rank, changes)
    return flax.linen.Conv(**arguments), bandjax.linen.BandConv(**arguments, **more)


def outputs(calls, *inputs):
    """The output of every function for every input, in one compilation."""
    run = jax.jit(lambda inputs: [[call(x) for x in inputs] for call in calls])
    return run(inputs)


def assert_same_outputs(calls, *inputs, tolerance=ROUNDING):
    """All functions give what the last one gives."""
    *rows, expected = outputs(calls, *inputs)
    for row in rows:
        for actual, wanted in zip(row, expected, strict=True):
            assert actual.dtype == wanted.dtype
            assert oracle.gap(actual, wanted) <= tolerance


def bound(layer, variables):
    """A linen layer with its variables, as a function of the input."""
    return functools.partial(layer.apply, variables)


def assert_same_trees(actual, expected):
    """The same structure, shapes, types and values."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for value, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert value.dtype == wanted.dtype
        assert np.array_equal(value, wanted)
